"""Workers that are killed: no trial is lost and none is run twice."""

import json
import os
import pathlib
import subprocess
import sys

import kills
import small_sweeps

from fer_jax.training import checkpoint, records


def test_kills_at_every_kind_of_moment(data_dir, tmp_path):
  workdir = tmp_path / 'sweep'
  done = subprocess.run(
    [sys.executable, kills.__file__, str(data_dir), str(workdir)],
    capture_output=True,
    text=True,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'compiled'),
      'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
      'PYTHONPATH': str(pathlib.Path(__file__).parents[1]),  # small_config
    },
  )
  assert done.returncode == 0, done.stderr
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
