"""Runs that train side by side, each with a workdir of its own.

What cross-validations and sweeps share: the examples of all runs in memory
once, a run as a member of a population, how many members fit, and the desk that
writes what a single run would have written. Each workdir is a normal one:
`train --config` goes on with it or repeats it.
"""

import contextlib
import dataclasses
import datetime
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fer_jax import config as config_lib
from fer_jax.data import protocol, resident
from fer_jax.datasets import Dataset
from fer_jax.errors import UserError
from fer_jax.training import (
  checkpoint,
  feed,
  journal,
  mapping,
  memory,
  population,
  preemption,
  records,
  rollback,
  task,
  warm_start,
)
from fer_jax.training import workdir as workdir_lib
from fer_jax.training.display import Display
from fer_jax.training.observer import Observer
from fer_jax.training.state import TrainState, all_finite

SAVE_SECONDS = 60.0
"""How much of a run a kill may cost, beside the epoch under way; of that, see
`checkpoint.AMID_SECONDS`."""


@dataclasses.dataclass(frozen=True)
class Shared:
  """What the runs of one population have in common.

  Attributes:
    config: of any of them; they differ in lists, seeds and scalars alone.
    blueprint: data set, model and settings.
    images: the examples that train or select in any run, each once.
    rows: int (n,), the place in `images` of each row of the data set, or -1.
    how: a name of `mapping.MAPPINGS`, or 'auto'.
  """

  config: config_lib.Config
  blueprint: task.Blueprint
  images: dict[str, Any]
  rows: np.ndarray
  how: str = 'auto'

  @functools.cached_property
  def make_state(self) -> Callable[[jax.Array], TrainState]:
    """From a run's key to its first state; compiled once."""
    class_count = len(self.blueprint.dataset.class_names)
    return task.state_maker(self.config, class_count)


def require_residence(config: config_lib.Config) -> None:
  """Raises UserError where the config wants its set streamed."""
  if config.data.residence == 'stream':
    raise UserError(
      "data.residence is 'stream'; runs that train side by side share one set "
      "in memory, and allowed is 'auto' or 'device'"
    )


def resident_set(
  config: config_lib.Config,
  dataset: Dataset,
  partitions: Sequence[protocol.Partition],
) -> tuple[dict[str, Any], np.ndarray]:
  """(`Shared.images`, `Shared.rows`) of runs on these partitions.

  Raises:
    UserError: the set is larger than `data.resident_gib`.
  """
  used = functools.reduce(
    np.union1d, [np.union1d(p.train, p.validation) for p in partitions]
  )
  size = config.data.image_size
  images = resident.load_resident(
    dataset,
    used,
    image_size=(size, size),
    channels=config.data.channels,
    limit_bytes=int(config.data.resident_gib * 2**30),
  )
  rows = np.full(len(dataset), -1, np.int64)
  rows[used] = np.arange(len(used))
  return images, rows


def shared_by(
  config: config_lib.Config,
  blueprint: task.Blueprint,
  partitions: Sequence[protocol.Partition],
  how: str,
) -> Shared:
  """What runs on these partitions have in common.

  Raises:
    UserError: as `resident_set`.
  """
  images, rows = resident_set(config, blueprint.dataset, partitions)
  return Shared(config, blueprint, images, rows, how)


def member(
  shared: Shared,
  config: config_lib.Config,
  workdir: pathlib.Path,
  partition: protocol.Partition,
  number: int,
) -> population.Member:
  """A run before its first step, or as its checkpoint has it.

  Args:
    shared: of its population.
    config: of the run.
    workdir: of the run, claimed.
    partition: who trains and who selects.
    number: what the caller calls it by.

  Raises:
    UserError: it was begun on other data, or the pretrained weights cannot be
      had.
  """
  dataset = shared.blueprint.dataset
  facts = task.facts_of(config, dataset, partition)
  sealed = checkpoint.latest_intact(workdir, noted=True)
  if sealed is None:
    run = fresh(shared, config, partition, number)
    origin = {'pretrained': warm_start.facts(config.train.pretrained)}
  else:
    workdir_lib.require_same_data(workdir, facts)
    target = task.abstract_state(config, len(dataset.class_names))
    state = jax.device_get(checkpoint.restore(sealed, target))
    plan = task.plan_of(config, dataset, partition.train)
    run = _placed(shared, partition, plan, state, number)
    origin = {}
  step = sealed.step if sealed else 0
  state = rollback.slowed(run.state, rollback.noted(workdir, step))
  epoch = sealed.epoch if sealed else 0
  if epoch < config.train.epochs and bool(state.progress.active):
    workdir_lib.write_run_json(workdir, config, facts, state, origin)
  partial = sealed.partial if sealed else None
  return run._replace(state=state, partial=partial, epoch=epoch)


