"""The training state: one pytree of raw arrays, and the one place that splits
and merges NNX modules.

Everything else in `training` is a pure function over these arrays. A module is
only ever rebuilt inside a traced function, from its static graph definition and
its arrays, so that crossing the `jax.jit` boundary costs what a nested
dictionary of arrays costs and nothing more.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.nn import BatchNorm, Dropout

Arrays = Any
"""A nested dictionary of raw arrays."""

HPARAMS = (
  'learning_rate',
  'weight_decay',
  'l2',
  'dropout',
  'label_smoothing',
  'augment_strength',
)
"""The scalars that a search varies without changing a shape."""

DECAYED = frozenset({'kernel', 'recurrent_kernel'})
"""Names of the parameters that L2 and weight decay act on."""


class Progress(NamedTuple):
  """What early stopping, plateau schedules and pruning need; all scalars.

  Attributes:
    active: bool, False once the run has stopped by itself.
    best_metric: float32, best value of the selection metric (higher is
      better; a loss enters with its sign turned).
    best_step: int32, the step of that value.
    waited: int32, validations since the best one.
    plateau_waited: int32, validations since the best or the last reduction.
    lr_factor: float32, product of the plateau reductions so far.
  """

  active: jax.Array
  best_metric: jax.Array
  best_step: jax.Array
  waited: jax.Array
  plateau_waited: jax.Array
  lr_factor: jax.Array


class TrainState(NamedTuple):
  """Everything a run needs to go on, and nothing it can recompute.

  Attributes:
    step: int32 scalar, steps taken.
    params: trainable arrays.
    model_state: the model's other arrays (BatchNorm's running statistics).
    opt_state: Optax's state.
    ema: moving averages of `params` and `model_state`, or None.
    hparams: float32 scalars named by `HPARAMS`.
    progress: see `Progress`.
  """

  step: jax.Array
  params: Arrays
  model_state: Arrays
  opt_state: Any
  ema: Arrays | None
  hparams: dict[str, jax.Array]
  progress: Progress


def split(model: nnx.Module) -> tuple[nnx.GraphDef, Arrays, Arrays]:
  """Returns (graph definition, parameters, other state) of a module."""
  graphdef, params, model_state = nnx.split(model, nnx.Param, ...)
  return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(model_state)


def merge(
  graphdef: nnx.GraphDef,
  params: Arrays,
  model_state: Arrays,
  *,
  frozen: frozenset[str] = frozenset(),
  axis: str | None = None,
) -> nnx.Module:
  """Rebuilds a module; its variables are fresh, so it may be mutated in a
  differentiated function.

  Args:
    graphdef: of `split`.
    params: all parameters.
    model_state: the other arrays.
    frozen: paths of the modules whose BatchNorm keeps its running statistics.
    axis: of a mesh, along which the batches that it will see are divided.
  """
  model = nnx.merge(graphdef, params, model_state, copy=True)
  if frozen or axis:
    for path, module in nnx.iter_modules(model):
      if isinstance(module, BatchNorm):
        module.frozen = '.'.join(map(str, path)) in frozen
      if isinstance(module, BatchNorm | Dropout):
        module.axis_name = axis
  return model


def model_state_of(model: nnx.Module) -> Arrays:
  """The module's arrays that are not parameters, after a call changed them."""
  return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def initial_progress() -> Progress:
  """Progress of a run that has not been validated yet."""
  return Progress(
    active=jnp.asarray(True),
    best_metric=jnp.asarray(-jnp.inf, jnp.float32),
    best_step=jnp.zeros((), jnp.int32),
    waited=jnp.zeros((), jnp.int32),
    plateau_waited=jnp.zeros((), jnp.int32),
    lr_factor=jnp.ones((), jnp.float32),
  )


def initial_state(
  params: Arrays,
  model_state: Arrays,
  opt_state: Any,
  hparams: dict[str, float],
  *,
  ema: bool,
) -> TrainState:
  """The state before the first step.

  Args:
    params: trainable arrays.
    model_state: the model's other arrays.
    opt_state: Optax's initial state for `params`.
    hparams: a value for each name of `HPARAMS`.
    ema: whether moving averages are kept.
  """
  # Copies, because the step donates its state and no buffer may be in it twice.
  averages = {'params': params, 'model_state': model_state} if ema else None
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    model_state=model_state,
    opt_state=opt_state,
    ema=jax.tree.map(jnp.copy, averages),
    hparams={name: jnp.asarray(hparams[name], jnp.float32) for name in HPARAMS},
    progress=initial_progress(),
  )


def evaluated_arrays(state: TrainState) -> tuple[Arrays, Arrays]:
  """(params, model_state) that evaluation uses: the averages where kept."""
  if state.ema is None:
    return state.params, state.model_state
  return state.ema['params'], state.ema['model_state']


def decay_mask(params: Arrays) -> Arrays:
  """True for each array that L2 and weight decay act on: kernels alone."""

  def decayed(path, _):
    return getattr(path[-1], 'key', None) in DECAYED

  return jax.tree_util.tree_map_with_path(decayed, params)


def all_finite(params: Arrays) -> jax.Array:
  """Scalar bool: whether no number among the parameters is inf or NaN."""
  return jnp.all(
    jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)])
  )


def parameter_count(params: Arrays) -> int:
  """How many trainable scalars there are."""
  return sum(x.size for x in jax.tree.leaves(params))
