"""Hands out runs to workers; no run is lost and none is run twice.

A run belongs to whoever holds the lock of its workdir, which the kernel frees
when that process dies. Runs are handed out under one more lock, so that between
being asked for and being claimed a trial is nobody else's to take. A trial that
is running by the study and whose workdir nobody holds was left by a process
that died: the next to ask takes over the same trial, draws the parameters that
it lacks, and goes on from its checkpoint. One that ends its processes is told
failed after a few of them, as `takeovers` counts; so does a finalist fail. A
trial is told to the study before its workdir is let go.

Locks are of `flock`: workers on several machines need a shared folder that has
them, as NFS from version 4 does.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.training import journal, records, rollback
from fer_jax.training.workdir import claimed
from fer_jax.tuning import shapes, takeovers
from fer_jax.tuning.space import OutsideError, Space
from fer_jax.tuning.study import RUN_NOTE, Study

TRIALS = 'trials'
FINALISTS = 'finalists'
OUTCOME = 'outcome.json'
"""In a finalist's workdir: what came of it."""

ENDED = 'it was ended in the study'
"""Why a trial failed that no worker has ended."""

LOCK = '.ask.lock'


@dataclasses.dataclass(frozen=True)
class Run:
  """A run that this process holds.

  Attributes:
    name: for people.
    number: of the trial.
    config: of the run.
    workdir: of the run.
    shape: its text; equal ones share what is compiled.
    claim: holds the workdir until it is closed.
    trial_id: of the study; None for a finalist.
    looks: whether its turn is a first look at its shape.
    alone: whether none should train beside it.
  """

  name: str
  number: int
  config: config_lib.Config
  workdir: pathlib.Path
  shape: str
  claim: contextlib.ExitStack
  trial_id: int | None = None
  looks: bool = False
  alone: bool = False


@dataclasses.dataclass(frozen=True)
class Ending:
  """How a run ended.

  Attributes:
    state: 'complete', 'pruned' or 'failed'.
    value: best value of the metric, where it is complete.
    reason: why it failed.
  """

  state: str
  value: float | None = None
  reason: str = ''


class _Drawn(NamedTuple):
  """A running trial that is not claimed yet; its parameters for a config."""

  number: int
  trial_id: int
  params: dict[str, Any]