def fresh(
  shared: Shared,
  config: config_lib.Config,
  partition: protocol.Partition,
  number: int = 0,
) -> population.Member:
  """A run before its first step; the arguments are those of `member`."""
  dataset, graphdef = shared.blueprint.dataset, shared.blueprint.graphdef
  plan = task.plan_of(config, dataset, partition.train)
  class_count = len(dataset.class_names)
  state = task.first_state(
    config, graphdef, class_count, plan.key, shared.make_state
  )
  return _placed(shared, partition, plan, jax.device_get(state), number)


def example(shared: Shared, partition: protocol.Partition) -> population.Member:
  """A run of which nothing is computed: shapes and dtypes of its state."""
  config, dataset = shared.config, shared.blueprint.dataset
  state = task.abstract_state(config, len(dataset.class_names))
  plan = task.plan_of(config, dataset, partition.train)
  return _placed(shared, partition, plan, state, 0)


def _placed(shared, partition, plan, state, number) -> population.Member:
  return population.Member(
    state=state,
    plan=plan,
    train_rows=shared.rows[partition.train],
    validation_rows=shared.rows[partition.validation],
    number=number,
  )


def waves(
  shared: Shared,
  members: Sequence[population.Member],
  count: int,
  need: memory.Need | None = None,
) -> list[range]:
  """Divides as many runs as `count` into populations that fit into memory.

  Args:
    shared: of all of them.
    members: some of them, the ones with the longest lists included.
    count: of all.
    need: of `need_of`, where it is known.

  Raises:
    memory.ExhaustedError: not even one fits.
  """
  devices = jax.local_devices()
  platform = devices[0].platform
  how = mapping.choose(shared.how, platform)
  limit = memory.limit_bytes(devices[0])
  need = need or need_of(shared, members)
  if platform == 'cpu':  # whose devices have one memory
    return memory.waves(count, limit, need, how, parts=len(devices))
  return memory.waves(count, limit, need, how, devices=len(devices))


def need_of(
  shared: Shared, members: Sequence[population.Member]
) -> memory.Need:
  """What a run takes, as far as it is planned with: on CPU the least.

  What a member takes there while it trains is known when the population has
  compiled its block, which takes minutes: it looks then, and fewer are tried.

  Args:
    shared: of all of them.
    members: some of them, the ones with the longest lists included.
  """
  if jax.default_backend() == 'cpu':
    state = memory.bytes_of(members[0].state)
    return memory.Need(memory.bytes_of(shared.images), state, state)
  size = shared.config.train.batch_size
  room = [
    feed.padded_length(max(len(getattr(m, rows)) for m in members), size)
    for rows in ('train_rows', 'validation_rows')
  ]
  return memory.need(
    shared.images,
    members[0].state,
    members[0].plan,
    (room[0], room[1]),
    graphdef=shared.blueprint.graphdef,
    settings=shared.blueprint.settings,
  )


def population_of(
  shared: Shared, members: Sequence[population.Member]
) -> population.Population:
  """The members as one population, on all devices of this process."""
  config, blueprint = shared.config, shared.blueprint
  device = jax.local_devices()[0]
  on_cpu = device.platform == 'cpu'
  balanced = config.train.sampling == 'class_balanced'
  return population.Population(
    {k: v for k, v in shared.images.items() if k != 'label' or balanced},
    members,
    graphdef=blueprint.graphdef,
    settings_of=functools.partial(
      task.settings_of, config=config, settings=blueprint.settings
    ),
    selection=blueprint.selection,
    epochs=config.train.epochs,
    validate_every=config.train.validate_every,
    block_steps=config.train.block_steps,
    sampling=config.train.sampling,
    mapping=shared.how,
    limit=memory.limit_bytes(device) if on_cpu else None,
  )


@dataclasses.dataclass
class _Seat:
  """Who writes of the run in one place."""

  workdir: pathlib.Path
  writer: checkpoint.Writer
  recorder: records.Recorder
  examples: int
  rollbacks: int
  saved: bool = True


class Effort(NamedTuple):
  """What an epoch took.

  Attributes:
    seconds: of the clock.
    rate: images a second of all runs together, which share the device.
    device_seconds: each run's share of the device's time, by its place.
  """

  seconds: float
  rate: float
  device_seconds: dict[int, float]


