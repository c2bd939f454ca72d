"""Workers that are killed: no trial is lost and none is run twice."""

import json
import os
import pathlib
import subprocess
import sys

import kills
import small_sweeps

from fer_jax.training import checkpoint, records
from fer_jax.tuning import takeovers


def _killed(tmp_path, *arguments):
  """What `kills` did, with a cache of compiled programs for all its lives."""
  tests = str(pathlib.Path(__file__).parents[1])  # small_config
  done = subprocess.run(
    [sys.executable, kills.__file__, *map(str, arguments)],
    capture_output=True,
    text=True,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'PYTHONPATH': os.pathsep.join([tests, *sys.path]),
    },
  )
  assert done.returncode == 0, done.stderr
  return done


def test_kills_at_every_kind_of_moment(data_dir, tmp_path):
  workdir = tmp_path / 'sweep'
  done = _killed(tmp_path, data_dir, workdir)
  lives = [line for line in done.stdout.splitlines() if line.startswith('life')]
  assert len(lives) == len(kills.MOMENTS)
  for line in lives[:-1]:
    assert line.startswith('life -9 '), f'{done.stdout}\n{done.stderr}'
  assert lives[-1] == 'life 0 None', f'{done.stdout}\n{done.stderr}'

  content = json.loads((workdir / 'sweep.json').read_text())
  count = kills.SETTINGS['trials']
  assert [t['number'] for t in content['trials']] == list(range(count))
  assert {t['state'] for t in content['trials']} == {'complete', 'pruned'}
  for trial in content['trials']:
    whole = trial['epoch'] == trial['epochs']
    assert whole or trial['state'] == 'pruned', trial
  assert sorted(p.name for p in (workdir / 'trials').iterdir()) == [
    f'{n:04d}' for n in range(count)
  ]
  study = small_sweeps.stored(content)
  assert len(study.trials) == count
  assert len(content['finalists']) == 1
  runs = [t['workdir'] for t in content['trials']]
  runs += [run['workdir'] for run in content['finalists'][0]['runs']]
  for name in runs:
    epochs = [r['epoch'] for r in records.read_metrics(workdir / name)]
    assert epochs == list(range(1, len(epochs) + 1))
    assert checkpoint.latest_intact(workdir / name).epoch == len(epochs)

  # Nobody trained a trial that had been told, or told it twice.
  told = set()
  text = pathlib.Path(f'{workdir}.log').read_text()
  for kind, name, _ in map(json.loads, text.splitlines()):
    assert name not in told
    if kind == 'told':
      told.add(name)


def test_a_trial_that_ends_its_workers_fails_and_the_others_are_trained(
  data_dir, tmp_path
):
  done = _killed(tmp_path, data_dir, tmp_path / 'sweep', 1)
  said = [
    line
    for line in done.stdout.splitlines()
    if line.startswith(('trains', 'life'))
  ]
  # The third time each trains alone.
  assert said == [
    *('trains [0, 1]', 'life -9') * 2,
    *('trains [0]', 'trains [1]', 'life -9'),
    *('trains [2]', 'life 0'),
  ]
  content = json.loads((tmp_path / 'sweep' / 'sweep.json').read_text())
  states = [trial['state'] for trial in content['trials']]
  assert states == ['complete', 'failed', 'complete']
  study = small_sweeps.stored(content)
  assert study.trials[1].user_attrs['failure'] == takeovers.REASON
  assert f'trial 1: failed ({takeovers.REASON})' in done.stdout
