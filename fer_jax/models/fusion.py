"""The one model: a backbone, a body that turns maps into steps, and a head.

Legend: B batch, T steps or frames, H x W image, C channels, h x w map, D
features, K classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.models import specification as spec
from fer_jax.models import stages
from fer_jax.models.stages import Layer, Run
from fer_jax.nn import arguments, rematerialisation
from fer_jax.nn.dtypes import as_bool, sum_dtype
from fer_jax.nn.mode import Mode

_PARTS = ('backbone', 'body', 'head')
_PIXELS = {
  'standardised': 'standardised',
  'unit': 'in [0, 1]',
  'raw': 'in [0, 255]',
}


class FusionModel(Mode):
  """A backbone, a body and a head, built from a specification.

  Example, a system of one's own:

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from fer_jax.models import FusionModel, specification as spec
    >>> model = FusionModel(
    ...   spec.Specification(
    ...     input_shape=(12, 12, 1),
    ...     backbone=(spec.Convolution(4), spec.MaxPool()),
    ...     body=(spec.Rows(), spec.Recurrent('gru', 8, returns='last')),
    ...     head=(spec.Dense(16), spec.Drop(0.5)),
    ...   ),
    ...   num_classes=3,
    ...   rngs=nnx.Rngs(0),
    ... )
    >>> model(jnp.zeros((2, 12, 12, 1))).shape
    (2, 3)

  In one's own NNX train step it is a module as any other:

    >>> import optax
    >>> optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    >>> @nnx.jit
    ... def train_step(model, optimizer, images, labels, key):
    ...   def loss_of(model):
    ...     logits = model(images, train=True, key=key)
    ...     losses = optax.softmax_cross_entropy_with_integer_labels(
    ...       logits, labels
    ...     )
    ...     return losses.mean()
    ...
    ...   loss, gradients = nnx.value_and_grad(loss_of)(model)
    ...   optimizer.update(model, gradients)
    ...   return loss
    >>> images, labels = jnp.ones((2, 12, 12, 1)), jnp.array([0, 2])
    >>> losses = [
    ...   train_step(model, optimizer, images, labels, jax.random.key(n))
    ...   for n in range(2)
    ... ]
    >>> losses[0].shape
    ()

  And in a purely functional one it is a graph definition and two trees:

    >>> graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    >>> @jax.jit
    ... def gradients_of(params, rest, images):
    ...   def loss_of(params):
    ...     model = nnx.merge(graphdef, params, rest, copy=True)
    ...     logits = model(images, train=True)
    ...     moved = nnx.state(model, nnx.Not(nnx.Param))
    ...     return -jax.nn.log_softmax(logits)[:, 0].mean(), moved
    ...
    ...   return jax.grad(loss_of, has_aux=True)(params)
    >>> gradients, rest = gradients_of(params, rest, images)
    >>> gradients['logits']['kernel'].shape
    (16, 3)

  Features of every stage, by name:

    >>> logits, features = model(images, return_features=True)
    >>> {name: features[name].shape for name in ('map', 'tokens', 'dense1')}
    {'map': (2, 6, 6, 4), 'tokens': (2, 6, 24), 'dense1': (2, 16)}

  Attributes:
    specification: what it was built from.
    num_classes: K.
    map_shape: (h, w, D) of the map that the backbone gives.
    token_grid: (rows, columns) of the map whose cells are the steps that
      attention weighs, in row-major order; None where attention sees other
      steps, or there is none. Steps of a clip are its frames.

  Args:
    specification: the stages.
    num_classes: K.
    rngs: the stream `params` draws the parameters; nothing of it is kept.

  Raises:
    ValueError: where a stage does not fit what the one before it gives, and
      for what is out of range or of another type.
  """

  def __init__(
    self,
    specification: spec.Specification,
    *,
    num_classes: int,
    rngs: nnx.Rngs,
  ):
    if not arguments.is_int(num_classes) or num_classes < 2:
      arguments.refuse('num_classes', 'an int of at least 2', num_classes)
    arguments.check_rngs(rngs)
    _check_specification(specification)
    self.specification = specification
    self.num_classes = int(num_classes)
    self.dtype = jnp.dtype(specification.dtype)
    self.token_grid: tuple[int, int] | None = None
    self.use_running_average = True

    shape: tuple[int, ...] = specification.input_shape
    grid: tuple[int, int] | None = None
    numbers: dict[str, int] = {}
    for part in _PARTS:
      layers: dict[str, Layer] = {}
      for stage in getattr(specification, part):
        layer = stages.build(stage, shape, dtype=self.dtype, rngs=rngs)
        shape, grid = layer.output_shape, layer.grid_after(grid)
        if isinstance(stage, spec.Attention):
          self.token_grid = grid
        numbers[layer.kind] = numbers.get(layer.kind, 0) + 1
        layers[f'{layer.kind}{numbers[layer.kind]}'] = layer
      setattr(self, part, nnx.Dict(layers))
      # Splitting and merging sorts the names of a dictionary.
      setattr(self, f'{part}_names', tuple(layers))
      if part == 'backbone':
        self.map_shape = shape
    if len(shape) != 1:
      raise ValueError(
        f'the logits take a vector, the stages before them give {shape}'
      )
    self.logits = nnx.Linear(
      shape[0],
      num_classes,
      kernel_init=nnx.initializers.glorot_uniform(),
      rngs=rngs,
    )

  def layers(self, part: str) -> list[tuple[str, Layer]]:
    """(name, layer) of each stage of 'backbone', 'body' or 'head', in order."""
    if part not in _PARTS:
      arguments.refuse('part', f'one of {_PARTS}', part)
    modules = getattr(self, part)
    return [(name, modules[name]) for name in getattr(self, f'{part}_names')]

  def __call__(
    self,
    images: jax.Array,
    frame_mask: jax.Array | None = None,
    *,
    train: bool | None = None,
    key: jax.Array | None = None,
    dropout: jax.Array | float | None = None,
    weight: jax.Array | None = None,
    return_features: bool = False,
  ) -> Any:
    """Classifies images or clips.

    Args:
      images: float (B, H, W, C), or clips (B, T, H, W, C); as
        `specification.pixels` says.
      frame_mask: bool (B, T), True for frames that there are; None for all.
      train: whether BatchNorm normalises by this batch's statistics, and
        moves its running ones; None takes what `train()` or `eval()` has set,
        before those False. Dropout goes by its key alone.
      key: PRNG key of dropout; None switches it off.
      dropout: scalar rate in the place of that of every dropout but those
        between recurrent layers; may be traced.
      weight: (B,), 0 on padding, which stays out of BatchNorm's statistics.
      return_features: whether to return features too.

    Returns:
      Logits float32 (B, K). With `return_features` a pair: logits and a dict of
      the output of every stage by its name, and `map` (B, h, w, D) of an
      image, `tokens` (B, T, D) as the first stage over a sequence gets them,
      `attention` (B, T) float32 where there is attention, and `embedding`
      (B, D), what the head gets.

    Raises:
      ValueError: for an input that the model does not take.
    """
    self._check(images, frame_mask, weight)
    arguments.check_key(key)
    train = self.trains(train)
    is_clip = images.ndim == 5
    of_examples = None if weight is None else as_bool(weight)
    mask = of_examples
    if is_clip:
      if frame_mask is not None:
        frame_mask = as_bool(frame_mask)
        # A gradient of 0 times what is no number would be none either.
        images = jnp.where(frame_mask[..., None, None, None], images, 0)
      frames = images.shape[:2]
      mask = _frames_that_count(of_examples, frame_mask, *frames)
      images = images.reshape(-1, *images.shape[2:])
    run = Run(
      train=train,
      mask=mask,
      key=key,
      rate=dropout,
      remat=self.specification.remat and train,
    )

    x = images.astype(self.dtype)
    for name, layer in self.layers('backbone'):
      x = run.features[name] = self._backbone_stage(layer, x, run)
    body = self.layers('body')
    if is_clip:
      x, body = self._steps_of_clip(x, body, frame_mask, frames, run)
      run.mask = of_examples
    else:
      run.features['map'] = x
    for name, layer in body:
      if layer.over_sequence:
        run.features.setdefault('tokens', x)
      x = run.features[name] = layer(x, run)
    run.features['embedding'] = x
    for name, layer in self.layers('head'):
      x = run.features[name] = layer(x, run)
    logits = self.logits(x.astype(sum_dtype(x.dtype)))
    return (logits, run.features) if return_features else logits

  def _backbone_stage(self, layer: Layer, x, run: Run):
    # A whole network does it part by part. Dropout has nothing worth computing
    # twice, and takes a key of the run's.
    once = layer.kind in ('network', 'dropout')
    return rematerialisation.call(layer, x, run, remat=run.remat and not once)

  def _steps_of_clip(self, x, body, frame_mask, frames, run: Run):
    """The steps (B, T, D) of frames' maps (B T, h, w, D), where `frames` is
    (B, T), and what is left of the body for them; sets their mask."""
    spatial = next(
      n for n, (_, layer) in enumerate(body) if layer.over_sequence
    )
    if self.specification.clip == 'frames':
      x = x.mean((1, 2)).reshape(*frames, x.shape[-1])
      run.frame_mask = frame_mask
    else:
      for name, layer in body[:spatial]:
        x = run.features[name] = layer(x, run)
      run.steps_a_frame = x.shape[1]
      if frame_mask is not None:
        run.frame_mask = jnp.repeat(frame_mask, run.steps_a_frame, 1)
      x = x.reshape(frames[0], frames[1] * x.shape[1], x.shape[2])
    run.features = {
      name: f.reshape(*frames, *f.shape[1:]) for name, f in run.features.items()
    }
    return x, body[spatial:]

  def _check(self, images, frame_mask, weight):
    h, w, c = self.specification.input_shape
    takes = f'the model takes float images (B, {h}, {w}, {c})'
    if any(layer.over_sequence for _, layer in self.layers('body')):
      takes += f' or clips (B, T, {h}, {w}, {c})'
      ranks = (4, 5)
    else:
      ranks = (4,)
    shape = arguments.shape_of(images)
    if len(shape) not in ranks or shape[-3:] != (h, w, c):
      raise ValueError(f'{takes}; got {arguments.described(images)}')
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise ValueError(
        f'{takes}, {_PIXELS[self.specification.pixels]}; got {images.dtype}: '
        'see fer_jax.data.standardize'
      )
    if frame_mask is not None and (
      len(shape) != 5 or arguments.shape_of(frame_mask) != shape[:2]
    ):
      raise ValueError(
        f'frame_mask is (B, T) for clips (B, T, {h}, {w}, {c}); got '
        f'{arguments.described(frame_mask)} with images of shape {shape}'
      )
    if weight is not None:
      arguments.check_shape(
        f'weight must be ({shape[0]},), one for each image or clip',
        weight,
        shape[:1],
      )


def _check_specification(specification) -> None:
  if not isinstance(specification, spec.Specification):
    expected = 'a Specification, such as models.specify gives'
    arguments.refuse('specification', expected, specification)
  for field, allowed in (
    ('dtype', spec.DTYPES),
    ('pixels', spec.PIXELS),
    ('clip', spec.CLIPS),
  ):
    value = getattr(specification, field)
    if value not in allowed:
      arguments.refuse(field, f'one of {allowed}', value)
  arguments.flag('remat', specification.remat)
  shape = specification.input_shape
  arguments.positives('input_shape', shape)
  if len(shape) != 3:
    arguments.refuse('input_shape', '(H, W, C)', shape)
  for part in _PARTS:
    found = getattr(specification, part)
    if not isinstance(found, tuple):
      arguments.refuse(part, 'a tuple of stages', found)


def _frames_that_count(mask_b, frame_mask, batch, frames):
  """Which of the B T frames enter BatchNorm's statistics; None for all."""
  if mask_b is None and frame_mask is None:
    return None
  mask_bt = jnp.ones((batch, frames), bool)
  if mask_b is not None:
    mask_bt &= mask_b[:, None]
  if frame_mask is not None:
    mask_bt &= frame_mask
  return mask_bt.reshape(-1)
