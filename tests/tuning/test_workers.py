"""`sweep --workers=2` as its user starts it: its workers are processes."""

import json
import os
import pathlib
import sys

import forked
import small_sweeps

from fer_jax.training import records

TRIALS = ['trials/0000', 'trials/0001', 'trials/0002']


def _sweep(data_dir, workdir, taken):
  """(exit status, what it said) of the command; that of a failure is shown."""
  file = pathlib.Path(__file__).with_name('waiting_sweep.py')
  status, said, complaints = forked.Command(
    *('sweep', f'--config={file}', f'--config.data.data_dir={data_dir}'),
    *(f'--workdir={workdir}', '--workers=2', '--trials=3'),
    *('--population=1', '--seeds=0'),
    environ={'PYTHONPATH': os.pathsep.join(sys.path), 'TAKEN': str(taken)},
  ).result()
  print(said, complaints)
  return status, said


def _logged(workdir, kind):
  """(trial, what was noted of it) of each entry of a kind."""
  lines = pathlib.Path(f'{workdir}.log').read_text().splitlines()
  return [tuple(rest) for k, *rest in map(json.loads, lines) if k == kind]


def test_workers_that_are_killed_are_told_and_the_same_command_finishes(
  data_dir, tmp_path
):
  """Who takes the second trial is killed, and then who takes it over."""
  workdir = tmp_path / 'sweep'
  for time in ('once', 'again'):
    (tmp_path / f'sweep.ends_1_{time}').touch()
  status, said = _sweep(data_dir, workdir, taken=2)
  assert status == 1
  for number in (0, 1):
    assert (
      f'worker {number} was ended by signal 9; the same command takes over'
    ) in said
  assert 'best: trial ' not in said
  taken = _logged(workdir, 'taken')
  assert sorted(trial for trial, _ in taken) == [*TRIALS[:2], TRIALS[1]]
  assert dict(taken)[TRIALS[0]] == taken[-1][1]  # took over the other's
  assert _logged(workdir, 'told') == [(TRIALS[0], 'complete')]

  status, said = _sweep(data_dir, workdir, taken=3)
  assert status == 0
  assert 'was ended' not in said
  assert said.count('best: trial ') == 1
  assert '3 of 3 trials (3 complete)' in said
  assert f'report: {workdir / "report.html"}' in said
  assert (workdir / 'report.html').exists()
  again = _logged(workdir, 'taken')[3:]
  assert sorted(trial for trial, _ in again) == TRIALS[1:]
  assert len({process for _, process in again}) == 2

  content = json.loads((workdir / 'sweep.json').read_text())
  assert [t['workdir'] for t in content['trials']] == TRIALS
  assert {t['state'] for t in content['trials']} == {'complete'}
  stored = small_sweeps.stored(content).trials
  assert [t.state.name for t in stored] == ['COMPLETE'] * 3
  assert sorted(_logged(workdir, 'told')) == [(t, 'complete') for t in TRIALS]
  assert sorted(_logged(workdir, 'epoch')) == [(t, 1) for t in TRIALS]
  for trial in TRIALS:
    assert len(records.read_metrics(workdir / trial)) == 1
  assert content['best'] is not None
