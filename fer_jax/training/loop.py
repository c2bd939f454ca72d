"""The training loop: from a config and a workdir to a trained run.

Reads top to bottom: `train` prepares a task, resumes where a workdir says so,
and runs epochs; `Run.epoch` runs the blocks of one. Where
`optim.unfreeze_epochs` let more of the model train, the first such epoch
begins with a compilation.
"""

import contextlib
import dataclasses
import datetime
import fcntl
import functools
import logging
import math
import pathlib
import time
from typing import Any

import jax

from fer_jax import config as config_lib
from fer_jax import files, provenance
from fer_jax.errors import UserError
from fer_jax.training import (
  checkpoint,
  freezing,
  progress,
  records,
  task,
  warm_start,
)
from fer_jax.training import step as step_lib
from fer_jax.training.display import Display
from fer_jax.training.state import TrainState, all_finite, parameter_count

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a run ended.

  Attributes:
    epoch: epochs completed.
    step: steps taken.
    best_metric: best validation value of the selection metric; NaN where the
      last epoch is taken.
    best_step: its step.
    stopped_early: whether patience ran out.
    finished: whether nothing is left to do; False after a time limit.
  """

  epoch: int
  step: int
  best_metric: float
  best_step: int
  stopped_early: bool
  finished: bool


def train(
  config: config_lib.Config,
  workdir: str | pathlib.Path,
  *,
  max_seconds: float = 0.0,
) -> Outcome:
  """Trains a run, or goes on with the one that the workdir holds.

  Args:
    config: of `config.get_base`; validated here.
    workdir: made where it is missing.
    max_seconds: leaves in good order after the epoch that passes it, to be
      resumed by the same call; 0 is no limit.

  Raises:
    UserError: the config does not validate, the workdir is another config's,
      the data or the pretrained weights cannot be had, or the loss is not
      finite.
  """
  config_lib.validate(config)
  workdir = pathlib.Path(workdir)
  with claimed(workdir, config):
    return _train(config, workdir, max_seconds)


def _train(
  config: config_lib.Config, workdir: pathlib.Path, max_seconds: float
) -> Outcome:
  begun = time.monotonic()
  prepared = task.prepare(config)
  sealed = checkpoint.latest_intact(workdir)
  if sealed is None:
    epoch = 0
    state = prepared.initial_state()
    origin = {'pretrained': warm_start.facts(config.train.pretrained)}
  else:
    require_same_data(workdir, prepared.facts)
    epoch = sealed.epoch
    target = task.abstract_state(config, len(prepared.class_names))
    state = checkpoint.restore(sealed, target)
    origin = {}  # as run.json has it: the file may be gone by now
    print(f'resuming {workdir} after epoch {epoch}, step {sealed.step}')
  if epoch < config.train.epochs and bool(state.progress.active):
    write_run_json(workdir, config, prepared.facts, state, origin)

  display = Display(prepared.total_steps, config.train.epochs)
  recorder = records.Recorder(
    workdir, resumed_step=sealed.step if sealed else 0
  )
  writer = checkpoint.Writer(workdir)
  run = Run(config, prepared, display, recorder, writer, workdir)
  try:
    while epoch < config.train.epochs and bool(state.progress.active):
      state = run.epoch(state, epoch)
      epoch += 1
      writer.save(state, epoch=epoch)
      if max_seconds and time.monotonic() - begun > max_seconds:
        break
  finally:
    writer.close()
    recorder.close()
  return Outcome(
    epoch=epoch,
    step=int(state.step),
    best_metric=float(state.progress.best_metric),
    best_step=int(state.progress.best_step),
    stopped_early=not bool(state.progress.active),
    finished=epoch == config.train.epochs or not bool(state.progress.active),
  )


class Run:
  """One run's epochs: what stays the same between them."""

  def __init__(self, config, prepared, display, recorder, writer, workdir):
    self._config = config
    self._task = prepared
    self._display = display
    self._recorder = recorder
    self._writer = writer
    self._workdir = workdir
    self._first_step_seen = False
    self._freezing = freezing.NOTHING_FROZEN
    # A step's loss is of the parameters before it: an epoch's last update is
    # looked at here, or a diverged checkpoint would be the one to resume.
    self._finite = jax.jit(all_finite)
    self._update_progress = jax.jit(
      functools.partial(progress.update, settings=prepared.selection)
    )

  def epoch(self, state: TrainState, epoch: int) -> TrainState:
    """Trains one epoch, validates, records.

    Args:
      state: before the epoch; donated.
      epoch: counts from 0.

    Raises:
      UserError: the loss is not finite.
    """
    self._say_what_trains(state, epoch)
    begun = time.monotonic()
    totals = step_lib.zero_sums()
    previous = None
    for block in self._task.feed.train_epoch(state, epoch):
      state, sums, taken = block
      # One block behind: reading these sums waits for a block that is done
      # while the next one already runs.
      # A first step's time is compilation and tells nothing of the rate.
      if previous is not None and previous[1] > 1:
        self._show(epoch, *previous, begun)
      totals = sums
      previous = (sums, taken)
      self._note_first_step(sums)
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
    return state

  def _say_what_trains(self, state: TrainState, epoch: int) -> None:
    """One line where it is not what the epoch before trained."""
    now = self._task.settings_of(epoch).freezing
    if now != self._freezing:
      self._freezing = now
      self._display.line(freezing.describe(now, state.params))

  def _note_first_step(self, sums) -> None:
    if self._first_step_seen:
      return
    self._first_step_seen = True
    jax.block_until_ready(sums)
    seconds = time.time() - provenance.process_start()
    path = self._workdir / 'run.json'
    files.write_json(
      path, {**files.read_json(path), 'seconds_to_first_step': seconds}
    )

  def _show(self, epoch, sums, taken, begun) -> None:
    per_epoch = self._task.feed.steps_per_epoch
    done = epoch * per_epoch + taken
    loss = step_lib.means(sums)['loss']  # waits for the block
    rate = taken / (time.monotonic() - begun)
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
    self._writer.wait()
    sealed = checkpoint.checkpoints(self._workdir)
    kept = f'{sealed[-1].path} is kept' if sealed else 'no checkpoint was made'
    raise UserError(
      f'the loss is not finite at step {int(state.step)} (epoch {epoch + 1}); '
      f'{kept}; a smaller optim.learning_rate or optim.clip_norm may help'
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


@contextlib.contextmanager
def claimed(workdir: pathlib.Path, config: config_lib.Config):
  """The workdir, this config's and this process's alone while it trains.

  Raises:
    UserError: another process trains in it, it is another config's (naming
      the fields that differ), or it cannot be written.
  """
  if workdir.exists() and not workdir.is_dir():
    raise UserError(f'--workdir {workdir} is a file; expected a folder')
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    lock = (workdir / '.lock').open('w')
  except OSError as error:
    raise UserError(
      f'cannot write to --workdir {workdir}: {error.strerror}'
    ) from error
  with lock:  # the kernel frees it however the process ends
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise UserError(
        f'another process trains in --workdir {workdir}; wait for it, or '
        'choose another'
      ) from None
    _write_config(workdir, config)
    yield


def _write_config(workdir: pathlib.Path, config: config_lib.Config) -> None:
  """Writes config.json, unless a run of another config has left its mark."""
  path = workdir / 'config.json'
  if path.exists():
    differ = config_lib.differences(config_lib.load_json(path), config)
    if not differ:
      return
    if checkpoint.steps(workdir):
      raise UserError(
        f'{workdir} was made by another config: {"; ".join(differ)}; '
        'choose another --workdir or the same config'
      )
    # Nothing was trained yet: whatever was wrong is being put right.
  files.write_json(path, config_lib.to_json(config))


def require_same_data(workdir: pathlib.Path, facts: dict[str, Any]) -> None:
  """Checks that a run is resumed on the examples that it began with.

  Raises:
    UserError: the data set or the partition is another one.
  """
  earlier = files.read_json(workdir / 'run.json')
  for what, there, here in (
    ('checksum', earlier.get('dataset'), facts['dataset']),
    ('digest', earlier.get('protocol'), facts['protocol']),
  ):
    if (there or {}).get(what) != here[what]:
      raise UserError(
        f'{workdir} was trained on {here["name"]} with {what} '
        f'{(there or {}).get(what)}, but the one found here has {here[what]}: '
        'examples may have changed sides; build that source, or choose '
        'another --workdir'
      )


def write_run_json(
  workdir: pathlib.Path,
  config: config_lib.Config,
  facts: dict[str, Any],
  state: TrainState,
  origin: dict[str, Any],
) -> None:
  """Writes where, on what, from what and under which protocol the run is made.

  Args:
    workdir: of the run.
    config: of the run.
    facts: of `task.facts_of`.
    state: of any step.
    origin: what the first state came from, where this process made it.
  """
  path = workdir / 'run.json'
  earlier = files.read_json(path) if path.exists() else {}
  files.write_json(
    path,
    {
      **earlier,
      'model': config.model.name,
      'parameters': parameter_count(state.params),
      'frozen': list(config.optim.freeze),
      **origin,
      **facts,
      'environment': provenance.environment(),
    },
  )
