"""Kills workers and the database of a sweep at random, and counts the loss.

    PYTHONPATH=tests:tests/launch python tests/tuning/faults.py DATA_DIR \
      WORKDIR KILLS DATABASE_KILLS RECORD.json

Two workers on a PostgreSQL server of their own; whoever is killed is started
again. Of a trial is counted whether it was lost, told twice, or trained after
it had been told, and how many epochs were trained that a kill undid.
"""

import json
import os
import pathlib
import random
import signal
import sys
import time

import kills
import postgres_server
import small_sweeps

from fer_jax import files, provenance
from fer_jax.training import records
from fer_jax.tuning import sweep

SETTINGS = {
  'trials': 40,
  'population': 2,
  'prune': 'halving',
  'seeds': 2,
  'top': 2,
}
EPOCHS = 30
SECONDS = (2.0, 16.0)
"""From a kill to the next."""


def _worker(config, workdir, log, url) -> int:
  """The process id of one more worker, a fork."""
  pid = os.fork()
  if pid:
    return pid
  kills.log_to(log)
  try:
    settings = small_sweeps.settings(storage=url, **SETTINGS)
    finished, _ = sweep.run(config, kills.DOMAINS, workdir, settings)
    os._exit(0 if finished else 1)
  except BaseException:
    sys.excepthook(*sys.exc_info())
  os._exit(1)


def _torture(config, workdir, log, kill_count, database_count) -> dict:
  draws = random.Random(0)
  done = {'workers': 0, 'databases': 0}
  ends = []
  with postgres_server.running() as server:
    workers = {_worker(config, workdir, log, server.url) for _ in range(2)}
    due = time.monotonic() + SECONDS[1]
    while workers:
      time.sleep(0.2)
      for pid in list(workers):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if not ended:
          continue
        workers.remove(pid)
        ends.append(os.waitstatus_to_exitcode(status))
        if ends[-1] == -signal.SIGKILL:
          workers.add(_worker(config, workdir, log, server.url))
      if not workers or done['workers'] == kill_count or time.monotonic() < due:
        continue
      os.kill(draws.choice(sorted(workers)), signal.SIGKILL)
      done['workers'] += 1
      between = kill_count // (database_count + 1)
      left = database_count - done['databases']
      if left and done['workers'] % between == 0:
        server.kill()
        time.sleep(draws.uniform(0.5, 3))
        server.start()
        done['databases'] += 1
      due = time.monotonic() + draws.uniform(*SECONDS)
  return {'kills': done, 'exit_statuses': ends}


def _count(workdir, log) -> dict:
  content = files.read_json(workdir / 'sweep.json')
  runs = [t['workdir'] for t in content['trials']]
  runs += [r['workdir'] for f in content['finalists'] for r in f['runs']]
  kept = 0
  for name in runs:
    epochs = [r['epoch'] for r in records.read_metrics(workdir / name)]
    assert epochs == list(range(1, len(epochs) + 1)), (name, epochs)
    kept += len(epochs)
  told, twice, after, trained = set(), 0, 0, 0
  for kind, name, _ in map(json.loads, log.read_text().splitlines()):
    if kind == 'told':
      twice += name in told
      told.add(name)
    else:
      trained += 1
      after += name in told
  states = [t['state'] for t in content['trials']]
  for trial in content['trials']:
    whole = trial['epoch'] == trial['epochs']
    assert whole or trial['state'] != 'complete', trial
  ended = sum(states.count(s) for s in ('complete', 'pruned', 'failed'))
  return {
    'trials': len(states),
    'trials_lost': SETTINGS['trials'] - ended,
    'trials_told_twice': twice,
    'epochs_trained_after_told': after,
    'epochs_kept': kept,
    'epochs_trained': trained,
  }


def main(data_dir, workdir, kill_count, database_count, record):
  """Tortures a sweep and writes the record."""
  workdir = pathlib.Path(workdir)
  log = pathlib.Path(f'{workdir}.log')
  config = small_sweeps.config(data_dir)
  config.train.epochs = EPOCHS
  begun = time.monotonic()
  done = _torture(config, workdir, log, int(kill_count), int(database_count))
  found = {
    'what': 'kill -9 of workers and of PostgreSQL during a sweep',
    'command': 'python tests/tuning/faults.py DATA_DIR WORKDIR '
    f'{kill_count} {database_count} RECORD.json',
    'settings': {**SETTINGS, 'epochs': EPOCHS, 'workers': 2},
    **done,
    **_count(workdir, log),
    'seconds': round(time.monotonic() - begun),
    'versions': provenance.versions((*provenance.PACKAGES, 'optuna')),
  }
  files.write_json(pathlib.Path(record), found)
  print(json.dumps(found, indent=2))


if __name__ == '__main__':
  main(*sys.argv[1:])
