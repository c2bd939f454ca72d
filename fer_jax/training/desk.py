"""What the workdirs of runs side by side hold, written while they train.

Each workdir is a normal one, as a single run would have written it.
"""

import contextlib
import dataclasses
import datetime
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.errors import UserError
from fer_jax.training import (
  checkpoint,
  journal,
  population,
  records,
  rollback,
)
from fer_jax.training.display import Display
from fer_jax.training.state import all_finite

SAVE_SECONDS = 60.0
"""How much of a run a kill may cost, beside the epoch under way; of that, see
`checkpoint.AMID_SECONDS`."""


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

    Raises:
      UserError: as `files.allow_open`.
    """
    files.allow_open(2 * places)  # records and events of each
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
