"""The training loop: from a config and a workdir to a trained run.

Reads top to bottom: `train` prepares a task, resumes where a workdir says so,
and runs its epochs, which `epochs.Run` trains.
"""

import contextlib
import dataclasses
import itertools
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from fer_jax import config as config_lib
from fer_jax import hosts, provenance
from fer_jax.training import (
  checkpoint,
  journal,
  preemption,
  records,
  rollback,
  task,
  warm_start,
)
from fer_jax.training.display import Display
from fer_jax.training.epochs import Run
from fer_jax.training.heartbeat import Heartbeat
from fer_jax.training.profile import Profile
from fer_jax.training.state import TrainState
from fer_jax.training.workdir import (
  claimed,
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
    journal.failures(workdir),
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
        diverged.note(workdir)
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
  # Nothing else may hold the state, of which an epoch begins with copies where
  # there are several devices.
  state, epoch, step, partial = _begin(config, workdir, prepared)
  unfinished = _unfinished(config, state, epoch)
  if unfinished and since is not None:
    journal.begun(workdir, step > 0, prepared.devices, epoch=epoch, step=step)
  rollbacks = rollback.noted(workdir, step)
  state = rollback.slowed(state, rollbacks)
  epochs = config.train.epochs
  with (
    checkpoint.Writer(workdir) as writer,
    contextlib.closing(
      records.Recorder(workdir, resumed_step=step, epochs=epoch)
    ) as recorder,
    contextlib.closing(
      Heartbeat(workdir, step=step, epoch=min(epoch + 1, epochs))
    ) as heartbeat,
  ):
    run = Run(
      config=config,
      prepared=prepared,
      workdir=workdir,
      display=Display(prepared.total_steps, epochs),
      recorder=recorder,
      writer=writer,
      heartbeat=heartbeat,
      notice=notice,
      profile=profile,
      rollbacks=len(rollbacks),
      since=since,
    )
    asked, late = notice.agreed(), False
    while _unfinished(config, state, epoch) and not (asked or late):
      state, partial = run.epoch(state, epoch, partial)
      epoch += 0 if partial else 1
      run.save(state, epoch, partial)
      asked = bool(partial) or notice.agreed()
      late = hosts.any_host(time.monotonic() > until)
    writer.wait_everywhere()
  finished = not _unfinished(config, state, epoch)
  if unfinished:
    journal.ended(workdir, finished, asked, epoch=epoch, step=int(state.step))
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


class _Beginning(NamedTuple):
  """Where a run is to go on from.

  Attributes:
    state: there.
    epoch: epochs completed.
    step: steps taken.
    partial: of the epoch under way; None between two.
  """

  state: TrainState
  epoch: int = 0
  step: int = 0
  partial: checkpoint.Partial | None = None


def _begin(
  config: config_lib.Config, workdir: pathlib.Path, prepared: task.Task
) -> _Beginning:
  """The newest checkpoint, or the beginning; run.json is written there."""
  sealed = checkpoint.latest_intact(workdir, noted=True)
  if sealed is None:
    begin = _Beginning(prepared.initial_state())
    origin = {'pretrained': warm_start.facts(config.train.pretrained)}
  else:
    require_same_data(workdir, prepared.facts)
    target = task.abstract_state(config, len(prepared.class_names))
    state = checkpoint.restore(sealed, target)
    begin = _Beginning(state, sealed.epoch, sealed.step, sealed.partial)
    origin = {}  # as run.json has it: the file may be gone by now
    print(f'resuming {workdir} after epoch {begin.epoch}, step {begin.step}')
  if _unfinished(config, begin.state, begin.epoch):
    write_run_json(
      workdir, config, prepared.facts, begin.state, origin, prepared.devices
    )
  return begin


def _unfinished(
  config: config_lib.Config, state: TrainState, epoch: int
) -> bool:
  """Whether there are epochs left to train after so many."""
  return epoch < config.train.epochs and bool(state.progress.active)
