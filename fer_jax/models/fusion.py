"""The one model: a backbone, a body that turns maps into steps, and a head.

Legend: B batch, T steps or frames, H x W image, C channels, h x w map, D
features, K classes.
"""

import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.models import specification as spec
from fer_jax.nn import (
  GRU,
  LSTM,
  AdditiveAttention,
  BatchNorm,
  Bidirectional,
  Conv,
  Dropout,
  ResidualBlock,
  Stacked,
  max_pool,
)
from fer_jax.nn.initializers import he_normal

SEQUENCE_STAGES = (spec.Recurrent, spec.Attention, spec.Mean)


class ConvolutionLayer(nnx.Module):
  """What `specification.Convolution` builds."""

  def __init__(
    self, stage: spec.Convolution, in_features: int, *, dtype, rngs: nnx.Rngs
  ):
    self.conv = Conv(
      in_features,
      stage.filters,
      stage.kernel_size,
      strides=stage.strides,
      padding=stage.padding,
      use_bias=stage.use_bias,
      dtype=dtype,
      kernel_init=he_normal,
      rngs=rngs,
    )
    self.norm = BatchNorm(stage.filters) if stage.normalise else nnx.data(None)
    self.relu = stage.relu

  def __call__(self, x_bhwc, *, train: bool = False, mask=None):
    """Maps (B, H, W, C) to (B, H', W', filters)."""
    y = self.conv(x_bhwc)
    if self.norm is not None:
      y = self.norm(y, not train, mask=mask)
    return jax.nn.relu(y) if self.relu else y


class MaxPoolLayer(nnx.Module):
  """What `specification.MaxPool` builds."""

  def __init__(self, window: int):
    self.window = window

  def __call__(self, x_bhwc):
    """Maps (B, H, W, C) to (B, H // window, W // window, C)."""
    return max_pool(x_bhwc, self.window)


class DenseLayer(nnx.Module):
  """What `specification.Dense` builds."""

  def __init__(self, in_features: int, width: int, *, dtype, rngs: nnx.Rngs):
    self.linear = nnx.Linear(
      in_features,
      width,
      kernel_init=nnx.initializers.glorot_uniform(),
      dtype=dtype,
      rngs=rngs,
    )

  def __call__(self, x_bd):
    """(B, in_features) to (B, width)."""
    return jax.nn.relu(self.linear(x_bd))


def recurrent_layer(
  stage: spec.Recurrent, in_features: int, *, dtype, rngs: nnx.Rngs
) -> LSTM | GRU | Bidirectional | Stacked:
  """The layer that `specification.Recurrent` stands for."""

  def cell(features):
    if stage.cell == 'lstm':
      return LSTM(features, stage.units, dtype=dtype, rngs=rngs)
    return GRU(
      features,
      stage.units,
      reset_after=stage.reset_after,
      dtype=dtype,
      rngs=rngs,
    )

  layers = []
  for _ in range(stage.layers):
    if stage.bidirectional:
      layers.append(Bidirectional(cell(in_features), cell(in_features)))
    else:
      layers.append(cell(in_features))
    in_features = layers[-1].out_features
  if len(layers) == 1:
    return layers[0]
  return Stacked(layers, dropout=stage.dropout)


