"""The training step and the block of steps that is one dispatch.

The step is a pure function of raw arrays. A block runs steps
`start .. stop` of an epoch inside one `lax.while_loop`: the number of steps
is traced, so one compilation serves every block length and the same step gives
the same bits whatever block it falls in, which is what makes a resumed run
equal to one that was never interrupted.

On several devices each takes the same steps on its part of every batch, and
what is of the whole batch is summed over them: see `sharding`.

Legend: B batch, K classes.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh

from fer_jax import metrics
from fer_jax.data import augment, randomness, resident, standardize
from fer_jax.training import checkpoint, sharding
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

Sums = dict[str, jax.Array]
"""Weighted sums 'loss', 'correct' and 'weight', scalars."""


@dataclasses.dataclass(frozen=True)
class StepSettings:
  """What of the step is fixed at compilation.

  Attributes:
    batch_size: B, of all devices together.
    loss: a name of `metrics.LOSSES`.
    augmentation: static settings of augmentation, None for none.
    optim: static settings of the optimiser.
    ema_decay: decay of the moving averages, 0 for none.
    pixels: what images the model takes, a name of `standardize.SCALES`.
    freezing: which parameters do not train.
    axis: of the mesh, along which batches are divided; None where they are not.
  """

  batch_size: int
  loss: str = 'cross_entropy'
  augmentation: augment.Augmentation | None = None
  optim: optim_lib.OptimSettings = dataclasses.field(
    default_factory=optim_lib.OptimSettings
  )
  ema_decay: float = 0.0
  pixels: str = 'standardised'
  freezing: freezing_lib.Freezing = freezing_lib.NOTHING_FROZEN
  axis: str | None = None

  def over(self, mesh: Mesh | None) -> 'StepSettings':
    """These settings where batches are divided over a mesh."""
    if sharding.parts(mesh) == 1:
      return self
    return dataclasses.replace(self, axis=sharding.DATA)


class Plan(NamedTuple):
  """What a run is given once and no step changes; traced.

  Attributes:
    key: the run's key.
    milestones: steps at which something changes.
    class_weights: (K,) factors on the examples' losses, None for ones.
  """

  key: jax.Array
  milestones: optim_lib.Milestones = optim_lib.Milestones()
  class_weights: jax.Array | None = None


def prepare(
  batch: dict[str, jax.Array],
  augmentation: augment.Augmentation | None = None,
  *,
  key: jax.Array | None = None,
  step: jax.Array | int = 0,
  strength: jax.Array | float = 1.0,
  pixels: str = 'standardised',
  axis: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Turns a batch's uint8 images into what the model takes.

  Args:
    batch: see DESIGN of a batch: image uint8, target, weight, of clips
      frame_mask.
    augmentation: static settings, None for none.
    key: the run's key; needed where there is augmentation.
    step: int32 scalar, which draws this step's augmentation.
    strength: float32 scalar, scales the augmentation's amplitudes.
    pixels: a name of `standardize.SCALES`.
    axis: of the mesh, along which the batch is divided.

  Returns:
    (images, scaled as `pixels` says, of JAX's default float: float32 unless
    JAX is set to 64 bits; targets float32 (B, K)).
  """
  images = standardize.from_grey_levels(batch['image'])
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
      axis,
      batch.get('frame_mask'),
    )
  return standardize.SCALES[pixels](images), targets


def _kernel_penalty(params: Arrays) -> jax.Array | float:
  """Sum of squares of all kernels: Keras' `l2(1.0)`, P1's L2."""
  squares = jax.tree.map(
    lambda p, decayed: jnp.sum(jnp.square(p)) if decayed else 0.0,
    params,
    decay_mask(params),
  )
  return sum(jax.tree.leaves(squares))


