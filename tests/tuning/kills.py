"""A sweep in many lives, each ended by SIGKILL at a moment of its own.

    python kills.py DATA_DIR WORKDIR
    python kills.py DATA_DIR WORKDIR TRIAL

With a trial's number, every life ends as it begins to train that trial.
Each life is a fork of this process, which has everything imported and has not
used JAX. Appends to WORKDIR.log, as JSON lines, every epoch that was recorded
and every trial that was told. Prints how each life ended.
"""

import json
import os
import pathlib
import signal
import sys
import warnings

import small_sweeps

from fer_jax.training import checkpoint, population, records
from fer_jax.training.desk import Desk
from fer_jax.tuning import log_uniform, queue, study, summary, sweep, uniform

DOMAINS = {
  'optim.learning_rate': log_uniform(1e-3, 1e-1),
  'model.dropout': uniform(0.0, 0.5),
}
SETTINGS = {
  'trials': 6,
  'population': 2,
  'prune': 'halving',
  'seeds': 1,
  'top': 1,
}

MOST_LIVES = 6
"""Of a sweep with a trial that ends all of them."""

# Whose n-th call, and whether before or after it.
MOMENTS = (
  (study.Study, 'parameters', 1, 'before'),  # asked for, no parameters
  (study.Study, 'parameters', 2, 'after'),  # not claimed
  (queue.Trials, '_claimed', 2, 'after'),  # no first step
  (Desk, 'write', 1, 'before'),
  (checkpoint, '_digests', 1, 'before'),  # a checkpoint without manifest
  (Desk, 'write', 1, 'after'),
  (study.Study, 'report', 2, 'after'),
  (study.Study, 'tell', 1, 'before'),
  (study.Study, 'tell', 1, 'after'),
  (study.Study, 'tell', 2, 'before'),
  (queue.Repeats, 'end', 1, 'before'),
  (summary, 'write', 1, 'before'),
  None,
)


def _armed(owner, name, count, when):
  """Kills this process at the n-th call of a function."""
  original = getattr(owner, name)
  calls = 0

  def wrapped(*arguments, **options):
    nonlocal calls
    calls += 1
    if calls == count and when == 'before':
      os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments, **options)
    if calls == count:
      os.kill(os.getpid(), signal.SIGKILL)
    return result

  setattr(owner, name, wrapped)


def _logged(owner, name, log, entry):
  """Writes an entry of a function's arguments after each call."""
  original = getattr(owner, name)

  def wrapped(*arguments, **options):
    result = original(*arguments, **options)
    with log.open('a') as f:
      f.write(json.dumps(entry(*arguments, **options)) + '\n')
    return result

  setattr(owner, name, wrapped)


def log_to(log):
  """Notes every epoch that is recorded and every trial that is told."""
  _logged(
    records.Recorder,
    'write',
    log,
    lambda recorder, record: [
      'epoch',
      '/'.join(pathlib.Path(recorder._file.name).parts[-3:-1]),
      record['epoch'],
    ],
  )
  _logged(
    queue.Trials,
    'end',
    log,
    lambda _, run, ending: ['told', f'trials/{run.number:04d}', ending.state],
  )


def _live(config, workdir, log, moment):
  log_to(log)
  if moment:
    _armed(*moment)
  finished, _ = sweep.run(
    config, DOMAINS, workdir, small_sweeps.settings(**SETTINGS)
  )
  assert finished


def _deadly(number):
  """Kills this process where a population of that trial begins to train."""
  original = population.Population.blocks

  def blocks(together):
    # Those that have ended keep their places.
    here = together.number[together.training].tolist()
    print('trains', here, flush=True)
    if number in here:
      os.kill(os.getpid(), signal.SIGKILL)
    return original(together)

  population.Population.blocks = blocks


def _live_with(number, config, workdir):
  _deadly(number)
  finished, _ = sweep.run(
    config,
    DOMAINS,
    workdir,
    small_sweeps.settings(trials=3, population=2, search='random'),
  )
  assert finished


def _life(live, *arguments):
  """How a fork ends that calls a function."""
  sys.stdout.flush()
  pid = os.fork()
  if not pid:
    try:
      live(*arguments)
    except BaseException:
      sys.excepthook(*sys.exc_info())
      os._exit(1)
    os._exit(0)
  return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(data_dir, workdir, trial=None):
  config = small_sweeps.config(data_dir)
  if trial is not None:
    config.train.epochs = 1
    for _ in range(MOST_LIVES):
      status = _life(_live_with, int(trial), config, pathlib.Path(workdir))
      print('life', status)
      if status != -signal.SIGKILL:
        break
    return
  config.train.epochs = 3
  config.train.select = 'loss'  # no two of which are equal, so some are pruned
  log = pathlib.Path(f'{workdir}.log')
  for moment in MOMENTS:
    status = _life(_live, config, workdir, log, moment)
    print('life', status, moment and f'{moment[1]} {moment[2]} {moment[3]}')


if __name__ == '__main__':
  warnings.simplefilter('error')  # JAX warns of a fork after its first use
  main(*sys.argv[1:])
