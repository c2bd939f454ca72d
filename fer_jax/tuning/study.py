"""The study of a sweep: what Optuna asks, keeps and is told.

Every call goes to the storage, which may go away for a while (a database that
is restarted): such calls are made again, later and later, for as long as
`Storage.patience`. All of them may be made twice without harm. A trial that
somebody has ended, such as in Optuna's dashboard, takes nothing more.
"""

import contextlib
import dataclasses
import functools
import pathlib
import random
import re
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import optuna
import sqlalchemy
import sqlalchemy.exc
import sqlalchemy.pool
from optuna.trial import FrozenTrial, TrialState

from fer_jax.errors import UserError
from fer_jax.tuning import search
from fer_jax.tuning.space import OutsideError, Space

T = TypeVar('T')

_EndedError = optuna.exceptions.UpdateFinishedTrialError

RUN_NOTE = 'device_seconds'
"""What is noted of every trial that was trained."""

CONNECT_SECONDS = 10
"""What a database may take to answer a connection."""


@dataclasses.dataclass(frozen=True)
class Storage:
  """Where a study is kept.

  Attributes:
    url: of SQLAlchemy.
    study: its name there.
    patience: seconds for which a storage that has gone away is waited for.
    known: whether it was reached before, so that it is waited for at the start
      as well: else the URL is likely wrong.
  """

  url: str
  study: str
  patience: float = 300.0
  known: bool = False

  @property
  def shown(self) -> str:
    """The URL without its password."""
    url = sqlalchemy.make_url(self.url)
    if 'password' in url.query:
      url = url.update_query_dict({'password': '***'})
    return url.render_as_string(hide_password=True)


def parse_url(url: str) -> str:
  """A URL as SQLAlchemy takes it, on the driver that the extra installs.

  Raises:
    UserError: it is none.
  """
  # The first is what libpq takes, and SQLAlchemy has another driver for both.
  for prefix in ('postgres://', 'postgresql://'):
    if url.startswith(prefix):
      url = 'postgresql+psycopg://' + url.removeprefix(prefix)
  try:
    sqlalchemy.make_url(url)
  except (sqlalchemy.exc.ArgumentError, ValueError):  # the port is no number
    shown = re.sub('://.*@', '://***@', url)
    raise UserError(
      f'--storage={shown} is no URL of a database; expected as '
      'sqlite:////absolute/path.db or postgresql://user@host/name'
    ) from None
  return url