def train_step(
  state: TrainState,
  batch: dict[str, jax.Array],
  plan: Plan,
  *,
  graphdef: nnx.GraphDef,
  settings: StepSettings,
) -> tuple[TrainState, Sums]:
  """One optimisation step.

  Parameters that `settings.freezing` holds are not differentiated: they, their
  share of the optimiser's state and averages, and the running statistics of
  BatchNorms that are frozen whole leave the step as they came.

  Args:
    state: before the step.
    batch: image uint8 (B, H, W, C) or (B, T, H, W, C) with frame_mask;
      target float32 (B, K); weight float32 (B,), 0 on padding. This device's
      part of it where `settings.axis` is set.
    plan: of the run; draws are functions of its key and of `state.step`.
    graphdef: of the model.
    settings: static.

  Returns:
    (state after the step, weighted sums {'loss', 'correct', 'weight'}). A loss
    that is not finite clears `progress.active`.
  """
  freezing = settings.freezing
  trained, frozen = freezing_lib.partition(freezing, state.params)
  gradients, sums, model_state = _gradients(
    trained, frozen, state, batch, plan, graphdef, settings
  )
  updates, opt_state = optim_lib.update(
    settings.optim,
    gradients,
    state.opt_state,
    freezing_lib.groups(freezing, trained),
    plan.milestones.thaws,
  )
  rate = learning_rate(state, plan, settings, state.step)
  trained = optim_lib.apply_direction(
    trained, updates, decay_mask(trained), rate, state.hparams['weight_decay']
  )
  params = freezing_lib.combine(trained, frozen)
  new_state = TrainState(
    step=state.step + 1,
    params=params,
    model_state=model_state,
    opt_state=opt_state,
    ema=_averaged(state, params, model_state, settings),
    hparams=state.hparams,
    progress=state.progress._replace(
      active=state.progress.active & jnp.isfinite(sums['loss'])
    ),
  )
  return new_state, sums


def _gradients(
  trained: Arrays,
  frozen: Arrays,
  state: TrainState,
  batch: dict[str, jax.Array],
  plan: Plan,
  graphdef: nnx.GraphDef,
  settings: StepSettings,
) -> tuple[Arrays, Sums, Arrays]:
  """Of the penalised loss of a batch by the parameters that train.

  Args:
    trained, frozen: of `freezing.partition`, the parameters of the state.
    state, batch, plan, graphdef, settings: as of `train_step`.

  Returns:
    (gradients, weighted sums, running statistics after the batch), the first
    two of the whole batch.
  """
  hparams = state.hparams
  images, targets = prepare(
    batch,
    settings.augmentation,
    key=plan.key,
    step=state.step,
    strength=hparams['augment_strength'],
    pixels=settings.pixels,
    axis=settings.axis,
  )
  frozen_modules = freezing_lib.frozen_modules(settings.freezing, state.params)

  def objective(trained):
    model: Any = merge(
      graphdef,
      freezing_lib.combine(trained, frozen),
      state.model_state,
      frozen=frozen_modules,
      axis=settings.axis,
    )
    logits = model(
      images,
      batch.get('frame_mask'),
      train=True,
      key=randomness.stream_key(plan.key, randomness.DROPOUT, state.step),
      dropout=hparams['dropout'],
      weight=batch['weight'],
    )
    sums = metrics.sums(
      logits,
      targets,
      batch['weight'],
      loss=settings.loss,
      label_smoothing=hparams['label_smoothing'],
      class_weights=plan.class_weights,
    )
    whole = sharding.total(sums['weight'], settings.axis)
    loss = metrics.normalise({**sums, 'weight': whole})['loss']
    # Each device has its share of the penalty as of the loss.
    l2 = hparams['l2'] / sharding.axis_size(settings.axis)
    penalised = loss + l2 * _kernel_penalty(trained)
    return penalised, (sums, model_state_of(model))

  gradients, (sums, model_state) = jax.grad(objective, has_aux=True)(trained)
  gradients, sums = sharding.total((gradients, sums), settings.axis)
  return gradients, sums, model_state


