"""A sweep from its config and space to a winner.

Every process that is started with the same sweep and workdir is one more
worker: it takes trials until none is left, repeats the best of them under other
seeds, and writes what came of it. Killed, it is started again.
"""

import contextlib
import dataclasses
import functools
import itertools
import pathlib
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

from fer_jax import config as config_lib
from fer_jax import files, forms
from fer_jax.errors import UserError
from fer_jax.training import journal, preemption, side_by_side, task
from fer_jax.training.observer import Observer, worker_folder
from fer_jax.tuning import queue, search, shapes, summary
from fer_jax.tuning.seats import Manner
from fer_jax.tuning.space import Domain, Space
from fer_jax.tuning.study import Storage, Study, parse_url
from fer_jax.tuning.worker import Worker, population_size

STUDY = 'study.json'
"""In a sweep's workdir: which study it belongs to."""

DEFAULT_TRIALS = 32

SUMMARY_SECONDS = 10.0
"""Between two writings of sweep.json while trials run."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """How a sweep is done.

  Attributes:
    searching: sampler, pruner and seed.
    trials: how many; 0 for a whole grid, else `DEFAULT_TRIALS`.
    population: members that train side by side; 0 for automatic.
    top: finalists.
    seeds: under how many other seeds each is repeated; 0 for none.
    storage: URL of the database; '' for a file in the workdir.
    study: its name there; '' for the workdir's.
    patience: seconds for which a storage that has gone away is waited for.
    max_seconds: leaves in good order after the epoch that passes it; 0 is no
      limit.
    how: a name of `mapping.MAPPINGS`, or 'auto'.
    profile_steps: how many steps each worker traces into its folder.
  """

  searching: search.Settings = dataclasses.field(
    default_factory=search.Settings
  )
  trials: int = 0
  population: int = 0
  top: int = 3
  seeds: int = 3
  storage: str = ''
  study: str = ''
  patience: float = 300.0
  max_seconds: float = 0.0
  how: str = 'auto'
  profile_steps: int = 0

  def study_in(self, workdir: pathlib.Path) -> str:
    """The name of the study of a sweep in `workdir`.

    A workdir that holds its database keeps the name when it is moved.
    """
    kept = {} if self.storage else _kept(workdir)
    return self.study or kept.get('study') or workdir.resolve().name


def run(
  config: config_lib.Config,
  domains: Mapping[str, Domain],
  workdir: str | pathlib.Path,
  settings: Settings,
  notice: preemption.Notice | None = None,
) -> tuple[bool, dict[str, Any]]:
  """Does a sweep, or goes on with the one that the workdir holds.

  Args:
    config: whose fields the space varies; validated here.
    domains: the space, by dotted field; checked here.
    workdir: made where it is missing.
    settings: how.
    notice: leaves after the block under way once it is asked.

  Returns:
    (whether nothing is left to do, the content of sweep.json).

  Raises:
    UserError: config or space do not hold; the data cannot be had; the storage
      cannot be reached, has gone away, or holds another sweep; no trial could
      be trained.
  """
  begun = time.monotonic()
  config_lib.validate(config)
  space = Space(domains, config)
  notice = notice or preemption.Notice()
  workdir = pathlib.Path(workdir)
  with files.writing(f'to --workdir {workdir}'):
    workdir.mkdir(parents=True, exist_ok=True)
  # Before any trial is blamed for it.
  side_by_side.require_residence(config)
  task.partition_of(config, task.load_dataset(config))
  study = _study(config, space, workdir, settings)
  with queue.asking(workdir):
    _require_same_sweep(study, config, space, workdir, settings.searching)

  count = trial_count(settings, len(study.grid))
  size = population_size(settings.population, count)
  how_searched = {
    **dataclasses.asdict(settings.searching),
    'population': size,
    'trials': count,
  }
  writer = _Writer(study, space, workdir, how_searched)

  def late() -> bool:
    limit = settings.max_seconds
    return bool(limit) and time.monotonic() - begun > limit

  with _observed(workdir, settings.profile_steps) as (number, observer):
    resumed = queue.asked(study.trials()) > 0
    journal.begun(workdir, resumed, worker=number, runs=count)
    manner = Manner(size, settings.how, late, notice, writer.now_and_then)
    worker = Worker(manner, observer)
    looks = shapes.first_looks(count, size)
    finished = worker.work(queue.Trials(study, space, workdir, count, looks))
    if finished:
      writer.repeats = _repeats(study, space, workdir, settings)
      if writer.repeats:
        again = queue.Repeats(writer.repeats, workdir)
        finished = not again.left() if notice.asked else worker.work(again)
    content = writer.write(ended=finished)
    if finished and content['best'] is None:
      reasons = [t['failure'] for t in content['trials']]
      raise UserError(
        f'none of the {len(reasons)} trials in {workdir} was completed; the '
        f'first failed since {next(filter(None, reasons), "it was pruned")}'
      )
    journal.ended(workdir, finished, notice.asked, worker=number)
  return finished, content


class _Writer:
  """Writes what the sweep has found.

  Attributes:
    repeats: runs of the finalists, once they are known.
  """

  def __init__(
    self,
    study: Study,
    space: Space,
    workdir: pathlib.Path,
    how_searched: dict[str, Any],
  ):
    self.repeats: list[queue.Repeat] = []
    self._workdir = workdir
    self._build = functools.partial(
      summary.build, study, space, workdir, how_searched
    )
    self._written = time.monotonic()

  def write(self, *, ended: bool = False) -> dict[str, Any]:
    """Writes the content of sweep.json and returns it."""
    build = functools.partial(self._build, self.repeats, ended=ended)
    content = summary.write(build, self._workdir)
    self._written = time.monotonic()
    return content

  def now_and_then(self) -> None:
    """Writes where it was last done some time ago."""
    if time.monotonic() - self._written > SUMMARY_SECONDS:
      self.write()


@contextlib.contextmanager
def _observed(
  workdir: pathlib.Path, profile_steps: int
) -> Iterator[tuple[int, Observer]]:
  """The number of this worker and what it is seen by from outside."""
  with _numbered(workdir) as number, journal.failures(workdir, worker=number):
    folder = worker_folder(workdir, number)
    observer = Observer(folder, workdir, profile_steps, worker=number)
    with contextlib.closing(observer):
      yield number, observer


def trial_count(settings: Settings, combinations: int) -> int:
  """How many trials there are to be.

  Args:
    settings: of the sweep.
    combinations: of a grid; 0 for any other search.
  """
  count = settings.trials or combinations or DEFAULT_TRIALS
  return min(count, combinations) if combinations else count


@contextlib.contextmanager
def _numbered(workdir: pathlib.Path) -> Iterator[int]:
  """The least number that no other worker has; its folder is this one's."""
  with contextlib.ExitStack() as held:
    for number in itertools.count():
      folder = worker_folder(workdir, number)
      folder.mkdir(parents=True, exist_ok=True)
      lock = held.enter_context((folder / '.lock').open('w'))
      if files.taken(lock):
        break
    files.remove_temporaries(folder)
    yield number


