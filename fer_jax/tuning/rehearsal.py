"""A sweep's first population without the sweep: what it searches and takes."""

import dataclasses
from collections.abc import Mapping

from fer_jax import config as config_lib
from fer_jax.training import rehearsal, side_by_side, task
from fer_jax.tuning import study
from fer_jax.tuning.space import SCALARS, Domain, Space
from fer_jax.tuning.sweep import Settings, trial_count, untried
from fer_jax.tuning.worker import population_size


@dataclasses.dataclass(frozen=True)
class Rehearsal:
  """What was found.

  Attributes:
    space: that is searched.
    trials: how many there would be.
    untried: as `sweep.untried`; '' of a grid, which has an order of its own.
    storage: what is at `Settings.storage`; '' where none is given.
    measured: of trials with the config's own values.
  """

  space: Space
  trials: int
  untried: str
  storage: str
  measured: rehearsal.Rehearsal


def rehearse(
  config: config_lib.Config, domains: Mapping[str, Domain], settings: Settings
) -> Rehearsal:
  """As `rehearsal.rehearse`, of trials that differ in their seed alone.

  Raises:
    UserError: config or space do not hold, the data cannot be had, the storage
      cannot be reached, or memory does not hold a single trial.
  """
  config_lib.validate(config)
  space = Space(domains, config)
  side_by_side.require_residence(config)
  storage = ''
  if settings.storage:
    storage = study.look(study.parse_url(settings.storage), settings.study)
  grid = space.grid() if settings.searching.search == 'grid' else []
  trials = trial_count(settings, len(grid))
  blueprint = task.blueprint(config)
  partition = task.partition_of(config, blueprint.dataset)
  shared = side_by_side.shared_by(config, blueprint, [partition], settings.how)

  def trial(number: int):
    own = config.copy_and_resolve_references()
    own.seed = (config.seed + number) % 2**32
    return side_by_side.fresh(shared, own, partition)

  measured = rehearsal.rehearse_population(
    shared,
    [side_by_side.example(shared, partition)],
    trial,
    trials,
    population_size(settings.population, trials),
  )
  own = '' if grid else untried(space)
  return Rehearsal(space, trials, own, storage, measured)


def text(found: Rehearsal, batch_size: int) -> str:
  """The result as `sweep --dry_run` prints it."""
  shapes = found.space.shape_count()
  count = 'countless shapes' if shapes is None else f'{shapes:,} shapes'
  if shapes == 1:
    count = '1 shape'
  lines = [f'space             {count}, {found.trials:,} trials']
  for field, domain in found.space.domains.items():
    kind = 'traced' if field in SCALARS else 'makes the shape'
    when = ''.join(f', if {f}={v!r}' for f, v in domain.when.items())
    lines.append(f'  {field:<24} {domain.text}  ({kind}{when})')
  if found.untried:
    lines.append(found.untried)
  if found.storage:
    lines.append(f'storage           {found.storage}')
  lines.append('Trials with the values of --config:')
  return '\n'.join([*lines, rehearsal.text(found.measured, batch_size)])