class Desk:
  """Writes what the runs' workdirs hold while they train."""

  def __init__(self, places: int, config: config_lib.Config):
    """Makes a desk with empty seats.

    Args:
      places: of the population.
      config: of any of the runs.
    """
    self._epochs = config.train.epochs
    self._rolls_back = config.train.on_divergence == 'rollback'
    self._display = Display(0, self._epochs)
    self._seats: list[_Seat | None] = [None] * places
    self._saved_at = time.monotonic()

  def seat(
    self, m: int, workdir: pathlib.Path, member: population.Member
  ) -> None:
    """Writes of a run from here on; cuts back what its checkpoint lacks."""
    step, epoch = int(member.state.step), member.epoch
    if epoch < self._epochs and bool(member.state.progress.active):
      journal.begun(workdir, step > 0, epoch=epoch, step=step)
    self._sit(m, workdir, member)

  def _sit(
    self, m: int, workdir: pathlib.Path, member: population.Member
  ) -> None:
    step = int(member.state.step)
    self._seats[m] = _Seat(
      workdir,
      checkpoint.Writer(workdir),
      records.Recorder(workdir, resumed_step=step, epochs=member.epoch),
      len(member.train_rows),
      len(rollback.noted(workdir, step)),
    )

  def effort(
    self, results: Sequence[dict[str, Any] | None], seconds: float
  ) -> Effort:
    """What an epoch took of each run that ended it, whatever came of it.

    Args:
      results: of `finish_epoch`.
      seconds: that the epoch took.
    """
    examples = {
      m: seat.examples
      for m, (seat, result) in enumerate(zip(self._seats, results, strict=True))
      if seat is not None and result is not None
    }
    total = sum(examples.values())
    return Effort(
      seconds,
      total / seconds,
      {m: n / total * seconds * _devices() for m, n in examples.items()},
    )

  def roll_back(
    self,
    together: population.Population,
    results: list[dict[str, Any] | None],
    member: Callable[[int], population.Member],
    effort: Effort,
  ) -> None:
    """Notes who diverged in this epoch; takes them back, if the config says so.

    Who is not taken back is written of no more: a checkpoint of it is worth
    nothing, nor is one of what led to it.

    Args:
      together: after `finish_epoch`.
      results: what that returned; of who goes back it becomes None.
      member: the run in a place, as its workdir then has it.
      effort: of the epoch.
    """
    for m in map(int, np.flatnonzero(together.diverged)):
      seat, result = self._seats[m], results[m]
      if seat is None or result is None:
        continue
      diverged = rollback.DivergenceError(
        f'the loss is not finite at step {result["step"]} (epoch '
        f'{result["epoch"]})',
        epoch=result['epoch'],
        step=result['step'],
      )
      diverged.note(seat.workdir)
      self._seats[m] = None
      _close(seat)
      device_seconds = effort.device_seconds[m]
      try:
        if not self._rolls_back:
          raise diverged
        line = rollback.note(seat.workdir, diverged, device_seconds)
      except UserError as final:
        rollback.note_end(seat.workdir, device_seconds)
        self.line(f'{seat.workdir.name}: {final}')
        continue
      self.line(f'{seat.workdir.name}: {line}')
      again = member(m)
      self._sit(m, seat.workdir, again)
      together.replace(m, again)
      results[m] = None

  def write(
    self,
    together: population.Population,
    results: Sequence[dict[str, Any] | None],
    effort: Effort,
  ) -> None:
    """Records an epoch; saves runs that improved, all of them now and then.

    Args:
      together: after `finish_epoch`.
      results: what that returned.
      effort: of the epoch.
    """
    done = {
      m: (seat, result)
      for m, (seat, result) in enumerate(zip(self._seats, results, strict=True))
      if seat is not None and result is not None
    }
    if not done:
      return
    now = datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds')
    for m, (seat, result) in done.items():
      seat.recorder.write(
        {
          **result,
          'time': now,
          'images_per_second': effort.rate,
          'seconds': effort.seconds,
          'device_seconds': effort.device_seconds[m],
          **({'rollbacks': seat.rollbacks} if seat.rollbacks else {}),
        }
      )
      seat.saved = False
    # What is gone back to is the epoch before, as in a run by itself.
    overdue = self._rolls_back
    overdue |= self._since_all() > SAVE_SECONDS
    worth_it = together.improved | ~together.training | overdue
    for m, seat in enumerate(self._seats):
      if seat is not None and not seat.saved and worth_it[m]:
        self._save(together, m, seat, together.member_state(m))
    for m, (seat, result) in done.items():
      if not together.training[m]:
        epoch, step = result['epoch'], result['step']
        journal.note(seat.workdir, 'finished', epoch=epoch, step=step)
    if overdue:
      self._saved_at = time.monotonic()
    self._display.line(
      _epoch_line(
        [result for _, result in done.values()], self._epochs, effort.rate
      )
    )

  def line(self, text: str) -> None:
    """Adds a line to the terminal."""
    self._display.line(text)

  def save_all(self, together: population.Population) -> None:
    """Saves what is not saved yet."""
    for m, seat in enumerate(self._seats):
      if seat is not None and not seat.saved:
        self._save(together, m, seat, together.member_state(m))

  def _since_all(self) -> float:
    """Seconds since all were saved."""
    return time.monotonic() - self._saved_at

  @property
  def overdue_amid(self) -> bool:
    """Whether an epoch under way should be saved."""
    return self._since_all() > checkpoint.AMID_SECONDS

  def save_amid(self, together: population.Population, seconds: float) -> None:
    """Saves all runs amid their epoch, of which so many seconds are over.

    One whose epoch is over before the others' has not been judged: it keeps its
    checkpoint of before, and trains the epoch again.
    """
    for m, seat in enumerate(self._seats):
      if together.training[m] and not together.amid[m]:
        continue
      partial = together.partial(m, seconds) if together.training[m] else None
      if seat is None or (seat.saved and not partial):
        continue
      state = together.member_state(m)
      if bool(state.progress.active) and bool(all_finite(state.params)):
        epoch = int(together.epoch[m])
        seat.writer.save(state, epoch=epoch, partial=partial)
        seat.saved = True
    self._saved_at = time.monotonic()

  def _save(self, together, m: int, seat: _Seat, state) -> None:
    seat.writer.save(state, epoch=int(together.epoch[m]))
    seat.saved = True

  def leave(self, m: int, together: population.Population) -> None:
    """Saves what is not saved of a run and closes its files."""
    seat = self._seats[m]
    if seat is None:
      return
    if not seat.saved:
      self._save(together, m, seat, together.member_state(m))
    self._seats[m] = None
    _close(seat)

  def close(self) -> None:
    """Waits for the last checkpoints and closes the files."""
    with contextlib.ExitStack() as stack:
      for seat in self._seats:
        if seat is not None:
          stack.callback(_close, seat)
    self._seats = [None] * len(self._seats)