class Study:
  """A study, its sampler and its pruner, patient with the storage."""

  def __init__(
    self,
    storage: Storage,
    space: Space,
    settings: search.Settings,
    *,
    metric: str,
    epochs: int,
    validate_every: int,
  ) -> None:
    """Opens the study or makes it.

    Args:
      storage: where it is kept.
      space: what is searched.
      settings: how.
      metric: 'accuracy' or 'loss'.
      epochs: of a trial.
      validate_every: epochs from a report to the next.

    Raises:
      UserError: the storage cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    self.storage = storage
    self.space = space
    self.settings = settings
    self.larger_is_better = metric != 'loss'
    self.grid = space.grid() if settings.search == 'grid' else []
    self._study = _open(
      storage,
      direction='maximize' if self.larger_is_better else 'minimize',
      pruner=search.pruner(settings.prune, epochs, validate_every),
    )

  @property
  def fits(self) -> bool:
    """Whether the storage's study searches in this one's direction."""
    larger = self._study.direction == optuna.study.StudyDirection.MAXIMIZE
    return larger == self.larger_is_better

  @property
  def name(self) -> str:
    """Of the study."""
    return self._study.study_name

  def notes(self) -> dict[str, Any]:
    """What is noted of the whole study."""
    return self._patiently(lambda: dict(self._study.user_attrs))

  def note(self, key: str, value: Any) -> None:
    """Notes something of the whole study."""
    self._patiently(lambda: self._study.set_user_attr(key, value))

  def trials(self) -> list[FrozenTrial]:
    """All trials by number. Not to be written to."""
    return self._patiently(lambda: self._study.get_trials(deepcopy=False))

  def enqueue(self, stored: dict[str, Any]) -> None:
    """Lets the next trial have these parameters, as the study stores them."""
    self._patiently(
      lambda: self._study.enqueue_trial(stored, skip_if_exists=True)
    )

  def ask(self) -> int:
    """Makes a running trial without parameters; returns its id.

    To be called by one process at a time.
    """
    before = {trial._trial_id for trial in self.trials()}

    def make():
      for trial in self._study.get_trials(deepcopy=False):
        made = trial.state == TrialState.RUNNING  # not by hand, to be asked for
        if made and trial._trial_id not in before:
          return trial._trial_id  # made, though the answer did not arrive
      return self._study.ask()._trial_id

    self._take_sampler(len(before))
    return self._patiently(make)

  def parameters(
    self, trial_id: int, shape: dict[str, Any] | None = None
  ) -> dict[str, Any] | None:
    """The parameters of a running trial; those that it lacks are drawn. None
    where it has ended without them.

    Args:
      trial_id: its id.
      shape: values that are drawn as these, where they are not settled yet.

    Raises:
      OutsideError: somebody gave it others than the space has.
    """

    def suggest():
      given = self._of(trial_id)
      fixed = given.system_attrs.get('fixed_params', {})
      self.space.require({**fixed, **given.params})
      # Anew each time: what was drawn before the storage went away is there.
      trial = optuna.trial.Trial(self._study, trial_id)
      try:
        return self.space.suggest(
          lambda field, domain: domain.value(
            search.suggest(trial, field, domain)
          )
        )
      except ValueError as error:  # of another distribution, that is
        raise OutsideError(str(error)) from error

    self._take_sampler(self._number(trial_id), shape)
    with contextlib.suppress(_EndedError):
      return self._patiently(suggest)

  def report(self, trial_id: int, epoch: int, value: float) -> bool:
    """Reports the metric after an epoch, counted from 1, once.

    Returns:
      Whether the trial has not ended.
    """

    def tell():
      trial = optuna.trial.Trial(self._study, trial_id)
      if epoch not in self._of(trial_id).intermediate_values:
        trial.report(value, epoch)

    with contextlib.suppress(_EndedError):
      self._patiently(tell)
    return self.is_running(trial_id)

  def unpromising(self, trial_id: int, epoch: int) -> bool:
    """Whether the pruner would stop a trial after its report of an epoch; not
    after one that a later one followed, which was judged then."""

    def judge():
      trial = optuna.trial.Trial(self._study, trial_id)
      return self._of(trial_id).last_step == epoch and trial.should_prune()

    return self._patiently(judge)

  def is_running(self, trial_id: int) -> bool:
    """Whether a trial has not ended, asked anew."""
    return self._patiently(
      lambda: self._of(trial_id).state == TrialState.RUNNING
    )

  def note_of_trial(self, trial_id: int, **values: Any) -> None:
    """Notes something of a trial; nothing where it has ended."""

    def write():
      trial = optuna.trial.Trial(self._study, trial_id)
      for key, value in values.items():
        trial.set_user_attr(key, value)

    with contextlib.suppress(_EndedError):
      self._patiently(write)

  def tell(
    self, trial_id: int, state: TrialState, value: float | None = None
  ) -> None:
    """Ends a trial; nothing where it has ended already."""

    def end():
      self._study.tell(
        self._of(trial_id).number, value, state, skip_if_finished=True
      )

    with contextlib.suppress(_EndedError):  # between its look and its word
      self._patiently(end)

  def values_of(self, trial: FrozenTrial) -> dict[str, Any]:
    """A trial's parameters as its config takes them."""
    return {
      field: self.space.domains[field].value(stored)
      for field, stored in trial.params.items()
      if field in self.space.domains and self.space.domains[field].has(stored)
    }

  def best_first(self) -> list[FrozenTrial]:
    """The complete trials, but for those that somebody put in as such."""
    complete = [
      t
      for t in self.trials()
      if t.state == TrialState.COMPLETE and RUN_NOTE in t.user_attrs
    ]
    sign = -1 if self.larger_is_better else 1
    return sorted(complete, key=lambda t: (sign * (t.value or 0.0), t.number))

  def importance(self) -> dict[str, float] | None:
    """How much each field tells of the metric, shares; None of few trials."""
    complete = self.best_first()
    if len(complete) < 4 or len({t.value for t in complete}) < 2:
      return None

    def compute():
      with warnings.catch_warnings():
        # Of few trials it says so in several ways.
        warnings.simplefilter('ignore')
        return optuna.importance.get_param_importances(self._study)

    return {f: float(v) for f, v in self._patiently(compute).items()}

  def _of(self, trial_id: int) -> FrozenTrial:
    return self._study._storage.get_trial(trial_id)

  def _number(self, trial_id: int) -> int:
    return self._patiently(lambda: self._of(trial_id).number)

  def _take_sampler(
    self, number: int, shape: dict[str, Any] | None = None
  ) -> None:
    """The sampler of a trial: it draws the same whoever asks, and when."""
    stored = {
      field: self.space.domains[field].stored(value)
      for field, value in (shape or {}).items()
    }
    self._study.sampler = search.sampler(
      self.settings, number, self._stored_grid, stored
    )

  @functools.cached_property
  def _stored_grid(self) -> list[dict[str, Any]]:
    return [
      {f: self.space.domains[f].stored(v) for f, v in params.items()}
      for params in self.grid
    ]

  def _patiently(self, call: Callable[[], T]) -> T:
    """Calls, and again where the storage has gone away meanwhile.

    Raises:
      UserError: it did not come back.
    """
    begun = time.monotonic()
    pause = 0.1
    while True:
      try:
        return call()
      except (
        sqlalchemy.exc.DBAPIError,
        optuna.exceptions.StorageInternalError,
      ) as error:
        reason = _reason(error)
        waited = time.monotonic() - begun
        if waited + pause > self.storage.patience:
          raise UserError(
            f'the storage {self.storage.shown} has gone away, and '
            f'{waited:.0f} s of --storage_patience are over: {reason}; what '
            'was trained is kept, and the same command goes on with it'
          ) from error
        if pause > 1:
          print(
            f'fer_jax: waiting for the storage {self.storage.shown}: {reason}',
            file=sys.stderr,
            flush=True,
          )
        # Spread, since all workers of a database wait for the same moment.
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, 10.0)