class Trials:
  """The trials of a study."""

  def __init__(
    self,
    study: Study,
    space: Space,
    workdir: pathlib.Path,
    count: int,
    first_looks: int = 0,
  ) -> None:
    """Makes the queue.

    Args:
      study: holds them.
      space: what they vary.
      workdir: of the sweep.
      count: how many there are to be.
      first_looks: of `shapes.first_looks`.
    """
    self._study = study
    self._space = space
    self._workdir = workdir
    self._count = count
    self._first_looks = first_looks
    self._held: set[int] = set()

  def left(self) -> bool:
    """Whether trials are running somewhere, or to be asked for."""
    trials = self._study.trials()
    running = any(t.state == TrialState.RUNNING for t in trials)
    return running or asked(trials) < self._count

  def head(self) -> Run | None:
    """A run of any shape; None where every one is held or has ended."""
    with asking(self._workdir):
      for run in self._orphans():
        return run
      while asked(self._study.trials()) < self._count:
        turn, shape = self._next_turn()
        new = self._new(shape)
        if new is None:
          continue
        run = self._claimed(new, looks=turn == 'look')
        self._study.note_of_trial(new.trial_id, turn=turn)
        return run
      return None

  def more(self, shape: str, count: int) -> list[Run]:
    """Up to so many more of a shape."""
    runs: list[Run] = []
    if count < 1:
      return runs
    with asking(self._workdir):
      for run in self._orphans(shape):
        runs.append(run)
        if len(runs) == count:
          return runs
      while len(runs) < count:
        trials = self._study.trials()
        if asked(trials) >= self._count or not self._goes_on(trials, shape):
          break
        new = self._new(self._shape_values(trials, shape))
        if new is None:
          continue
        # One that somebody put into the study by hand may have another shape:
        # it is left for the next turn, as if its process had died.
        if self._space.shape_text(new.params) != shape:
          break
        runs.append(self._claimed(new))
    return runs

  def report(self, run: Run, epoch: int, value: float) -> bool:
    """Reports the metric after an epoch; False where somebody has ended it."""
    return self._study.report(_id(run), epoch, value)

  def unpromising(self, run: Run, epoch: int) -> bool:
    """Whether a run is to be stopped after its report of an epoch."""
    return self._study.unpromising(_id(run), epoch)

  def compiled(self, run: Run) -> None:
    """Notes that a shape was compiled for a run."""
    self._study.note_of_trial(_id(run), compiled=True)

  def end(self, run: Run, ending: Ending) -> None:
    """Tells the study how a run ended, and lets it go."""
    self._tell(_id(run), run.workdir, ending)
    self.release(run)

  def _tell(self, trial_id: int, workdir: pathlib.Path, ending: Ending) -> None:
    notes: dict[str, Any] = {
      'epoch': epochs_done(workdir),
      'undone': len(rollback.undone(workdir)),
      RUN_NOTE: device_seconds(workdir),
    }
    if ending.reason:
      notes['failure'] = ending.reason
    self._study.note_of_trial(trial_id, **notes)
    if ending.state == 'complete':
      self._study.tell(trial_id, TrialState.COMPLETE, ending.value)
    else:
      # Of one that failed the sampler learns as of a pruned one: Optuna would
      # leave it out, and come back to what diverges.
      self._study.tell(trial_id, TrialState.PRUNED)

  def release(self, run: Run) -> None:
    """Lets a run go as it is, for whoever asks next."""
    takeovers.unmark(run.workdir)
    run.claim.close()
    self._held.discard(run.number)

  def _orphans(self, shape: str | None = None) -> Iterator[Run]:
    """Claims trials that are running by the study and held by nobody.

    Args:
      shape: of which they are, to train beside others; None for any.
    """
    for trial in self._study.trials():
      if trial.state != TrialState.RUNNING or trial.number in self._held:
        continue
      if not _is_free(self._trial_folder(trial.number)):
        continue
      # Told since the list was read, and only then let go.
      if not self._study.is_running(trial._trial_id):
        continue
      drawn = self._drawn(trial.number, trial._trial_id)
      if not drawn or shape not in (None, self._space.shape_text(drawn.params)):
        continue
      workdir = self._trial_folder(trial.number)
      tell = functools.partial(self._tell, drawn.trial_id, workdir)
      cost = _taken_over(f'trial {trial.number}', workdir, shape, tell)
      if cost is not None:
        yield self._claimed(drawn, alone=cost.alone)

  def _new(self, kept: dict[str, Any] | None) -> '_Drawn | None':
    """Asks for a trial; None for one that cannot be trained."""
    trial_id = self._study.ask()
    number = next(
      t.number for t in self._study.trials() if t._trial_id == trial_id
    )
    return self._drawn(number, trial_id, kept)

  def _drawn(
    self, number: int, trial_id: int, kept: dict[str, Any] | None = None
  ) -> '_Drawn | None':
    """A running trial with parameters, if it is; ends one that somebody gave
    others than the space has."""
    try:
      params = self._study.parameters(trial_id, kept)
      return None if params is None else _Drawn(number, trial_id, params)
    except OutsideError as error:
      print(f'trial {number} cannot be trained: {error}', flush=True)
      self._study.note_of_trial(trial_id, failure=str(error))
      self._study.tell(trial_id, TrialState.FAIL)
      return None

  def _claimed(
    self, drawn: '_Drawn', looks: bool = False, alone: bool = False
  ) -> Run:
    config = self._space.config_of(drawn.params)
    workdir = self._trial_folder(drawn.number)
    claim = contextlib.ExitStack()
    claim.enter_context(claimed(workdir, config))
    self._held.add(drawn.number)
    return Run(
      f'trial {drawn.number}',
      drawn.number,
      config,
      workdir,
      self._space.shape_text(drawn.params),
      claim,
      drawn.trial_id,
      looks,
      alone,
    )

  def _trial_folder(self, number: int) -> pathlib.Path:
    return self._workdir / TRIALS / f'{number:04d}'

  def _goes_on(self, trials: Sequence[FrozenTrial], shape: str) -> bool:
    """Whether the next trial can have a shape: a grid has an order."""
    grid, at = self._study.grid, len(trials)
    return (
      not grid or at >= len(grid) or self._space.shape_text(grid[at]) == shape
    )

  def _next_turn(self) -> tuple[str, dict[str, Any] | None]:
    """What kind of turn is next, as is noted of its first trial, and the values
    of its shape; None to let the sampler draw them."""
    if self._study.grid or not self._space.has_shapes:
      return 'free', None
    trials = self._study.trials()
    seen = {
      self._space.shape_text(self._study.values_of(t))
      for t in trials
      if t.params
    }
    if len(seen) < self._first_looks:
      seed = (self._study.settings.seed, len(trials))
      shape = self._space.unseen_shape(seen, np.random.default_rng(seed))
      if shape is not None:
        return 'look', shape
    turns = [t.user_attrs.get('turn') for t in trials]
    chosen = shapes.choose(
      [
        self._tried(t)
        for t in trials
        if t.state.is_finished() and RUN_NOTE in t.user_attrs
      ],
      free_turns=turns.count('free'),
      kept_turns=turns.count('kept'),
    )
    if chosen is None:
      return 'free', None
    return 'kept', self._shape_values(trials, chosen)

  def _tried(self, trial: FrozenTrial) -> shapes.Tried:
    """A trial that has ended, for `shapes`."""
    params, notes = self._study.values_of(trial), trial.user_attrs
    complete = trial.state == TrialState.COMPLETE
    sign = 1 if self._study.larger_is_better else -1
    epochs = params.get('train.epochs', self._space.base.train.epochs)
    trained = notes['epoch'] + notes.get('undone', 0)
    return shapes.Tried(
      self._space.shape_text(params),
      sign * (trial.value or 0.0) if complete else None,
      notes[RUN_NOTE],
      1.0 if complete else trained / epochs,
    )

  def _shape_values(
    self, trials: Sequence[FrozenTrial], shape: str
  ) -> dict[str, Any]:
    for trial in trials:
      params = self._study.values_of(trial)
      if self._space.shape_text(params) == shape:
        return self._space.shape_of(params)
    raise AssertionError(shape)