def _kept(workdir: pathlib.Path) -> dict[str, str]:
  """What study.json says; nothing where there is none yet.

  Raises:
    UserError: it is of another form.
  """
  path = workdir / STUDY
  kept = files.read_json(path) if path.exists() else {}
  form = dict.fromkeys(('study?', 'storage?', 'id?'), forms.text)
  if wrong := forms.misfit(kept, form):
    raise UserError(f'{path} is not of ours: {wrong}')
  return kept


def _study(config, space, workdir, settings: Settings) -> Study:
  url = settings.storage or f'sqlite:///{workdir.resolve() / "study.db"}'
  storage = Storage(
    parse_url(url),
    settings.study_in(workdir),
    settings.patience,
    known=(workdir / STUDY).exists(),
  )
  return Study(
    storage,
    space,
    settings.searching,
    metric=config.train.select,
    epochs=config.train.epochs,
    validate_every=config.train.validate_every,
  )


def untried(space: Space) -> str:
  """That a search does not begin at its config, and why; '' where it does."""
  outside = ', '.join(
    f'{field} is {value!r}, outside of {space.domains[field].text}'
    for field, value in space.outside().items()
  )
  return outside and (
    f"the config's own values are no trial: {outside}; what is found may be "
    'worse than they are'
  )


def _require_same_sweep(
  study: Study,
  config: config_lib.Config,
  space: Space,
  workdir: pathlib.Path,
  searching: search.Settings,
) -> None:
  """Makes study and workdir each other's, or checks that they are.

  Raises:
    UserError: one of them is another sweep's.
  """
  notes = study.notes()
  path = workdir / STUDY
  kept = _kept(workdir)
  name = f'study {study.name!r} in {study.storage.shown}'
  if 'id' not in notes:
    if not study.fits:
      raise UserError(
        f'{name} was made to search the other way than train.select='
        f'{config.train.select}; choose another --study'
      )
    if study.trials() and 'config' not in notes:
      raise UserError(f'{name} was not made by `sweep`; choose another --study')
    if any((workdir / queue.TRIALS).glob('*')):
      raise UserError(
        f'{workdir} holds trials of study {kept.get("study")!r} in '
        f'{kept.get("storage")}, and {name} has none of them; expected that '
        'storage, or another --workdir'
      )
    token = secrets.token_hex(8)
    files.write_json(
      path,
      {'study': study.name, 'storage': study.storage.shown, 'id': token},
    )
    study.note('config', config_lib.to_json(config))
    study.note('space', space.to_json())
    study.note('search', searching.search)
    study.note('prune', searching.prune)
    first = space.stored_base()
    if first is not None and not study.grid:
      # What is found is then no worse than what there was, if it is not pruned.
      study.enqueue(first)
    elif not study.grid:
      print(untried(space), flush=True)
    study.note('id', token)  # last: until then all of it is done again
    return
  if kept.get('id') != notes['id']:
    raise UserError(
      f'{name} belongs to another workdir than {workdir}; choose another '
      '--study or that --workdir'
    )
  there = config_lib.from_json(notes['config'], source=name)
  differ = config_lib.differences(there, config)
  differ += _space_differences(notes['space'], space.to_json())
  for flag in ('search', 'prune'):
    here = getattr(searching, flag)
    before = notes.get(flag, here)  # earlier versions note the search alone
    if before != here:
      differ.append(f'--{flag} is {before} there and {here} here')
  if differ:
    raise UserError(
      f'{name} is of another sweep: {"; ".join(differ)}; choose another '
      '--workdir and --study, or the same sweep'
    )


