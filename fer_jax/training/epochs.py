"""A run's epochs: blocks of steps, validation, records and checkpoints.

Where `optim.unfreeze_epochs` let more of the model train, the first such epoch
begins with a compilation.
"""

import dataclasses
import datetime
import functools
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from fer_jax import config as config_lib
from fer_jax import hosts
from fer_jax.training import (
  checkpoint,
  freezing,
  preemption,
  progress,
  records,
  rollback,
  task,
)
from fer_jax.training import step as step_lib
from fer_jax.training.display import Display
from fer_jax.training.heartbeat import Heartbeat
from fer_jax.training.profile import Profile
from fer_jax.training.state import TrainState, all_finite
from fer_jax.training.workdir import note


@dataclasses.dataclass(kw_only=True, eq=False)
class Run:
  """What stays the same between the epochs of a run.

  Attributes:
    config: of the run.
    prepared: its task.
    workdir: where checkpoints lie and run.json is.
    display: what the terminal shows.
    recorder: takes a record an epoch.
    writer: takes checkpoints.
    heartbeat: told after every block that is done.
    notice: whether to leave.
    profile: traces the first steps.
    rollbacks: how often the run went back before.
    since: from where on the time to the first step counts; None where that is
      noted already.
  """

  config: config_lib.Config
  prepared: task.Task
  workdir: pathlib.Path
  display: Display
  recorder: records.Recorder
  writer: checkpoint.Writer
  heartbeat: Heartbeat
  notice: preemption.Notice
  profile: Profile
  rollbacks: int = 0
  since: float | None = None

  def __post_init__(self):
    self._pace = preemption.Pace(self.config.train.block_steps)
    self._saved_at = time.monotonic()
    self._freezing = freezing.NOTHING_FROZEN
    # A step's loss is of the parameters before it: an epoch's last update is
    # looked at here, or a diverged checkpoint would be the one to resume.
    self._finite = jax.jit(all_finite)
    self._update_progress = jax.jit(
      functools.partial(progress.update, settings=self.prepared.selection)
    )

  def epoch(
    self,
    state: TrainState,
    epoch: int,
    earlier: checkpoint.Partial | None = None,
  ) -> tuple[TrainState, checkpoint.Partial | None]:
    """Trains one epoch, validates, records.

    Args:
      state: before the epoch, or amid it; donated.
      epoch: counts from 0.
      earlier: the part of the epoch that is trained already.

    Returns:
      (state, None at the epoch's end; what was trained of it where the notice
      asked to leave before).

    Raises:
      rollback.DivergenceError: the loss is not finite.
    """
    self._say_what_trains(state, epoch)
    begun = time.monotonic() - (earlier.seconds if earlier else 0.0)
    state, sums, partial = self._blocks(state, epoch, earlier, begun)
    if partial:
      return state, partial
    training = step_lib.means(sums)
    self._require_active(state, epoch)
    seconds = time.monotonic() - begun

    record: dict[str, Any] = {
      'epoch': epoch + 1,
      'step': int(state.step),
      'time': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
      'train': training,
      'learning_rate': self.prepared.learning_rate(state),
      'images_per_second': float(sums['weight']) / seconds,
      'seconds': seconds,
      **({'rollbacks': self.rollbacks} if self.rollbacks else {}),
    }
    state, validation = self._validated(state, epoch)
    if validation:
      record['validation'] = validation
    self.recorder.write(record)
    self.display.line(_epoch_line(record, self.config.train.epochs, state))
    following = min(epoch + 2, self.config.train.epochs)
    self.heartbeat.beat(step=record['step'], epoch=following)
    return state, None

  def _blocks(
    self,
    state: TrainState,
    epoch: int,
    earlier: checkpoint.Partial | None,
    begun: float,
  ) -> tuple[TrainState, step_lib.Sums, checkpoint.Partial | None]:
    """Takes the steps of an epoch that are left; see `epoch`.

    Returns:
      (state, sums of the epoch, what was trained of it where it is left before
      its end).
    """
    feed = self.prepared.feed
    sums = step_lib.sums_of(earlier)
    first = earlier.taken if earlier else 0
    timed = begun, 0
    previous = None
    self._pace.begin()
    for block in feed.train_epoch(state, epoch, taken=first, sums=sums):
      state, sums, taken = block
      if self._pace.long:
        jax.block_until_ready(sums)
      # One block behind: reading these sums waits for a block that is done
      # while the next one already runs.
      # A first step's time is compilation and tells nothing of the rate.
      if previous is not None and previous[1] > first + 1:
        self._show(epoch, *previous, timed)
        self._pace.done(previous[1])
      previous = (sums, taken)
      if self.since is not None:
        self._note_first_step(sums, self.since)
        timed = time.monotonic(), taken
      if self.profile.steps:
        jax.block_until_ready(sums)
        self.profile.after_block(epoch * feed.steps_per_epoch + taken)
      # As the first of several hosts says: all have to do the same.
      feed.block_steps, overdue = hosts.from_first(
        np.array([self._next_block(), self._is_overdue()], np.int32)
      ).tolist()
      if taken == feed.steps_per_epoch:
        continue
      asked = self.notice.agreed()
      if asked or overdue:
        partial = self._amid(state, epoch, sums, taken, begun)
        if asked:
          self.display.line(
            f'leaving epoch {epoch + 1} after {taken} of its '
            f'{feed.steps_per_epoch} steps'
          )
          return state, sums, partial
        self.save(state, epoch, partial)
    return state, sums, None

  def _validated(
    self, state: TrainState, epoch: int
  ) -> tuple[TrainState, dict[str, float]]:
    """Validates where that is due after an epoch.

    Returns:
      (state with the progress that follows, loss and accuracy, or nothing).
    """
    settings, feed = self.config.train, self.prepared.feed
    last = epoch + 1 == settings.epochs
    validation = {}
    if feed.validates and (last or (epoch + 1) % settings.validate_every == 0):
      validation = step_lib.means(feed.validate(state))
      self._require(math.isfinite(validation['loss']), state, epoch)
    if validation or settings.select == 'last':
      state = state._replace(
        progress=self._update_progress(
          state.progress, metrics=validation, step=state.step
        )
      )
    return state, validation

  def save(
    self,
    state: TrainState,
    epoch: int,
    partial: checkpoint.Partial | None = None,
  ) -> None:
    """Begins to write a checkpoint, as `checkpoint.Writer.save`."""
    self.writer.save(state, epoch=epoch, partial=partial)
    self._saved_at = time.monotonic()

  def _next_block(self) -> int:
    return self.profile.steps or self._pace.steps

  def _is_overdue(self) -> bool:
    return time.monotonic() - self._saved_at > checkpoint.AMID_SECONDS

  def _amid(self, state, epoch, sums, taken, begun) -> checkpoint.Partial:
    """What a checkpoint before an epoch's end has to say of the epoch."""
    self._require_active(state, epoch)
    return checkpoint.Partial(
      taken=taken,
      seconds=time.monotonic() - begun,
      sums={name: float(total) for name, total in sums.items()},
    )

  def _say_what_trains(self, state: TrainState, epoch: int) -> None:
    """One line where it is not what the epoch before trained."""
    now = self.prepared.settings_of(epoch).freezing
    if now != self._freezing:
      self._freezing = now
      self.display.line(freezing.describe(now, state.params))

  def _note_first_step(self, sums, since: float) -> None:
    jax.block_until_ready(sums)
    self.notice.starting = False
    self.since = None
    note(self.workdir, {'seconds_to_first_step': time.time() - since})

  def _show(self, epoch, sums, taken, timed) -> None:
    per_epoch = self.prepared.feed.steps_per_epoch
    done = epoch * per_epoch + taken
    loss = step_lib.means(sums)['loss']  # waits for the block
    self.heartbeat.beat(step=done, epoch=epoch + 1)
    moment, before = timed
    rate = (taken - before) / (time.monotonic() - moment)
    self.display.running(
      epoch + 1,
      done,
      loss,
      rate * self.config.train.batch_size,
      (self.prepared.total_steps - done) / rate,
    )

  def _require_active(self, state: TrainState, epoch: int) -> None:
    """Stops where a step's loss, or what a last one left, is not finite."""
    active = state.progress.active & self._finite(state.params)
    self._require(bool(active), state, epoch)

  def _require(self, finite: bool, state: TrainState, epoch: int) -> None:
    """Stops before anything of a diverged epoch is written."""
    if finite:
      return
    self.writer.wait_everywhere()
    sealed = checkpoint.checkpoints(self.workdir)
    kept = f'{sealed[-1].path} is kept' if sealed else 'no checkpoint was made'
    raise rollback.DivergenceError(
      f'the loss is not finite at step {int(state.step)} (epoch {epoch + 1}); '
      f'{kept}; a smaller optim.learning_rate or optim.clip_norm may help',
      epoch=epoch + 1,
      step=int(state.step),
    )


def _epoch_line(record: dict, epochs: int, state: TrainState) -> str:
  train = record['train']
  text = (
    f'epoch {record["epoch"]}/{epochs}  step {record["step"]}  '
    f'train loss {train["loss"]:.4f} accuracy {train["accuracy"]:.4f}'
  )
  if 'validation' in record:
    validation = record['validation']
    best = int(state.progress.best_step) == record['step']
    text += (
      f'  validation loss {validation["loss"]:.4f} accuracy '
      f'{validation["accuracy"]:.4f}{" (best)" if best else ""}'
    )
  return f'{text}  {record["images_per_second"]:.0f} images/s'