@dataclasses.dataclass(frozen=True)
class Repeat:
  """A trial's config under another seed.

  Attributes:
    number: of the trial.
    seed: of the run.
    config: of the run.
    workdir: of the run.
    shape: its text.
  """

  number: int
  seed: int
  config: config_lib.Config
  workdir: pathlib.Path
  shape: str


class Repeats:
  """The best trials, each under seeds that it was not chosen by."""

  def __init__(self, repeats: Sequence[Repeat], workdir: pathlib.Path) -> None:
    """Makes the queue of a sweep's workdir."""
    self._repeats = repeats
    self._workdir = workdir
    self._held: set[pathlib.Path] = set()

  def left(self) -> bool:
    """Whether any has not ended."""
    return any(not _has_ended(r.workdir) for r in self._repeats)

  def head(self) -> Run | None:
    """A run of any shape; None where every one is held or has ended."""
    runs = self._take(None, 1)
    return runs[0] if runs else None

  def more(self, shape: str, count: int) -> list[Run]:
    """Up to so many more of a shape."""
    return self._take(shape, count)

  def report(self, run: Run, epoch: int, value: float) -> bool:
    """Reports nothing, since these are not searched over."""
    return True

  def unpromising(self, run: Run, epoch: int) -> bool:
    """Never: each is trained to its end."""
    return False

  def compiled(self, run: Run) -> None:
    """Notes nothing."""

  def end(self, run: Run, ending: Ending) -> None:
    """Writes how a run ended, and lets it go."""
    _write_outcome(run.workdir, ending)
    self.release(run)

  def release(self, run: Run) -> None:
    """Lets a run go as it is, for whoever asks next."""
    takeovers.unmark(run.workdir)
    run.claim.close()
    self._held.discard(run.workdir)

  def _take(self, shape: str | None, count: int) -> list[Run]:
    runs: list[Run] = []
    with asking(self._workdir):
      for repeat in self._repeats:
        if len(runs) == count:
          break
        if (
          shape not in (None, repeat.shape)
          or repeat.workdir in self._held
          or not _is_free(repeat.workdir)
          or _has_ended(repeat.workdir)  # asked last: it ends, then is free
        ):
          continue
        name = f'finalist {repeat.number} seed {repeat.seed}'
        write = functools.partial(_write_outcome, repeat.workdir)
        cost = _taken_over(name, repeat.workdir, shape, write)
        if cost is None:
          continue
        claim = contextlib.ExitStack()
        claim.enter_context(claimed(repeat.workdir, repeat.config))
        self._held.add(repeat.workdir)
        runs.append(
          Run(
            name,
            repeat.number,
            repeat.config,
            repeat.workdir,
            repeat.shape,
            claim,
            alone=cost.alone,
          )
        )
    return runs