def _space_differences(there: dict, here: dict) -> list[str]:
  def shown(domain):
    if domain is None:
      return 'not searched'
    kept = {k: v for k, v in domain.items() if v not in (None, False)}
    return ' '.join(f'{k} {v}' for k, v in kept.items())

  return [
    f'{field} is {shown(there.get(field))} there and '
    f'{shown(here.get(field))} here'
    for field in sorted(there.keys() | here.keys())
    if there.get(field) != here.get(field)
  ]


def _repeats(
  study: Study, space: Space, workdir: pathlib.Path, settings: Settings
) -> list[queue.Repeat]:
  """The best trials, each under seeds that no trial has had.

  A trial is among the best partly since its seed was lucky; under others its
  value is what one may expect of its config.
  """
  seeds = _other_seeds(study, space, settings.seeds)
  repeats = []
  for trial in study.best_first()[: settings.top]:
    params = study.values_of(trial)
    for seed in seeds:
      config = space.config_of(params)
      config.seed = seed
      folder = f'{trial.number:04d}_seed_{config.seed}'
      repeats.append(
        queue.Repeat(
          trial.number,
          config.seed,
          config,
          workdir / queue.FINALISTS / folder,
          space.shape_text(params),
        )
      )
  return repeats


def _other_seeds(study: Study, space: Space, count: int) -> list[int]:
  """Seeds that no trial has had: those that follow all of the space."""
  searched = space.domains.get('seed')
  first = 1 + max([space.base.seed, *(searched.extremes() if searched else ())])
  had = {
    study.values_of(trial).get('seed', space.base.seed)
    for trial in study.trials()
  }
  # A key has 32 bits of a seed.
  following = (seed % 2**32 for seed in itertools.count(first))
  return list(itertools.islice((s for s in following if s not in had), count))
