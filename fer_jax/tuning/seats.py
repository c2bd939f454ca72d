"""The runs of one turn, in places of a population of one shape."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from fer_jax.data import protocol
from fer_jax.training import (
  journal,
  memory,
  population,
  preemption,
  records,
  side_by_side,
)
from fer_jax.training.desk import Desk
from fer_jax.training.observer import Observer
from fer_jax.tuning import takeovers
from fer_jax.tuning.queue import ENDED, Ending, Run


class Queue(Protocol):
  """Where runs come from and go back to; `queue.Trials`, `queue.Repeats`."""

  def left(self) -> bool: ...
  def head(self) -> Run | None: ...
  def more(self, shape: str, count: int) -> list[Run]: ...
  def report(self, run: Run, epoch: int, value: float) -> bool: ...
  def unpromising(self, run: Run, epoch: int) -> bool: ...
  def compiled(self, run: Run) -> None: ...
  def end(self, run: Run, ending: Ending) -> None: ...
  def release(self, run: Run) -> None: ...


def _never() -> bool:
  return False


def _nothing() -> None:
  pass


@dataclasses.dataclass(frozen=True)
class Manner:
  """How a worker works.

  Attributes:
    size: of populations, where memory allows it.
    how: a name of `mapping.MAPPINGS`, or 'auto'.
    stop: whether to leave, asked after each epoch.
    notice: leaves after the block under way once it is asked.
    watch: called after each epoch.
  """

  size: int = 1
  how: str = 'auto'
  stop: Callable[[], bool] = _never
  notice: preemption.Notice = dataclasses.field(
    default_factory=preemption.Notice
  )
  watch: Callable[[], None] = _nothing

  def leaves(self) -> bool:
    """Whether it is time to."""
    return self.stop() or self.notice.asked


class Bench:
  """Data, model and places of one shape; compiled when they are first used.

  Attributes:
    shape: its text.
    shared: data and model.
    size: how many places there are.
    together: the population, None before its first members.
  """

  def __init__(
    self,
    shape: str,
    shared: side_by_side.Shared,
    partition: protocol.Partition,
  ) -> None:
    """Makes one of one place."""
    self.shape = shape
    self.shared = shared
    self.size = 1
    self.together: population.Population | None = None
    self._partition = partition

  def member(self, run: Run) -> population.Member:
    """A run of this shape, as its workdir has it."""
    return side_by_side.member(
      self.shared, run.config, run.workdir, self._partition, run.number
    )


class Seats:
  """The runs of one turn in the places of a bench; a context.

  Attributes:
    given: runs that were seated so far.
  """

  def __init__(
    self, queue: Queue, bench: Bench, manner: Manner, observer: Observer
  ) -> None:
    """Makes empty seats."""
    config = bench.shared.config
    self._queue = queue
    self._bench = bench
    self._manner = manner
    self._observer = observer
    self._metric = config.train.select
    self._desk = Desk(bench.size, config)
    self._runs: list[Run | None] = [None] * bench.size
    self._pace = preemption.Pace(config.train.block_steps)
    self._amid_epoch = False
    self._earlier = 0.0
    self.given = 0

  def __enter__(self) -> 'Seats':
    self._manner.notice.parting = self._excuse
    return self

  def __exit__(self, *exception: object) -> None:
    """Saves what can be gone on with, and lets everything go."""
    try:
      if self._bench.together is not None and not self._amid_epoch:
        self._desk.save_all(self._bench.together)
    finally:
      self._desk.close()
      for run in filter(None, self._runs):
        self._queue.release(run)
      self._runs = []

  def _excuse(self) -> None:
    """Blames no run for the end of this process."""
    for run in filter(None, list(self._runs)):
      takeovers.unmark(run.workdir)

  def give_up(self, error: memory.ExhaustedError) -> int:
    """Leaves runs that memory does not hold as their checkpoints have them.

    Where fewer may fit all are let go, for whoever asks next; else they end.

    Args:
      error: says why.

    Returns:
      How many may fit, at least one.
    """
    self._amid_epoch = True  # nothing on the device is to be saved
    self._desk.close()
    together = self._bench.together
    places = self.taken if together is None else len(together)
    fewer = error.fewer(places)
    self._observer.exhausted(places, fewer, error)
    if fewer:
      self._desk.line(
        f'{places} trials side by side are too many, {fewer} are next: {error}'
      )
      return fewer
    for m, run in enumerate(self._runs):
      if run is not None:
        self._queue.end(run, Ending('failed', reason=str(error)))
        self._runs[m] = None
        self._desk.line(f'{run.name}: failed ({error})')
    return 1

  @property
  def taken(self) -> int:
    """Places with a run."""
    return len(self._runs) - self.free

  @property
  def free(self) -> int:
    """Places without one."""
    return self._runs.count(None)

  def fill(self, runs: Sequence[Run]) -> None:
    """Gives places to runs; ends those that had only not been told or judged
    yet."""
    empty = [m for m, run in enumerate(self._runs) if run is None]
    places = dict(zip(empty, runs, strict=False))
    for m, run in places.items():
      self._runs[m] = run  # from here on ours to release
      takeovers.mark(run.workdir)
    self.given += len(runs)
    members = {m: self._bench.member(run) for m, run in places.items()}
    self._earlier = side_by_side.seconds_before(list(members.values()))
    if self._bench.together is None:
      self._begin(list(members.values()))
    else:
      for m, member in members.items():
        self._bench.together.replace(m, member)
    for m, run in places.items():
      self._desk.seat(m, run.workdir, members[m])
    results: list[dict[str, Any] | None] = [None] * len(self._runs)
    for m, run in places.items():
      results[m] = _last_epoch(run.workdir, members[m].epoch)
    self._judge(results)
    for m in places:
      if self._runs[m] is not None and not self._together.training[m]:
        self._end(m, self._ending(m))
    self._observer.look(self._together)

  def _begin(self, members: list[population.Member]) -> None:
    """Makes the population, of as many places as there are members."""
    self._bench.together = side_by_side.population_of(
      self._bench.shared, members
    )
    self._bench.size = len(members)
    self._runs = self._runs[: len(members)]
    self._desk = Desk(len(members), self._bench.shared.config)
    if self._together.training.any():
      first = self._runs[0]
      assert first is not None
      self._queue.compiled(first)

  @property
  def _together(self) -> population.Population:
    assert self._bench.together is not None
    return self._bench.together

  def epoch(self) -> bool:
    """Trains an epoch and judges; False where it is time to leave."""
    self._amid_epoch = True
    results = side_by_side.train_epoch(
      self._together,
      self._desk,
      self._pace,
      self._manner.notice,
      self._member_again,
      self._observer,
      self._earlier,
    )
    if results is None:
      return False
    self._amid_epoch = False
    self._earlier = 0.0
    self._judge(results)
    self._manner.watch()
    return not self._manner.leaves()

  def _member_again(self, m: int) -> population.Member:
    run = self._runs[m]
    assert run is not None
    return self._bench.member(run)

  def _judge(self, results: Sequence[dict[str, Any] | None]) -> None:
    """Reports all that validated, then ends those that are over.

    Who is killed meanwhile has reported and judged some: of an epoch that is
    judged again the first report counts.
    """
    reported, ended = set(), set()
    for m, (run, result) in enumerate(zip(self._runs, results, strict=True)):
      if run is None or result is None:
        continue
      value = result.get('validation', {}).get(self._metric, math.nan)
      if math.isfinite(value):
        known = self._queue.report(run, result['epoch'], value)
        (reported if known else ended).add(m)
    for m, (run, result) in enumerate(zip(self._runs, results, strict=True)):
      if run is None or result is None:
        continue
      if m in ended:
        journal.note(run.workdir, 'failed', why=ENDED)
        self._stop(m, Ending('failed', reason=ENDED))
      elif not self._together.training[m]:
        self._end(m, self._ending(m))
      elif m in reported and self._queue.unpromising(run, result['epoch']):
        journal.note(run.workdir, 'pruned', epoch=result['epoch'])
        self._stop(m, Ending('pruned'))

  def _ending(self, m: int) -> Ending:
    """Of a run that trains no more."""
    if self._together.diverged[m]:
      return Ending('failed', reason='the loss is not finite')
    best = float(self._together.member_state(m).progress.best_metric)
    if not math.isfinite(best):
      return Ending('failed', reason='no validation gave a finite value')
    # A loss enters with its sign turned.
    return Ending('complete', -best if self._metric == 'loss' else best)

  def _stop(self, m: int, ending: Ending) -> None:
    """Ends a run that would train on."""
    # Saved as one that does: killed before it is told, it is no complete one.
    self._end(m, ending)
    self._together.stop(m)

  def _end(self, m: int, ending: Ending) -> None:
    """Leaves a whole workdir behind before anyone is told."""
    run = self._runs[m]
    assert run is not None
    self._desk.leave(m, self._together)
    self._queue.end(run, ending)
    self._runs[m] = None
    value = (
      '' if ending.value is None else f' {self._metric} {ending.value:.4f}'
    )
    reason = f' ({ending.reason})' if ending.reason else ''
    self._desk.line(
      f'{run.name}: {ending.state}{value} after epoch '
      f'{int(np.asarray(self._together.epoch)[m])}{reason}'
    )


def _last_epoch(workdir: pathlib.Path, epoch: int) -> dict[str, Any] | None:
  """The record of the epoch that a checkpoint is of, if there is one."""
  kept = records.read_metrics(workdir)
  return kept[-1] if kept and kept[-1]['epoch'] == epoch else None