class FusionModel(nnx.Module):
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

  Attributes:
    specification: what it was built from.
    num_classes: K.
    token_grid: (rows, columns) of the map whose cells are the steps that
      attention weighs, in row-major order; None where attention sees other
      steps, or there is none. Steps of a clip are its frames.

  Args:
    specification: the stages.
    num_classes: K.
    rngs: the stream `params` draws the parameters; nothing of it is kept.

  Raises:
    ValueError: where a stage does not fit what the one before it gives.
  """

  def __init__(
    self,
    specification: spec.Specification,
    *,
    num_classes: int,
    rngs: nnx.Rngs,
  ):
    if num_classes < 2:
      raise ValueError(f'num_classes must be at least 2, got {num_classes}')
    if specification.dtype not in spec.DTYPES:
      raise ValueError(
        f'dtype must be one of {spec.DTYPES}, got {specification.dtype!r}'
      )
    self.specification = specification
    self.num_classes = num_classes
    self.dtype = jnp.dtype(specification.dtype)
    self.token_grid: tuple[int, int] | None = None
    self._grid: tuple[int, int] | None = None
    self._names: dict[str, int] = {}

    shape: tuple[int, ...] = specification.input_shape
    self.backbone, self.backbone_names, shape = self._build(
      specification.backbone, shape, rngs
    )
    self.map_shape = shape
    self.body, self.body_names, shape = self._build(
      specification.body, shape, rngs
    )
    self.head, self.head_names, shape = self._build(
      specification.head, shape, rngs
    )
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
    del self._grid, self._names

  def _build(self, stages, shape, rngs):
    """Modules by name, the names in order, and the shape that comes out."""
    modules, names = {}, []
    for stage in stages:
      kind, module, shape = self._build_stage(stage, shape, rngs)
      self._names[kind] = number = self._names.get(kind, 0) + 1
      names.append(f'{kind}{number}')
      if module is not None:
        modules[names[-1]] = module
    return nnx.Dict(modules), tuple(names), shape

  def _build_stage(self, stage, shape, rngs):
    """Kind, module (None where there is no state) and output shape."""
    dtype = self.dtype
    match stage:
      case spec.Convolution():
        _expect(stage, shape, 3)
        module = ConvolutionLayer(stage, shape[2], dtype=dtype, rngs=rngs)
        size = tuple(
          math.ceil(n / stage.strides)
          if stage.padding == 'SAME'
          else (n - stage.kernel_size) // stage.strides + 1
          for n in shape[:2]
        )
        _expect_room(stage, shape, size)
        return 'conv', module, (*size, stage.filters)
      case spec.MaxPool():
        _expect(stage, shape, 3)
        size = tuple(n // stage.window for n in shape[:2])
        _expect_room(stage, shape, size)
        return 'pool', MaxPoolLayer(stage.window), (*size, shape[2])
      case spec.Residual():
        _expect(stage, shape, 3)
        module = ResidualBlock(
          shape[2],
          stage.filters,
          kernel_size=stage.kernel_size,
          strides=stage.strides,
          dtype=dtype,
          rngs=rngs,
        )
        size = tuple(math.ceil(n / stage.strides) for n in shape[:2])
        return 'residual', module, (*size, stage.filters)
      case spec.Drop():
        return 'dropout', Dropout(stage.rate), shape
      case spec.Reshape():
        if math.prod(stage.shape) != math.prod(shape):
          raise ValueError(f'{stage} does not hold what it gets, {shape}')
        self._grid = None
        return 'reshape', None, stage.shape
      case spec.Flatten():
        self._grid = None
        return 'flatten', None, (math.prod(shape),)
      case spec.GlobalAveragePool():
        _expect(stage, shape, 3)
        return 'gap', None, shape[2:]
      case spec.Rows():
        _expect(stage, shape, 3)
        self._grid = (shape[0], 1)
        return 'rows', None, (shape[0], shape[1] * shape[2])
      case spec.Grid():
        _expect(stage, shape, 3)
        self._grid = shape[:2]
        return 'grid', None, (shape[0] * shape[1], shape[2])
      case spec.Recurrent():
        _expect(stage, shape, 2)
        _expect_among(stage, 'cell', stage.cell, spec.CELLS)
        _expect_among(stage, 'returns', stage.returns, spec.RETURNS)
        module = recurrent_layer(stage, shape[1], dtype=dtype, rngs=rngs)
        out = (module.out_features,)
        if stage.returns == 'sequence':
          out = (shape[0], *out)
        return 'recurrent', module, out
      case spec.Attention():
        _expect(stage, shape, 2)
        self.token_grid = self._grid
        module = AdditiveAttention(
          shape[1], stage.units, dtype=dtype, rngs=rngs
        )
        return 'attention', module, shape[1:]
      case spec.Mean():
        _expect(stage, shape, 2)
        return 'mean', None, shape[1:]
      case spec.Dense():
        _expect(stage, shape, 1)
        module = DenseLayer(shape[0], stage.width, dtype=dtype, rngs=rngs)
        return 'dense', module, (stage.width,)
    raise ValueError(f'no stage of a model: {stage!r}')

  def __call__(
    self,
    images: jax.Array,
    frame_mask: jax.Array | None = None,
    *,
    train: bool = False,
    key: jax.Array | None = None,
    dropout: jax.Array | float | None = None,
    weight: jax.Array | None = None,
    return_features: bool = False,
  ) -> Any:
    """Classifies images or clips.

    Args:
      images: float (B, H, W, C), or clips (B, T, H, W, C); standardised.
      frame_mask: bool (B, T), True for frames that there are; None for all.
      train: whether BatchNorm normalises by this batch's statistics, and
        moves its running ones.
      key: PRNG key of dropout; None switches it off.
      dropout: scalar rate in the place of every dropout's own; may be traced.
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
    batch = images.shape[0]
    is_clip = images.ndim == 5
    mask = None if weight is None else weight > 0
    if is_clip:
      frames = images.shape[1]
      images = images.reshape(-1, *images.shape[2:])
      mask = _frames_that_count(mask, frame_mask, batch, frames)
    keys = _keys(key)
    options = {'train': train, 'mask': mask, 'keys': keys, 'rate': dropout}
    features: dict[str, jax.Array] = {}

    x = images.astype(self.dtype)
    x = self._run('backbone', x, None, features, **options)
    if is_clip:
      # A frame is a step: its map's mean.
      x = x.mean((1, 2)).reshape(batch, frames, -1)
      features = {name: _per_clip(f, batch) for name, f in features.items()}
    else:
      features['map'] = x
      frame_mask = None
    x = self._run(
      'body', x, frame_mask, features, skip_spatial=is_clip, **options
    )
    features['embedding'] = x
    x = self._run('head', x, None, features, **options)
    logits = self.logits(x.astype(jnp.float32))
    return (logits, features) if return_features else logits

  def _run(
    self, part, x, frame_mask, features, *, train, mask, keys, rate,
    skip_spatial=False,
  ):  # fmt: skip
    """Runs the stages of `part`, adding their outputs to `features`."""
    modules = getattr(self, part)
    stages = getattr(self.specification, part)
    names = getattr(self, f'{part}_names')
    for name, stage in zip(names, stages, strict=True):
      if isinstance(stage, SEQUENCE_STAGES):
        skip_spatial = False
        features.setdefault('tokens', x)
        _expect_features(stage, modules.get(name), x)
      elif skip_spatial:
        continue
      module = modules.get(name)
      match stage:
        case spec.Convolution() | spec.Residual():
          x = module(x, train=train, mask=mask)
        case spec.Drop():
          x = module(x, key=next(keys), rate=rate)
        case spec.Reshape():
          x = x.reshape(-1, *stage.shape)
        case spec.Flatten():
          x = x.reshape(x.shape[0], -1)
        case spec.GlobalAveragePool():
          x = x.mean((1, 2))
        case spec.Rows():
          x = x.reshape(*x.shape[:2], -1)
        case spec.Grid():
          x = x.reshape(x.shape[0], -1, x.shape[-1])
        case spec.Recurrent():
          x, frame_mask = _run_recurrent(
            stage, module, x, frame_mask, next(keys), rate
          )
        case spec.Attention():
          x, features['attention'] = module(x, frame_mask)
        case spec.Mean():
          x = _masked_mean(x, frame_mask)
        case _:
          x = module(x)
      features[name] = x
    return x

  def _check(self, images, frame_mask, weight):
    h, w, c = self.specification.input_shape
    takes = f'the model takes float images (B, {h}, {w}, {c})'
    if any(isinstance(s, SEQUENCE_STAGES) for s in self.specification.body):
      takes += f' or clips (B, T, {h}, {w}, {c})'
      ranks = (4, 5)
    else:
      ranks = (4,)
    if images.ndim not in ranks or images.shape[-3:] != (h, w, c):
      raise ValueError(f'{takes}; got shape {images.shape}')
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise ValueError(
        f'{takes}, standardised; got {images.dtype}: see '
        'fer_jax.data.standardize'
      )
    if frame_mask is not None and (
      images.ndim != 5 or frame_mask.shape != images.shape[:2]
    ):
      raise ValueError(
        f'frame_mask is (B, T) for clips (B, T, {h}, {w}, {c}); got '
        f'{frame_mask.shape} with images of shape {images.shape}'
      )
    if weight is not None and weight.shape != images.shape[:1]:
      raise ValueError(
        f'weight must be ({images.shape[0]},), one for each image or clip; '
        f'got {weight.shape}'
      )


