"""Selection on validation: best value, early stopping, plateaus.

Pure functions of scalars, so that a population can map them over members.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fer_jax.training.state import Progress


@dataclasses.dataclass(frozen=True)
class SelectionSettings:
  """How validation steers a run.

  Attributes:
    metric: one of `config.SELECTION_METRICS`, of the validation split; 'last'
      takes every epoch for better than the one before.
    patience: validations without improvement before the run stops; 0 never.
    plateau_patience: validations without improvement before the learning
      rate is reduced; 0 never.
    plateau_factor: what it is then multiplied by.
  """

  metric: str = 'accuracy'
  patience: int = 0
  plateau_patience: int = 0
  plateau_factor: float = 0.5


def score(settings: SelectionSettings, metrics: dict) -> jax.Array:
  """The selected metric with its sign turned so that higher is better.

  Of 'last' it is NaN, for there is no such value.
  """
  if settings.metric == 'last':
    return jnp.asarray(jnp.nan, jnp.float32)
  value = jnp.asarray(metrics[settings.metric], jnp.float32)
  return -value if settings.metric == 'loss' else value


def update(
  progress: Progress,
  settings: SelectionSettings,
  metrics: dict,
  step: jax.Array,
) -> Progress:
  """Progress after one validation, or after an epoch without one.

  Args:
    progress: before it.
    settings: see `SelectionSettings`.
    metrics: 'loss' and 'accuracy' of the validation split; may be empty where
      `settings.metric` is 'last'.
    step: int32, the step that was validated.
  """
  value = score(settings, metrics)
  improved = (
    jnp.isnan(value)
    if settings.metric == 'last'
    else (value > progress.best_metric)
  )
  waited = jnp.where(improved, 0, progress.waited + 1)
  plateau_waited = jnp.where(improved, 0, progress.plateau_waited + 1)
  lr_factor = progress.lr_factor
  if settings.plateau_patience:
    reduce = plateau_waited >= settings.plateau_patience
    lr_factor = jnp.where(
      reduce, lr_factor * settings.plateau_factor, lr_factor
    )
    plateau_waited = jnp.where(reduce, 0, plateau_waited)
  active = progress.active
  if settings.patience:
    active = active & (waited < settings.patience)
  return Progress(
    active=active,
    best_metric=jnp.where(improved, value, progress.best_metric),
    best_step=jnp.where(improved, step, progress.best_step).astype(jnp.int32),
    waited=waited.astype(jnp.int32),
    plateau_waited=plateau_waited.astype(jnp.int32),
    lr_factor=lr_factor,
  )