def _devices() -> int:
  """That this process holds; the cores of a CPU are one."""
  return 1 if jax.default_backend() == 'cpu' else jax.local_device_count()


def seconds_before(members: Sequence[population.Member]) -> float:
  """What the epoch has taken that members are amid of."""
  return max((m.partial.seconds for m in members if m.partial), default=0.0)


def train_epoch(
  together: population.Population,
  desk: Desk,
  pace: preemption.Pace,
  notice: preemption.Notice,
  member: Callable[[int], population.Member],
  observer: Observer,
  earlier: float = 0.0,
) -> list[dict[str, Any] | None] | None:
  """Trains what is left of everyone's epoch, and writes of it.

  Args:
    together: the runs.
    desk: writes of them.
    pace: of the blocks.
    notice: leaves after the block under way once it is asked.
    member: the run in a place, as its workdir has it.
    observer: is told of blocks and epochs.
    earlier: seconds of the epoch before this call.

  Returns:
    What `finish_epoch` returned, None of a run that went back after a loss that
    was not finite; None where all left amid the epoch, saved.
  """
  begun = time.monotonic() - earlier
  pace.begin()
  together.block_steps = observer.block_steps(pace.steps)
  steps, before = 0, together.taken
  for _ in together.blocks():
    together.wait()
    notice.starting = False
    # Of whoever took most: the one furthest on may be waiting for the others.
    taken = int((together.taken - before).max())
    steps += taken
    before = together.taken
    pace.done(steps)
    observer.after_block(together, taken)
    together.block_steps = observer.block_steps(pace.steps)
    if not together.amid.any():
      continue  # the epoch is judged first
    asked = notice.agreed()
    if asked or desk.overdue_amid:
      desk.save_amid(together, time.monotonic() - begun)
    if asked:
      return None
  results = together.finish_epoch()
  effort = desk.effort(results, time.monotonic() - begun)
  desk.roll_back(together, results, member, effort)
  desk.write(together, results, effort)
  observer.look(together)
  return results


def _close(seat: _Seat) -> None:
  try:
    seat.writer.close()
  finally:
    seat.recorder.close()


def _epoch_line(
  done: Sequence[dict[str, Any]], epochs: int, rate: float
) -> str:
  train = np.mean([r['train']['accuracy'] for r in done])
  text = (
    f'epoch {max(r["epoch"] for r in done)}/{epochs}  {len(done)} '
    f'run{"s" * (len(done) > 1)}  train accuracy {train:.4f}'
  )
  validated = [r['validation']['accuracy'] for r in done if 'validation' in r]
  if validated:
    text += f'  validation accuracy {np.mean(validated):.4f}'
    if len(validated) > 1:
      text += f' ({min(validated):.4f} to {max(validated):.4f})'
  return f'{text}  {rate:.0f} images/s'