def _run_recurrent(stage, module, x, frame_mask, key, rate):
  options = {}
  if isinstance(module, Stacked):
    # A rate for all dropouts is no reason to start one that is off.
    options = {'key': key if stage.dropout else None, 'rate': rate}
  y, carry = module(x, frame_mask, **options)
  if stage.returns == 'sequence':
    return y, frame_mask
  # What comes after the last hidden state has steps of another kind, if any.
  return module.final_hidden(carry).astype(y.dtype), None


def _keys(key: jax.Array | None) -> Iterator[jax.Array | None]:
  """A key for each stage that asks for one."""
  n = 0
  while True:
    yield None if key is None else jax.random.fold_in(key, n)
    n += 1


def _frames_that_count(mask_b, frame_mask, batch, frames):
  """Which of the B T frames enter BatchNorm's statistics; None for all."""
  if mask_b is None and frame_mask is None:
    return None
  mask_bt = jnp.ones((batch, frames), bool)
  if mask_b is not None:
    mask_bt &= mask_b[:, None]
  if frame_mask is not None:
    mask_bt &= frame_mask > 0
  return mask_bt.reshape(-1)


def _per_clip(x, batch):
  """(B T, ...) to (B, T, ...)."""
  return x.reshape(batch, -1, *x.shape[1:])