def learning_rate(
  state: TrainState, plan: Plan, settings: StepSettings, step: jax.Array
) -> jax.Array:
  """The rate of a step that is taken with this state's progress."""
  return (
    state.hparams['learning_rate']
    * optim_lib.schedule(settings.optim, plan.milestones)(step)
    * state.progress.lr_factor
  )


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


def zero_sums() -> Sums:
  """The sums of no step at all."""
  return {name: jnp.zeros(()) for name in ('loss', 'correct', 'weight')}


def sums_of(partial: checkpoint.Partial | None) -> Sums:
  """The sums of the part of an epoch that a checkpoint carries."""
  sums = zero_sums()
  if partial is None:
    return sums
  return {
    name: jnp.asarray(partial.sums[name], zero.dtype)
    for name, zero in sums.items()
  }


def run_block(
  state: TrainState,
  sums: Sums,
  images: dict[str, jax.Array],
  order: jax.Array,
  count: jax.Array | int,
  start: jax.Array | int,
  stop: jax.Array | int,
  plan: Plan,
  *,
  graphdef: nnx.GraphDef,
  settings: StepSettings,
) -> tuple[TrainState, Sums]:
  """Takes steps `start .. stop - 1` of an epoch over a resident set.

  Args:
    state: before them; where it is not active no step is taken.
    sums: of the epoch so far. They are gone on with step by step, so that they
      do not depend on how steps fall into blocks either.
    images: the resident set.
    order: int32 (steps * B,), its rows in the epoch's order, padding last.
    count: how many of them are real.
    start: scalar, steps of the epoch taken before.
    stop: scalar, those taken after.
    plan: of the run.
    graphdef: of the model.
    settings: static.

  Returns:
    (state, sums). The block ends early after a step whose loss is not finite:
    `state.step` then tells which one it was.
  """

  def going(carry):
    state, _, i = carry
    return (i < stop) & state.progress.active

  def body(carry):
    state, sums, i = carry
    batch = batch_at(images, order, count, i, settings)
    state, sums = _added_step(
      state, sums, batch, plan, graphdef=graphdef, settings=settings
    )
    return state, sums, i + 1

  state, sums, _ = lax.while_loop(
    going, body, (state, sums, jnp.asarray(start, jnp.int32))
  )
  return state, sums


def _added_step(state, sums, batch, plan, **options) -> tuple[TrainState, Sums]:
  """A step, and the sums with its own added to them."""
  state, own = train_step(state, batch, plan, **options)
  return state, jax.tree.map(jnp.add, sums, own)


def batch_at(
  images: dict[str, jax.Array],
  rows: jax.Array,
  count: jax.Array | int,
  i: jax.Array | int,
  settings: StepSettings,
) -> dict[str, jax.Array]:
  """Batch i of a list of rows, of which `count` are real, or this device's part
  of it; arguments as of `run_block`."""
  size = settings.batch_size
  first = i * size
  if settings.axis is not None:
    size //= lax.axis_size(settings.axis)
    first += lax.axis_index(settings.axis) * size
  here = lax.dynamic_slice_in_dim(rows, first, size)
  weight = (first + jnp.arange(size) < count).astype(jnp.float32)
  return resident.gather(images, here, weight)


Block = Callable[..., tuple[TrainState, Sums]]


def make_block(
  graphdef: nnx.GraphDef, settings: StepSettings, mesh: Mesh | None = None
) -> Block:
  """Compiles `run_block(state, sums, images, order, count, start, stop, plan)`;
  the state is donated.

  Args:
    graphdef: of the model.
    settings: of one device.
    mesh: over which batches are divided, everything else being on every device
      of it; None for one device.
  """
  block = functools.partial(
    run_block, graphdef=graphdef, settings=settings.over(mesh)
  )
  return jax.jit(sharding.over_devices(block, mesh), donate_argnums=0)


StreamStep = Callable[..., tuple[TrainState, Sums, jax.Array]]


