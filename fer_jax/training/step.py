"""The training step and the block of steps that is one dispatch.

The step is a pure function of raw arrays. A block runs steps
`start .. stop` of an epoch inside one `lax.while_loop`: the number of steps
is traced, so one compilation serves every block length and the same step gives
the same bits whatever block it falls in, which is what makes a resumed run
equal to one that was never interrupted.

Legend: B batch, N images in the resident set, K classes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fer_jax import metrics
from fer_jax.data import augment, randomness, resident, standardize
from fer_jax.training import freezing as freezing_lib
from fer_jax.training import optim as optim_lib
from fer_jax.training.state import (
  Arrays,
  TrainState,
  decay_mask,
  evaluated_arrays,
  merge,
  model_state_of,
)


@dataclasses.dataclass(frozen=True)
class StepSettings:
  """What of the step is fixed at compilation.

  Attributes:
    batch_size: B.
    loss: a name of `metrics.LOSSES`.
    augmentation: static settings of augmentation, None for none.
    optim: static settings of the optimiser.
    ema_decay: decay of the moving averages, 0 for none.
    class_weights: K factors on the examples' losses, None for ones.
    pixels: what images the model takes, a name of `standardize.SCALES`.
    freezing: which parameters do not train.
  """

  batch_size: int
  loss: str = 'cross_entropy'
  augmentation: augment.Augmentation | None = None
  optim: optim_lib.OptimSettings = dataclasses.field(
    default_factory=optim_lib.OptimSettings
  )
  ema_decay: float = 0.0
  class_weights: tuple[float, ...] | None = None
  pixels: str = 'standardised'
  freezing: freezing_lib.Freezing = freezing_lib.NOTHING_FROZEN


def prepare(
  batch: dict[str, jax.Array],
  augmentation: augment.Augmentation | None = None,
  *,
  key: jax.Array | None = None,
  step: jax.Array | int = 0,
  strength: jax.Array | float = 1.0,
  pixels: str = 'standardised',
) -> tuple[jax.Array, jax.Array]:
  """Turns a batch's uint8 images into what the model takes.

  Args:
    batch: see DESIGN of a batch: image uint8, target, weight.
    augmentation: static settings, None for none.
    key: the run's key; needed where there is augmentation.
    step: int32 scalar, which draws this step's augmentation.
    strength: float32 scalar, scales the augmentation's amplitudes.
    pixels: a name of `standardize.SCALES`.

  Returns:
    (images float32, scaled as `pixels` says; targets float32 (B, K)).
  """
  images = batch['image'].astype(jnp.float32) / 255.0
  targets = batch['target']
  if augmentation is not None:
    if key is None:
      raise ValueError('augmentation draws from a key, and key is None')
    images, targets = augment.augment(
      randomness.stream_key(key, randomness.AUGMENT, step),
      images,
      targets,
      batch['weight'],
      augmentation,
      strength,
    )
  return standardize.SCALES[pixels](images), targets


def _kernel_penalty(params: Arrays) -> jax.Array:
  """Sum of squares of all kernels: Keras' `l2(1.0)`, P1's L2."""
  squares = jax.tree.map(
    lambda p, decayed: jnp.sum(jnp.square(p)) if decayed else 0.0,
    params,
    decay_mask(params),
  )
  return jnp.asarray(sum(jax.tree.leaves(squares)), jnp.float32)


def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  key: jax.Array,
  *,
  graphdef: nnx.GraphDef,
  settings: StepSettings,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One optimisation step.

  Parameters that `settings.freezing` holds are not differentiated: they, their
  share of the optimiser's state and averages, and the running statistics of
  BatchNorms that are frozen whole leave the step as they came.

  Args:
    state: before the step.
    batch: image uint8 (B, H, W, C) or (B, T, H, W, C) with frame_mask;
      target float32 (B, K); weight float32 (B,), 0 on padding.
    key: the run's key; draws are functions of it and of `state.step`.
    graphdef: of the model.
    settings: static.

  Returns:
    (state after the step, weighted sums {'loss', 'correct', 'weight'}). A loss
    that is not finite clears `progress.active`.
  """
  hparams = state.hparams
  images, targets = prepare(
    batch,
    settings.augmentation,
    key=key,
    step=state.step,
    strength=hparams['augment_strength'],
    pixels=settings.pixels,
  )
  class_weights = settings.class_weights
  freezing = settings.freezing
  trained, frozen = freezing_lib.partition(freezing, state.params)
  frozen_modules = freezing_lib.frozen_modules(freezing, state.params)

  def objective(trained):
    params = freezing_lib.combine(trained, frozen)
    model: Any = merge(
      graphdef, params, state.model_state, frozen=frozen_modules
    )
    logits = model(
      images,
      batch.get('frame_mask'),
      train=True,
      key=randomness.stream_key(key, randomness.DROPOUT, state.step),
      dropout=hparams['dropout'],
      weight=batch['weight'],
    )
    sums = metrics.sums(
      logits,
      targets,
      batch['weight'],
      loss=settings.loss,
      label_smoothing=hparams['label_smoothing'],
      class_weights=None if class_weights is None else jnp.array(class_weights),
    )
    loss = metrics.normalise(sums)['loss']
    penalised = loss + hparams['l2'] * _kernel_penalty(trained)
    return penalised, (sums, model_state_of(model))

  gradients, (sums, model_state) = jax.grad(objective, has_aux=True)(trained)
  updates, opt_state = optim_lib.update(
    settings.optim,
    gradients,
    state.opt_state,
    freezing_lib.training_since(freezing, trained),
  )
  rate = (
    hparams['learning_rate']
    * optim_lib.schedule(settings.optim)(state.step)
    * state.progress.lr_factor
  )
  trained = optim_lib.apply_direction(
    trained, updates, decay_mask(trained), rate, hparams['weight_decay']
  )
  params = freezing_lib.combine(trained, frozen)
  new_state = TrainState(
    step=state.step + 1,
    params=params,
    model_state=model_state,
    opt_state=opt_state,
    ema=_averaged(state, params, model_state, settings),
    hparams=hparams,
    progress=state.progress._replace(
      active=state.progress.active & jnp.isfinite(sums['loss'])
    ),
  )
  return new_state, sums


