"""The training loop: from a config and a workdir to a trained run.

Reads top to bottom: `train` prepares a task, resumes where a workdir says so,
and runs epochs; `Run.epoch` runs the blocks of one. Where
`optim.unfreeze_epochs` let more of the model train, the first such epoch
begins with a compilation.
"""

import contextlib
import dataclasses
import datetime
import functools
import itertools
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fer_jax import config as config_lib
from fer_jax import hosts, provenance
from fer_jax.training import (
  checkpoint,
  freezing,
  preemption,
  progress,
  records,
  rollback,
  task,
  warm_start,
)
from fer_jax.training import step as step_lib
from fer_jax.training.display import Display
from fer_jax.training.heartbeat import Heartbeat
from fer_jax.training.profile import Profile
from fer_jax.training.state import TrainState, all_finite
from fer_jax.training.workdir import (
  claimed,
  note,
  require_same_data,
  write_run_json,
)

_RUNS = itertools.count()  # of this process


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run ended.

  Attributes:
    epoch: epochs completed.
    step: steps taken.
    best_metric: best validation value of the selection metric; infinite before
      there is one, NaN where the last epoch is taken.
    best_step: its step.
    stopped_early: whether patience ran out.
    finished: whether nothing is left to do; False after a time limit.
    asked: whether it left because it was asked to.
    rollbacks: how often it went back after a loss that was not finite.
  """

  epoch: int
  step: int
  best_metric: float
  best_step: int
  stopped_early: bool
  finished: bool
  asked: bool = False
  rollbacks: int = 0


def train(
  config: config_lib.Config,
  workdir: str | pathlib.Path,
  *,
  max_seconds: float = 0.0,
  notice: preemption.Notice | None = None,
  profile_steps: int = 0,
  devices: Sequence[Any] | None = None,
) -> Outcome:
  """Trains a run, or goes on with the one that the workdir holds.

  Args:
    config: of `config.get_base`; validated here.
    workdir: made where it is missing.
    max_seconds: leaves in good order after the epoch that passes it, to be
      resumed by the same call; 0 is no limit.
    notice: leaves after the block under way once it is asked, amid an epoch if
      need be; the same call goes on, to the same bits.
    profile_steps: how many steps are traced into the workdir.
    devices: over which batches are divided; None for all of all hosts.

  Raises:
    UserError: the config does not validate, the workdir is another config's,
      the data or the pretrained weights cannot be had, or the loss is not
      finite and `train.on_divergence` does not help.
  """
  config_lib.validate(config)
  workdir = pathlib.Path(workdir)
  notice = notice or preemption.Notice()
  # A later run of a process has not waited for what was before it.
  since = time.time() if next(_RUNS) else provenance.process_start()
  until = time.monotonic() + max_seconds if max_seconds else math.inf
  with (
    claimed(workdir, config),
    contextlib.closing(
      # Of several hosts' traces in one folder none could be told apart.
      Profile(workdir, profile_steps if hosts.first() else 0)
    ) as profile,
  ):
    prepared = task.prepare(config, devices)
    while True:
      try:
        return _train(config, workdir, prepared, notice, profile, until, since)
      except rollback.DivergenceError as diverged:
        if config.train.on_divergence == 'stop':
          raise
        print(rollback.note(workdir, diverged))
        since = None


def _train(
  config: config_lib.Config,
  workdir: pathlib.Path,
  prepared: task.Task,
  notice: preemption.Notice,
  profile: Profile,
  until: float,
  since: float | None,
) -> Outcome:
  """Trains from the newest checkpoint on.

  Args:
    since: from where on the time to the first step counts; None where an
      attempt before this one has taken it.

  Raises:
    rollback.DivergenceError: the loss is not finite.
  """
  sealed = checkpoint.latest_intact(workdir)
  epoch = sealed.epoch if sealed else 0
  step = sealed.step if sealed else 0
  partial = sealed.partial if sealed else None
  if sealed is None:
    state = prepared.initial_state()
    origin = {'pretrained': warm_start.facts(config.train.pretrained)}
  else:
    require_same_data(workdir, prepared.facts)
    target = task.abstract_state(config, len(prepared.class_names))
    state = checkpoint.restore(sealed, target)
    origin = {}  # as run.json has it: the file may be gone by now
    print(f'resuming {workdir} after epoch {epoch}, step {step}')
  if epoch < config.train.epochs and bool(state.progress.active):
    write_run_json(
      workdir, config, prepared.facts, state, origin, prepared.devices
    )
  rollbacks = rollback.noted(workdir, step)
  state = rollback.slowed(state, rollbacks)

  with contextlib.ExitStack() as stack:

    def closing(resource):
      stack.callback(resource.close)
      return resource

    writer = stack.enter_context(checkpoint.Writer(workdir))
    recorder = closing(
      records.Recorder(workdir, resumed_step=step, epochs=epoch)
    )
    run = Run(
      config,
      prepared,
      Display(prepared.total_steps, config.train.epochs),
      recorder,
      writer,
      workdir,
      closing(
        Heartbeat(workdir, step=step, epoch=min(epoch + 1, config.train.epochs))
      ),
      notice,
      profile,
      len(rollbacks),
      since,
    )
    asked, late = notice.agreed(), False
    while epoch < config.train.epochs and bool(state.progress.active):
      if asked or late:
        break
      state, partial = run.epoch(state, epoch, partial)
      epoch += 0 if partial else 1
      run.save(state, epoch, partial)
      asked = bool(partial) or notice.agreed()
      late = hosts.any_host(time.monotonic() > until)
    writer.wait_everywhere()
  finished = epoch == config.train.epochs or not bool(state.progress.active)
  best = float(state.progress.best_metric)
  return Outcome(
    epoch=epoch,
    step=int(state.step),
    # A loss enters with its sign turned.
    best_metric=-best if config.train.select == 'loss' else best,
    best_step=int(state.progress.best_step),
    stopped_early=not bool(state.progress.active),
    finished=finished,
    asked=asked and not finished,
    rollbacks=len(rollbacks),
  )


class Run:
  """One run's epochs: what stays the same between them."""

  def __init__(
    self,
    config,
    prepared,
    display,
    recorder,
    writer,
    workdir,
    heartbeat,
    notice,
    profile,
    rollbacks,
    since,
  ):
    self._config = config
    self._task = prepared
    self._display = display
    self._recorder = recorder
    self._writer = writer
    self._workdir = workdir
    self._heartbeat = heartbeat
    self._notice = notice
    self._profile = profile
    self._rollbacks = rollbacks
    self._since = since
    self._pace = preemption.Pace(config.train.block_steps)
    self._saved_at = time.monotonic()
    self._freezing = freezing.NOTHING_FROZEN
    # A step's loss is of the parameters before it: an epoch's last update is
    # looked at here, or a diverged checkpoint would be the one to resume.
    self._finite = jax.jit(all_finite)
    self._update_progress = jax.jit(
      functools.partial(progress.update, settings=prepared.selection)
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
    totals = step_lib.sums_of(earlier)
    first = earlier.taken if earlier else 0
    begun = time.monotonic() - (earlier.seconds if earlier else 0.0)
    timed = begun, 0
    before = epoch * self._task.feed.steps_per_epoch
    previous = None
    self._pace.begin()
    for block in self._task.feed.train_epoch(
      state, epoch, taken=first, sums=totals
    ):
      state, totals, taken = block
      if self._pace.long:
        jax.block_until_ready(totals)
      # One block behind: reading these sums waits for a block that is done
      # while the next one already runs.
      # A first step's time is compilation and tells nothing of the rate.
      if previous is not None and previous[1] > first + 1:
        self._show(epoch, *previous, timed)
        self._pace.done(previous[1])
      previous = (totals, taken)
      if self._since is not None:
        self._note_first_step(totals, self._since)
        timed = time.monotonic(), taken
      if self._profile.steps:
        self._profile.after_block(totals, before + taken)
      # As the first of several hosts says: all have to do the same.
      self._task.feed.block_steps, overdue = hosts.from_first(
        np.array([self._next_block(), self._is_overdue()], np.int32)
      ).tolist()
      if taken == self._task.feed.steps_per_epoch:
        continue
      asked = self._notice.agreed()
      if asked or overdue:
        partial = self._amid(state, epoch, totals, taken, begun)
        if asked:
          self._display.line(
            f'leaving epoch {epoch + 1} after {taken} of its '
            f'{self._task.feed.steps_per_epoch} steps'
          )
          return state, partial
        self.save(state, epoch, partial)
    training = step_lib.means(totals)
    self._require_finite(
      state, epoch, bool(state.progress.active & self._finite(state.params))
    )
    seconds = time.monotonic() - begun

    record: dict[str, Any] = {
      'epoch': epoch + 1,
      'step': int(state.step),
      'time': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
      'train': training,
      'learning_rate': self._task.learning_rate(state),
      'images_per_second': float(totals['weight']) / seconds,
      'seconds': seconds,
      **({'rollbacks': self._rollbacks} if self._rollbacks else {}),
    }
    due = (epoch + 1) % self._config.train.validate_every == 0
    due = due or epoch + 1 == self._config.train.epochs
    validation = {}
    if due and self._task.feed.validates:
      validation = step_lib.means(self._task.feed.validate(state))
      record['validation'] = validation
      self._require_finite(state, epoch, math.isfinite(validation['loss']))
    if validation or self._config.train.select == 'last':
      state = state._replace(
        progress=self._update_progress(
          state.progress, metrics=validation, step=state.step
        )
      )
    self._recorder.write(record)
    self._display.line(_epoch_line(record, self._config.train.epochs, state))
    following = min(epoch + 2, self._config.train.epochs)
    self._heartbeat.beat(step=record['step'], epoch=following)
    return state, None

  def save(
    self,
    state: TrainState,
    epoch: int,
    partial: checkpoint.Partial | None = None,
  ) -> None:
    """Begins to write a checkpoint, as `checkpoint.Writer.save`."""
    self._writer.save(state, epoch=epoch, partial=partial)
    self._saved_at = time.monotonic()

  def _next_block(self) -> int:
    return self._profile.steps or self._pace.steps

  def _is_overdue(self) -> bool:
    return time.monotonic() - self._saved_at > checkpoint.AMID_SECONDS

  def _amid(self, state, epoch, sums, taken, begun) -> checkpoint.Partial:
    """What a checkpoint before an epoch's end has to say of the epoch."""
    self._require_finite(
      state, epoch, bool(state.progress.active & self._finite(state.params))
    )
    return checkpoint.Partial(
      taken=taken,
      seconds=time.monotonic() - begun,
      sums={name: float(total) for name, total in sums.items()},
    )

  def _say_what_trains(self, state: TrainState, epoch: int) -> None:
    """One line where it is not what the epoch before trained."""
    now = self._task.settings_of(epoch).freezing
    if now != self._freezing:
      self._freezing = now
      self._display.line(freezing.describe(now, state.params))

  def _note_first_step(self, sums, since: float) -> None:
    jax.block_until_ready(sums)
    self._notice.starting = False
    self._since = None
    note(self._workdir, {'seconds_to_first_step': time.time() - since})

  def _show(self, epoch, sums, taken, timed) -> None:
    per_epoch = self._task.feed.steps_per_epoch
    done = epoch * per_epoch + taken
    loss = step_lib.means(sums)['loss']  # waits for the block
    self._heartbeat.beat(step=done, epoch=epoch + 1)
    moment, before = timed
    rate = (taken - before) / (time.monotonic() - moment)
    self._display.running(
      epoch + 1,
      done,
      loss,
      rate * self._config.train.batch_size,
      (self._task.total_steps - done) / rate,
    )

  def _require_finite(
    self, state: TrainState, epoch: int, finite: bool
  ) -> None:
    """Stops before anything of a diverged epoch is written."""
    if finite:
      return
    self._writer.wait_everywhere()
    sealed = checkpoint.checkpoints(self._workdir)
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