def _open(
  storage: Storage,
  *,
  direction: Literal['maximize', 'minimize'],
  pruner: Any,
) -> Any:
  """Optuna's study.

  Raises:
    UserError: the storage cannot be reached, its driver is not installed, or
      it holds something else.
  """
  begun = time.monotonic()
  patience = storage.patience if storage.known else 0.0
  while True:
    try:
      return optuna.create_study(
        study_name=storage.study,
        storage=_with_tables(storage.url),
        direction=direction,
        pruner=pruner,
        load_if_exists=True,
      )
    except ImportError as error:
      raise _unreachable(storage.shown, error) from error
    except (
      sqlalchemy.exc.SQLAlchemyError,
      optuna.exceptions.StorageInternalError,
      RuntimeError,  # tables of another version of Optuna
    ) as error:
      if time.monotonic() - begun > patience or isinstance(error, RuntimeError):
        raise _unreachable(storage.shown, error) from error
      time.sleep(random.uniform(0.5, 1.5))


def look(url: str, study: str = '') -> str:
  """What is at a URL of `parse_url`, in a line; nothing is made there.

  Args:
    url: of the storage.
    study: a name that is looked for; '' for none.

  Raises:
    UserError: it cannot be reached, or its driver is not installed.
  """
  shown = Storage(url, study).shown
  place = sqlalchemy.make_url(url)
  if place.drivername.startswith('sqlite') and place.database:
    file = pathlib.Path(place.database)
    if not file.exists() and file.parent.is_dir():
      return f'{shown}, which is to be made'
    if not file.exists():
      raise UserError(f'cannot reach --storage={shown}: no such folder')
  try:
    engine = sqlalchemy.create_engine(url, **_engine_options(url))
    with contextlib.closing(engine.connect()) as connection:
      names = []
      if sqlalchemy.inspect(connection).has_table('studies'):
        asked = sqlalchemy.text('SELECT study_name FROM studies')
        names = connection.execute(asked).scalars().all()
    engine.dispose()
  except (ImportError, sqlalchemy.exc.SQLAlchemyError) as error:
    raise _unreachable(shown, error) from error
  count = f'{shown}, with {len(names)} stud{"y" if len(names) == 1 else "ies"}'
  if not study:
    return count
  return f'{count}, {study!r} {"among" if study in names else "not among"} them'


def _unreachable(shown: str, error: Exception) -> UserError:
  if isinstance(error, ImportError):
    return UserError(
      f'--storage={shown} needs a driver that is not installed '
      f'({error.__cause__ or error}); the extra postgres has the one of '
      "PostgreSQL: pip install -e '.[postgres]'"
    )
  return UserError(f'cannot reach --storage={shown}: {_reason(error)}')


def database(url: str) -> optuna.storages.RDBStorage:
  """Optuna's storage at a URL of `parse_url`."""
  return optuna.storages.RDBStorage(url, engine_kwargs=_engine_options(url))


def _engine_options(url: str) -> dict[str, Any]:
  options: dict[str, Any] = {'pool_pre_ping': True}
  if url.startswith('sqlite'):
    # Several workers write: one waits for the other. A connection is an open
    # file, and nothing would close those of a pool.
    options['connect_args'] = {'timeout': 60}
    if sqlalchemy.make_url(url).database not in (None, '', ':memory:'):
      options['poolclass'] = sqlalchemy.pool.NullPool
  elif url.startswith('postgresql'):
    options['connect_args'] = {'connect_timeout': CONNECT_SECONDS}
  return options


def _with_tables(url: str) -> Any:
  """Optuna's storage, whose tables the first worker of all makes.

  Of workers that come at one moment each tries, and all but one may fail.
  """
  for _ in range(5):
    try:
      return database(url)
    except sqlalchemy.exc.IntegrityError:  # its rows are there
      time.sleep(random.uniform(0.1, 0.5))
    except sqlalchemy.exc.DBAPIError as error:
      if 'already exists' not in str(error.orig):
        raise
      time.sleep(random.uniform(0.1, 0.5))
  return database(url)


def _reason(error: BaseException) -> str:
  """The first line of what the database itself said."""
  while isinstance(error.__cause__, Exception):
    error = error.__cause__
  said = getattr(error, 'orig', None) or error
  return (str(said).strip().splitlines() or [type(said).__name__])[0]
