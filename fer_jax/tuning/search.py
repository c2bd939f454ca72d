"""How a study searches and prunes: samplers, distributions, pruners."""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial

from fer_jax.tuning.space import Domain

SEARCHES = ('tpe', 'random', 'grid')
PRUNERS = ('none', 'halving', 'median')

REDUCTION = 3
"""Successive halving keeps one trial of as many at each rung."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a space is searched.

  Attributes:
    search: of `SEARCHES`.
    prune: of `PRUNERS`.
    seed: of what is drawn.
  """

  search: str = 'tpe'
  prune: str = 'none'
  seed: int = 0


def suggest(trial: optuna.Trial, field: str, domain: Domain) -> Any:
  """A trial's value of a field, as the study stores it."""
  if domain.kind == 'choice':
    return trial.suggest_categorical(field, domain.labels)
  low, high = domain.low, domain.high
  assert low is not None
  assert high is not None
  if domain.kind == 'integer':
    return trial.suggest_int(field, int(low), int(high))
  return trial.suggest_float(
    field, float(low), float(high), log=domain.kind == 'log_uniform'
  )


def sampler(
  settings: Settings,
  number: int,
  grid: Sequence[dict[str, Any]],
  fixed: dict[str, Any],
) -> optuna.samplers.BaseSampler:
  """What draws the parameters of one trial.

  Seeded by the trial's number: several workers do not draw the same, and a
  search that is interrupted goes on as it would have gone.

  Args:
    settings: how is searched.
    number: of the trial.
    grid: all combinations, where that is searched.
    fixed: values that are taken instead of drawn.
  """
  if settings.search == 'grid':
    return Grid(grid)
  # NumPy's generators of old, which Optuna draws by, take 32 bits.
  seed = (settings.seed * 1_000_003 + number) % 2**32
  drawing = (
    optuna.samplers.RandomSampler(seed=seed)
    if settings.search == 'random'
    else optuna.samplers.TPESampler(seed=seed)
  )
  if not fixed:
    return drawing
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    return optuna.samplers.PartialFixedSampler(fixed, drawing)


class Grid(optuna.samplers.BaseSampler):
  """Gives trial n the n-th combination.

  Optuna's own shuffles them, which scatters shapes over the search, counts
  conditional combinations several times, and may give one to two workers.
  """

  def __init__(self, grid: Sequence[dict[str, Any]]) -> None:
    self._grid = grid

  def infer_relative_search_space(self, study, trial) -> dict:
    """Nothing is drawn together."""
    return {}

  def sample_relative(self, study, trial, search_space) -> dict:
    """Nothing is drawn together."""
    return {}

  def sample_independent(
    self,
    study: Any,
    trial: FrozenTrial,
    param_name: str,
    param_distribution: BaseDistribution,
  ) -> Any:
    """The combination's value."""
    return self._grid[trial.number][param_name]


def pruner(
  name: str, epochs: int, validate_every: int
) -> optuna.pruners.BasePruner:
  """A name of `PRUNERS` for trials of so many epochs.

  Args:
    name: of the pruner.
    epochs: of a whole trial.
    validate_every: epochs from a report to the next.
  """
  first = max(epochs // REDUCTION**2, validate_every)
  if name == 'halving':
    return Halving(first, REDUCTION)
  if name == 'median':
    # Four that are complete before anything is judged by them.
    return optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=first)
  return optuna.pruners.NopPruner()


class Halving(optuna.pruners.BasePruner):
  """Asynchronous successive halving (Li et al., arXiv 1810.05934, section 3).

  Rungs are at `first`, `first` x eta, ... epochs. A trial that reaches a rung
  goes on if it is among the best 1 / eta of those that have reached it by then.

  Optuna's own compares a trial with those that were judged before it. Members
  of a population reach a rung together, and judged in order of their places
  the first would go on whatever its value; here all have reported before any is
  judged, so the order does not matter.
  """

  def __init__(self, first: int, eta: int) -> None:
    """Makes one.

    Args:
      first: epochs to the first rung.
      eta: one of as many goes on.
    """
    self._first = first
    self._eta = eta

  def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether the trial ends at the rung that its last report reached."""
    reached = self._rung(trial)
    if reached is None or max(trial.intermediate_values) > reached[0]:
      return False
    epoch, value = reached
    values = []
    for other in study.get_trials(deepcopy=False):
      later = [e for e in other.intermediate_values if e >= epoch]
      if later:
        values.append(other.intermediate_values[min(later)])
    values.sort(reverse=study.direction == optuna.study.StudyDirection.MAXIMIZE)
    kept = -(-len(values) // self._eta)
    worst = values[kept - 1]
    if study.direction == optuna.study.StudyDirection.MAXIMIZE:
      return value < worst
    return value > worst

  def _rung(self, trial: FrozenTrial) -> tuple[int, float] | None:
    """(epoch of the first report at the highest rung reached, its value)."""
    if not trial.intermediate_values:
      return None
    last = max(trial.intermediate_values)
    rung = self._first
    if last < rung:
      return None
    while rung * self._eta <= last:
      rung *= self._eta
    epoch = min(e for e in trial.intermediate_values if e >= rung)
    return epoch, trial.intermediate_values[epoch]
