"""The verb `compare` from the command line."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fer_jax.evaluation import workdir as workdir_lib


@pytest.fixture
def workdirs(tmp_path):
  """Two runs right on 18 and on 9 of 20 test examples."""
  labels = np.arange(20) % 2
  paths = tmp_path / 'a', tmp_path / 'b'
  for path, right in zip(paths, (18, 9), strict=True):
    path.mkdir()
    config = {'seed': 0, 'model': {'name': f'model_{path.name}'}}
    (path / 'config.json').write_text(json.dumps(config))
    classes = np.where(np.arange(20) < right, labels, 1 - labels)
    workdir_lib.write_evaluation(
      path,
      workdir_lib.Evaluation(
        'test',
        {'n': 20, 'class_names': ['sad', 'happy']},
        np.array([f'face{n}' for n in range(20)]),
        2.0 * np.eye(2)[classes],
        labels,
        None,
      ),
    )
  return paths


def test_figures_are_printed_and_written(workdirs, tmp_path):
  path = tmp_path / 'figures.json'
  before = sorted(tmp_path.rglob('*'))
  command = [sys.executable, '-m', 'fer_jax', 'compare', *workdirs]
  done = subprocess.run(
    [*command, f'--json={path}'], capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert sorted(tmp_path.rglob('*')) == sorted([*before, path])
  result = json.loads(path.read_text())
  (pair,) = result['pairs']
  assert pair['accuracy']['difference'] == pytest.approx(0.45)
  # 9 of 9 discordant examples are the first's: p = 2 / 2**9.
  assert pair['mcnemar'] == {
    'b': 9,
    'c': 0,
    'p': pytest.approx(2 / 512),
    'p_holm': pytest.approx(2 / 512),
  }
  assert set(result['definitions']) >= {'interval', 'mcnemar', 'kappa'}
  assert 'a is better than b by 45.00 points (p = 0.0039)' in done.stdout


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    ((), 'got 0 workdirs; expected at least two'),
    (('{}/a', '{}/a'), 'is the same workdir as'),
    (('{}/a', '{}/c'), 'is no folder; expected the workdir of a run'),
    (('{}/a', '{}/b', '--split=validation'), 'evaluate --workdir='),
    (('{}/a', '{}/b', '--split=train'), "--split is 'train'"),
    (('{}/a', '{}/b', '--json=no/such/file'), 'no such folder'),
  ],
)
def test_mistakes_are_one_line(arguments, said, workdirs, tmp_path, complaint):
  filled = [argument.format(tmp_path) for argument in arguments]
  assert said in complaint('compare', *filled)