def _masked_mean(x_btd, mask_bt):
  if mask_bt is None:
    return x_btd.mean(1)
  count_b1 = jnp.maximum(mask_bt.sum(1, keepdims=True), 1)
  total_bd = jnp.where(mask_bt[..., None] > 0, x_btd, 0).sum(1)
  return total_bd / count_b1.astype(x_btd.dtype)


def _expect(stage, shape, rank):
  wanted = {1: 'a vector (D,)', 2: 'a sequence (T, D)', 3: 'a map (h, w, D)'}
  if len(shape) != rank:
    raise ValueError(f'{stage} takes {wanted[rank]}, got {shape}')


def _expect_room(stage, shape, size):
  if min(size) < 1:
    raise ValueError(f'{stage} leaves nothing of a map {shape}')


def _expect_among(stage, field, value, allowed):
  if value not in allowed:
    raise ValueError(f'{stage}: {field} must be one of {allowed}')


def _expect_features(stage, module, x):
  """A clip's steps can have another width than those of an image."""
  wanted = x.shape[-1]
  if isinstance(stage, spec.Recurrent):
    wanted = module.in_features
  elif isinstance(stage, spec.Attention):
    wanted = module.features
  if wanted != x.shape[-1]:
    raise ValueError(
      f'{stage} was built for steps of {wanted} features, a frame of a clip '
      f'gives {x.shape[-1]}: for clips build the model with a step that is '
      'as wide as the map, such as grid tokens'
    )