@contextlib.contextmanager
def asking(workdir: pathlib.Path) -> Iterator[None]:
  """One process of a sweep at a time."""
  with (workdir / LOCK).open('w') as lock:
    files.taken(lock, wait=True)
    yield


def device_seconds(workdir: pathlib.Path) -> float:
  """What a run took of a device's time, epochs that a kill undid left out."""
  recorded = sum(
    record.get('device_seconds', record['seconds'])
    for record in records.read_metrics(workdir)
  )
  return recorded + sum(rollback.undone(workdir))


def epochs_done(workdir: pathlib.Path) -> int:
  """Epochs that a run has recorded."""
  return max((r['epoch'] for r in records.read_metrics(workdir)), default=0)


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
  """A finalist's run: its 'value', and the 'failure' for want of which it has
  none; both None where it has not ended."""
  path = workdir / OUTCOME
  if not path.exists():
    return {'value': None, 'failure': None}
  kept = files.read_json(path)
  failure = kept.get('failure') or 'it gave no finite value'
  return {
    'value': kept['value'],
    'failure': failure if kept['value'] is None else None,
  }


def _is_free(workdir: pathlib.Path) -> bool:
  """Whether no process holds a workdir."""
  path = workdir / '.lock'
  if not path.exists():
    return True
  with path.open('r+') as lock:
    return files.taken(lock)


def _taken_over(
  name: str,
  workdir: pathlib.Path,
  shape: str | None,
  end: Callable[[Ending], None],
) -> takeovers.Lost | None:
  """Takes over a run that nobody holds.

  Args:
    name: of the run.
    workdir: of the run.
    shape: as it is asked for, to train beside others; None for any.
    end: tells how it ended.

  Returns:
    What it has cost; None where it has cost too much, and fails, or is to train
    alone.
  """
  cost = takeovers.lost(workdir)
  if cost.fails:
    print(f'{name}: failed ({takeovers.REASON})', flush=True)
    journal.note(workdir, 'failed', why=takeovers.REASON)
    end(Ending('failed', reason=takeovers.REASON))
  if cost.fails or (cost.alone and shape is not None):
    return None
  takeovers.settle(workdir, cost)
  if workdir.exists():  # somebody has claimed it before
    journal.note(workdir, 'taken_over', **cost._asdict())
  return cost


def _write_outcome(workdir: pathlib.Path, ending: Ending) -> None:
  files.write_json(
    workdir / OUTCOME, {'value': ending.value, 'failure': ending.reason}
  )


def _has_ended(workdir: pathlib.Path) -> bool:
  return (workdir / OUTCOME).exists()


def asked(trials: Sequence[FrozenTrial]) -> int:
  """Trials that somebody has asked for."""
  return sum(t.state != TrialState.WAITING for t in trials)


def _id(run: Run) -> int:
  assert run.trial_id is not None
  return run.trial_id