def _averaged(
  state: TrainState,
  params: Arrays,
  model_state: Arrays,
  settings: StepSettings,
) -> Arrays | None:
  """Moving averages after a step; young runs average over fewer steps.

  What is frozen has never moved, so its average is itself, not its rounding.
  """
  if state.ema is None:
    return None
  step = state.step.astype(jnp.float32)
  keep = jnp.minimum(settings.ema_decay, (1.0 + step) / (10.0 + step))
  new = {'params': params, 'model_state': model_state}
  held = freezing_lib.held(settings.freezing, params, model_state)
  return jax.tree.map(
    lambda old, now, held: (
      old if held else (keep * old + (1.0 - keep) * now).astype(old.dtype)
    ),
    state.ema,
    new,
    held,
  )


def zero_sums() -> dict[str, jax.Array]:
  """The sums of no step at all."""
  return {name: jnp.zeros((), jnp.float32) for name in _SUMS}


_SUMS = ('loss', 'correct', 'weight')

Block = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def make_block(graphdef: nnx.GraphDef, settings: StepSettings) -> Block:
  """Compiles a block of steps over a resident set.

  Returns:
    `block(state, sums, images, order, count, start, stop, key)`, which takes
    steps `start .. stop - 1` of an epoch and returns (state, sums). The sums
    go on from those given, step by step, so that they do not depend on how
    steps fall into blocks either. `images` is the resident set; `order` int32
    (steps * B,) holds its rows in the epoch's order, padding last; `count` is
    how many of them are real. The state is donated. The block ends early after
    a step whose loss is not finite:
    `state.step` then tells which one it was.
  """
  size = settings.batch_size

  @functools.partial(jax.jit, donate_argnums=0)
  def block(state, sums, images, order, count, start, stop, key):
    def going(carry):
      state, _, i = carry
      return (i < stop) & state.progress.active

    def body(carry):
      state, totals, i = carry
      rows = lax.dynamic_slice_in_dim(order, i * size, size)
      weight = (i * size + jnp.arange(size) < count).astype(jnp.float32)
      batch = resident.gather(images, rows, weight)
      state, sums = train_step(
        state, batch, key, graphdef=graphdef, settings=settings
      )
      return state, jax.tree.map(jnp.add, totals, sums), i + 1

    state, totals, _ = lax.while_loop(
      going, body, (state, sums, jnp.asarray(start, jnp.int32))
    )
    return state, totals

  return block


def make_stream_step(graphdef: nnx.GraphDef, settings: StepSettings) -> Block:
  """Compiles one step on a batch that comes from the host.

  Returns:
    `step(state, batch, key) -> (state, sums)`; the state is donated, and left
    as it is once a loss was not finite, as in a block.
  """

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, batch, key):
    return lax.cond(
      state.progress.active,
      lambda s: train_step(s, batch, key, graphdef=graphdef, settings=settings),
      lambda s: (s, zero_sums()),
      state,
    )

  return step


def make_validation(
  graphdef: nnx.GraphDef, settings: StepSettings
) -> Callable[..., dict[str, jax.Array]]:
  """Compiles the sums of loss and accuracy over rows of a resident set.

  Returns:
    `validate(state, images, rows, count)` with `rows` int32 (steps * B,),
    padding last; the sums are those of `metrics.sums`.
  """
  size = settings.batch_size

  @jax.jit
  def validate(state, images, rows, count):
    params, model_state = evaluated_arrays(state)

    def body(i, totals):
      batch_rows = lax.dynamic_slice_in_dim(rows, i * size, size)
      weight = (i * size + jnp.arange(size) < count).astype(jnp.float32)
      batch = resident.gather(images, batch_rows, weight)
      sums = _validation_sums(graphdef, settings, params, model_state, batch)
      return jax.tree.map(jnp.add, totals, sums)

    return lax.fori_loop(0, rows.shape[0] // size, body, zero_sums())

  return validate


def make_stream_validation(
  graphdef: nnx.GraphDef, settings: StepSettings
) -> Callable[..., dict[str, jax.Array]]:
  """Compiles the sums of one batch that comes from the host.

  Returns:
    `validate(state, batch) -> sums`.
  """

  @jax.jit
  def validate(state, batch):
    params, model_state = evaluated_arrays(state)
    return _validation_sums(graphdef, settings, params, model_state, batch)

  return validate


def _validation_sums(graphdef, settings, params, model_state, batch):
  """Sums of the plain loss and of correct predictions, in evaluation mode."""
  model: Any = merge(graphdef, params, model_state)
  images, targets = prepare(batch, pixels=settings.pixels)
  logits = model(images, batch.get('frame_mask'), train=False)
  return metrics.sums(logits, targets, batch['weight'], loss=settings.loss)


def means(sums: dict[str, jax.Array]) -> dict[str, float]:
  """{'loss', 'accuracy'} of weighted sums; NaN where nothing was summed."""
  weight = float(sums['weight'])
  if weight == 0:
    return {'loss': float('nan'), 'accuracy': float('nan')}
  return {
    'loss': float(sums['loss']) / weight,
    'accuracy': float(sums['correct']) / weight,
  }