def make_stream_step(
  graphdef: nnx.GraphDef, settings: StepSettings, mesh: Mesh | None = None
) -> StreamStep:
  """Compiles one step on a batch that comes from the host.

  Args:
    graphdef: of the model.
    settings: of one device.
    mesh: over which batches are divided; None for one device.

  Returns:
    `step(state, sums, batch, plan) -> (state, sums, active)`, the sums of the
    epoch so far. The state is donated, and both are left as they are once a
    loss was not finite, as in a block; `active` says whether that was so, also
    when the state that says it is given to the next step.
  """
  take = functools.partial(
    _added_step, graphdef=graphdef, settings=settings.over(mesh)
  )

  def step(state, sums, batch, plan):
    state, sums = lax.cond(
      state.progress.active,
      lambda state, sums: take(state, sums, batch, plan),
      lambda *unchanged: unchanged,
      state,
      sums,
    )
    return state, sums, state.progress.active

  everywhere, divided = sharding.EVERYWHERE, sharding.DIVIDED
  return jax.jit(
    sharding.over_devices(
      step, mesh, (everywhere, everywhere, divided, everywhere)
    ),
    donate_argnums=0,
  )


def run_validation(
  state: TrainState,
  images: dict[str, jax.Array],
  rows: jax.Array,
  count: jax.Array | int,
  *,
  graphdef: nnx.GraphDef,
  settings: StepSettings,
) -> Sums:
  """The sums of loss and accuracy over rows of a resident set.

  Args:
    state: of the run.
    images: the resident set.
    rows: int32 (steps * B,), padding last.
    count: how many of them are real.
    graphdef: of the model.
    settings: static.
  """
  params, model_state = evaluated_arrays(state)

  def body(i, totals):
    batch = batch_at(images, rows, count, i, settings)
    sums = _validation_sums(graphdef, settings, params, model_state, batch)
    return jax.tree.map(jnp.add, totals, sums)

  batches = (count + settings.batch_size - 1) // settings.batch_size
  totals = lax.fori_loop(0, batches, body, zero_sums())
  return sharding.total(totals, settings.axis)


def make_validation(
  graphdef: nnx.GraphDef, settings: StepSettings, mesh: Mesh | None = None
) -> Callable[..., Sums]:
  """Compiles `run_validation(state, images, rows, count)`; arguments as of
  `make_block`."""
  validation = functools.partial(
    run_validation, graphdef=graphdef, settings=settings.over(mesh)
  )
  return jax.jit(sharding.over_devices(validation, mesh))


def make_stream_validation(
  graphdef: nnx.GraphDef, settings: StepSettings, mesh: Mesh | None = None
) -> Callable[..., Sums]:
  """Compiles the sums of batches that come from the host; arguments as of
  `make_stream_step`.

  Returns:
    `validate(state, sums, batch) -> sums`, with the batch's own added to them.
  """

  axis = settings.over(mesh).axis

  def validate(state, sums, batch):
    params, model_state = evaluated_arrays(state)
    own = _validation_sums(graphdef, settings, params, model_state, batch)
    return jax.tree.map(jnp.add, sums, sharding.total(own, axis))

  everywhere, divided = sharding.EVERYWHERE, sharding.DIVIDED
  return jax.jit(
    sharding.over_devices(validate, mesh, (everywhere, everywhere, divided))
  )


def _validation_sums(graphdef, settings, params, model_state, batch):
  """Sums of the plain loss and of correct predictions, in evaluation mode."""
  model: Any = merge(graphdef, params, model_state)
  images, targets = prepare(batch, pixels=settings.pixels)
  logits = model(images, batch.get('frame_mask'), train=False)
  return metrics.sums(logits, targets, batch['weight'], loss=settings.loss)


def means(sums: Sums) -> dict[str, float]:
  """{'loss', 'accuracy'} of weighted sums; NaN where nothing was summed."""
  weight = float(sums['weight'])
  if weight == 0:
    return {'loss': float('nan'), 'accuracy': float('nan')}
  return {
    'loss': float(sums['loss']) / weight,
    'accuracy': float(sums['correct']) / weight,
  }
