"""A sweep file for two workers that wait for each other, or die.

Who has taken a trial waits until as many were ever taken as the environment
variable TAKEN says. Then it ends by SIGKILL if there is a file WORKDIR.ends_N_*
of its trial N, which it removes. What was taken by which process, recorded and
told stands in WORKDIR.log.
"""

import json
import os
import pathlib
import signal
import time

import kills
import small_sweeps
from absl import flags

from fer_jax.tuning import log_uniform, queue

WAIT_SECONDS = 120


def get_config():
  config = small_sweeps.config('')
  config.train.epochs = 1
  return config


def get_space():
  if not flags.FLAGS.workers:  # a worker, not who starts them
    _wait_for_each_other(pathlib.Path(flags.FLAGS.workdir))
  return {'optim.learning_rate': log_uniform(1e-3, 1e-1)}


def _wait_for_each_other(workdir):
  log = pathlib.Path(f'{workdir}.log')
  kills.log_to(log)
  head, more = queue.Trials.head, queue.Trials.more

  def wait(run):
    with log.open('a') as f:
      f.write(json.dumps(['taken', f'trials/{run.workdir.name}', os.getpid()]))
      f.write('\n')
    deadline = time.monotonic() + WAIT_SECONDS
    while len(list(run.workdir.parent.iterdir())) < int(os.environ['TAKEN']):
      assert time.monotonic() < deadline, 'the other worker does not come'
      time.sleep(0.05)
    for fuse in workdir.parent.glob(f'{workdir.name}.ends_{run.number}_*'):
      fuse.unlink()
      os.kill(os.getpid(), signal.SIGKILL)
    return run

  def waiting_head(trials):
    run = head(trials)
    return run and wait(run)

  def waiting_more(*asked):
    return [*map(wait, more(*asked))]

  queue.Trials.head, queue.Trials.more = waiting_head, waiting_more
