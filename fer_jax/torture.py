"""A run killed at random moments, beside the same run left alone.

Drives the command line from outside. A small run on rendered faces is trained
twice undisturbed, which tells whether it repeats itself and how long things
take, and once in many lives: each is ended by SIGKILL, or asked to leave by
SIGTERM, one half of them at a moment of their start-up, one half at a moment
after their first step, checkpoints included. What is left at the end has to be
the undisturbed run's bit for bit: records (times aside), final state, best
checkpoint, the list of checkpoints.
"""

import collections
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.errors import UserError
from fer_jax.training import checkpoint, preemption, records, task

FOLDS = 3

LONGEST_SECONDS = 900.0
"""What a life may take that nobody ends."""

LEAVE_SECONDS = 10.0
"""What who is asked to leave may take for it."""

SHARE = 0.8
"""How much of a run its lives are planned to make, so that it is not over
before the last of them."""

TIMES = ('time', 'seconds', 'images_per_second', 'device_seconds')

PREDICTIONS = 'predictions_out_of_fold.npz'

TAIL_LINES = 15


@dataclasses.dataclass(frozen=True)
class Pace:
  """Of an undisturbed run: seconds until its first epoch, and of an epoch."""

  start: float
  epoch: float


def torture(
  workdir: pathlib.Path,
  *,
  kills: int,
  terms: int = 0,
  population: bool = False,
  seed: int = 0,
  say: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Tortures a run and compares.

  Args:
    workdir: a folder that is new or empty.
    kills: how many lives end by SIGKILL.
    terms: how many more end by SIGTERM.
    population: whether it is a cross-validation of `FOLDS` folds.
    seed: of the moments.
    say: takes lines about what happens.

  Returns:
    The record, JSON-ready; 'differences' is empty where all went well.

  Raises:
    UserError: the folder is not empty, or a run failed.
  """
  if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
    raise UserError(f'--workdir {workdir} is not empty; expected a new folder')
  workdir.mkdir(parents=True, exist_ok=True)
  jax.config.update('jax_platforms', 'cpu')  # the runs have the accelerator
  begun = time.monotonic()
  draws = random.Random(seed)
  ends = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
  draws.shuffle(ends)
  config = _config(workdir, population, epochs=max(4, len(ends) + 2))
  files.write_json(workdir / 'config.json', config_lib.to_json(config))
  runs = _Runs(workdir, 'crossval' if population else 'train')

  runs.undisturbed('undisturbed')  # compiles
  pace = runs.undisturbed('undisturbed_again')
  say(
    f'undisturbed: {config.train.epochs} epochs of {pace.epoch:.2f} s after '
    f'{pace.start:.1f} s of start-up'
  )
  different = differences(
    workdir / 'undisturbed', workdir / 'undisturbed_again'
  )
  found = collections.Counter()
  slowest = 0.0
  rounds = 0
  while ends:
    rounds += 1
    folder = workdir / f'disturbed_{rounds}'
    while ends:
      left = config.train.epochs - runs.epochs(folder)
      moment = _draw(draws, pace, left, len(ends))
      life = runs.life(folder, moment, ends[0])
      if life is None:  # it finished before its moment
        break
      ends.pop(0)
      found[life.amid] += 1
      slowest = max(slowest, life.leaving)
      different += life.complaints
      done = kills + terms - len(ends)
      if done % 10 == 0:
        say(f'{done} lives ended, {runs.epochs(folder)} epochs done')
    runs.finish(folder)
    different += differences(workdir / 'undisturbed', folder)
  return {
    'verb': runs.verb,
    'kills': kills,
    'terms': terms,
    'seed': seed,
    'epochs': config.train.epochs,
    'runs': rounds,
    'ended': dict(sorted(found.items())),
    'slowest_leave_seconds': round(slowest, 2),
    'identical': not different,
    'differences': different,
    'seconds': round(time.monotonic() - begun, 1),
    'environment': runs.environment(workdir / 'undisturbed'),
  }


def text(record: dict[str, Any]) -> str:
  """The record in a few lines."""
  amid = ', '.join(f'{n} amid {what}' for what, n in record['ended'].items())
  lines = [
    f'{record["verb"]}: {record["kills"]} SIGKILL, {record["terms"]} SIGTERM '
    f'({amid}) over {record["epochs"]} epochs in {record["seconds"]:.0f} s'
  ]
  if record['terms']:
    lines.append(
      f'slowest to leave when asked: {record["slowest_leave_seconds"]:.2f} s'
    )
  lines += record['differences']
  lines.append(
    'equal to the undisturbed run bit for bit'
    if record['identical']
    else f'{len(record["differences"])} differences from the undisturbed run'
  )
  return '\n'.join(lines)


def _config(
  workdir: pathlib.Path, population: bool, epochs: int
) -> config_lib.Config:
  """A run of a few kilobytes whose epochs take a fraction of a second."""
  config = config_lib.get_base(model='residual_gru', dataset='synthetic_faces')
  config.data.data_dir = str(workdir / 'data')
  config.data.options.images = 160
  config.data.image_size = 16
  config.model.stem_filters = (4,)
  config.model.filters = (4,)
  config.model.blocks = (1,)
  config.model.units = 4
  config.model.head = (4,)
  config.augment.erasing = 0.5
  config.optim.schedule = 'cosine'
  config.train.ema_decay = 0.9
  config.train.epochs = epochs
  config.train.batch_size = 16
  config.train.block_steps = 2
  if population:
    config.data.protocol = 'kfold_subjects'
    config.data.folds = FOLDS
    # Folds are saved when they improve, so each epoch does.
    config.train.select = 'last'
  return config


@dataclasses.dataclass(frozen=True)
class Moment:
  """When a life ends: seconds after its start, or after its first step."""

  trains: bool
  seconds: float


def _draw(draws: random.Random, pace: Pace, epochs: int, lives: int) -> Moment:
  """Such that the lives that are left make `SHARE` of the epochs left.

  Every other one makes epochs, half of its longest on average.
  """
  if draws.random() < 0.5:
    return Moment(False, draws.uniform(0, pace.start))
  longest = 4 * SHARE * epochs / lives * pace.epoch
  return Moment(True, draws.uniform(0, longest))


@dataclasses.dataclass(frozen=True)
class _Life:
  """How a life was ended.

  Attributes:
    amid: what it was doing.
    leaving: seconds from SIGTERM to its end.
    complaints: what went wrong.
  """

  amid: str
  leaving: float
  complaints: list[str]


class _Runs:
  """Starts, watches and ends processes of one verb and one config."""

  def __init__(self, workdir: pathlib.Path, verb: str):
    self.verb = verb
    self._workdir = workdir
    self._log = workdir / 'lives.log'

  def epochs(self, folder: pathlib.Path) -> int:
    """Epochs recorded by all of a folder's runs."""
    return min(len(records.read_metrics(run)) for run in self._runs(folder))

  def environment(self, folder: pathlib.Path) -> dict[str, Any]:
    """Where a folder's runs were made."""
    return files.read_json(self._runs(folder)[0] / 'run.json')['environment']

  def _runs(self, folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(folder.glob('fold_*')) or [folder]

  def undisturbed(self, name: str) -> Pace:
    """A run in one life."""
    folder = self._workdir / name
    begun = time.monotonic()
    process = self._start(folder)
    seen: list[float] = []
    while process.poll() is None:
      now = time.monotonic() - begun
      if self.epochs(folder) > len(seen):
        seen.append(now)
      self._require_alive(process, now)
      time.sleep(0.02)
    self._require(process.returncode == 0, process.returncode)
    if len(seen) < 2:
      raise UserError(f'{folder} was over before its epochs could be timed')
    epoch = (seen[-1] - seen[0]) / (len(seen) - 1)
    return Pace(start=seen[0] - epoch, epoch=epoch)

  def life(
    self, folder: pathlib.Path, moment: Moment, end: signal.Signals
  ) -> _Life | None:
    """A life that a signal ends; None where it was over before."""
    before = self._at(folder)
    kept = self._kept(folder)
    process = self._start(folder)
    begun = time.monotonic()
    while (
      moment.trains and process.poll() is None and self._at(folder) == before
    ):
      self._require_alive(process, time.monotonic() - begun)
      time.sleep(0.005)
    try:
      process.wait(timeout=moment.seconds)
    except subprocess.TimeoutExpired:
      process.send_signal(end)
    asked = time.monotonic()
    complaints = []
    try:
      process.wait(timeout=LEAVE_SECONDS + 5)
    except subprocess.TimeoutExpired:
      process.kill()
      process.wait()
    leaving = time.monotonic() - asked if end == signal.SIGTERM else 0.0
    status = process.returncode
    if status == 0:
      return None
    if end == signal.SIGTERM:
      # Before it listens, a process ends as any other.
      self._require(status in (preemption.REQUEUE_STATUS, -end), status)
      if leaving > LEAVE_SECONDS:
        complaints.append(f'{folder.name}: {leaving:.1f} s to leave')
    else:
      self._require(status == -end, status)
    for run, step in kept.items():
      sealed = checkpoint.latest_intact(run)
      if sealed is None or sealed.step < step:
        complaints.append(f'{run} lost its checkpoint of step {step}')
    amid = 'training' if self._at(folder) != before else 'start-up'
    if any(_unsealed(run) for run in self._runs(folder)):
      amid = 'a checkpoint'
    return _Life(amid, leaving, complaints)

  def finish(self, folder: pathlib.Path) -> None:
    """A last life that nobody ends."""
    process = self._start(folder)
    begun = time.monotonic()
    while process.poll() is None:
      self._require_alive(process, time.monotonic() - begun)
      time.sleep(0.05)
    self._require(process.returncode == 0, process.returncode)

  def _start(self, folder: pathlib.Path) -> subprocess.Popen:
    with self._log.open('ab') as log:
      return subprocess.Popen(
        [
          *[sys.executable, '-m', 'fer_jax', self.verb],
          f'--config={self._workdir / "config.json"}',
          f'--workdir={folder}',
          f'--compile_cache={self._workdir / "cache"}',
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ,
      )

  def _at(self, folder: pathlib.Path) -> list[Any]:
    """Something that changes when a step is taken."""
    return [
      [_read(run / 'run.json').get('seconds_to_first_step'), self.epochs(run)]
      for run in self._runs(folder)
    ]

  def _kept(self, folder: pathlib.Path) -> dict[pathlib.Path, int]:
    newest = {run: checkpoint.latest_intact(run) for run in self._runs(folder)}
    return {run: sealed.step for run, sealed in newest.items() if sealed}

  def _require_alive(self, process, seconds: float) -> None:
    if seconds > LONGEST_SECONDS:
      process.kill()
      process.wait()
      raise UserError(f'a life took more than {LONGEST_SECONDS:.0f} s')

  def _require(self, fine: bool, status: int) -> None:
    if fine:
      return
    words = self._log.read_text(errors='replace').splitlines()[-TAIL_LINES:]
    raise UserError(
      f'{self.verb} ended with status {status}; the last of {self._log}: '
      + ' | '.join(words)
    )


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    return json.loads(path.read_text())
  except (OSError, ValueError):
    return {}


def _unsealed(run: pathlib.Path) -> bool:
  """Whether a checkpoint of a run is half written."""
  root = checkpoint.directory(run)
  return root.is_dir() and any(
    not (path / checkpoint.MANIFEST).exists() for path in root.iterdir()
  )


def differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
  """What tells two runs, or two cross-validations, apart; [] for nothing."""
  folds = sorted(path.name for path in one.glob('fold_*'))
  if not folds:
    return run_differences(one, other)
  found = []
  for name in folds:
    found += run_differences(one / name, other / name)
  a, b = (files.read_npz(run / PREDICTIONS) for run in (one, other))
  found += [
    f'{other / PREDICTIONS}: {name} differs'
    for name in sorted({*a, *b})
    if name not in a or name not in b or a[name].tobytes() != b[name].tobytes()
  ]
  return found


def run_differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
  """What tells two runs apart, times left out; [] for nothing."""
  found = []
  there, here = _timeless(one), _timeless(other)
  epochs = [record['epoch'] for record in here]
  if epochs != list(range(1, len(there) + 1)):
    found.append(f'{other}: epochs {epochs} are logged')
  found += [
    f'{other}: the record of epoch {a["epoch"]} differs: {b} for {a}'
    for a, b in zip(there, here, strict=False)
    if a != b
  ]
  if checkpoint.steps(one) != checkpoint.steps(other):
    found.append(
      f'{other}: checkpoints {checkpoint.steps(other)} for '
      f'{checkpoint.steps(one)}'
    )
  for which in ('latest', 'best'):
    (step, a), (step_here, b) = _state(one, which), _state(other, which)
    if step != step_here:
      found.append(f'{other}: the {which} step is {step_here} for {step}')
    unlike = [
      jax.tree_util.keystr(path, simple=True, separator='.')
      for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
      )
      if np.asarray(x).tobytes() != np.asarray(y).tobytes()
    ]
    if unlike:
      found.append(
        f'{other}: {len(unlike)} arrays of the {which} checkpoint differ, '
        f'first {unlike[0]}'
      )
  return found


def _timeless(run: pathlib.Path) -> list[dict[str, Any]]:
  """Every line of the records: one that is torn fails here."""
  lines = (run / records.METRICS).read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in TIMES}
    for line in lines
  ]


def _state(run: pathlib.Path, which: str) -> tuple[int, Any]:
  sealed = (
    checkpoint.best_intact(run)
    if which == 'best'
    else checkpoint.latest_intact(run)
  )
  if sealed is None:
    raise UserError(f'{run} holds no intact checkpoint')
  config = config_lib.load_json(run / 'config.json')
  classes = files.read_json(run / 'run.json')['class_names']
  target = task.abstract_state(config, len(classes))
  return sealed.step, checkpoint.restore(sealed, target)
