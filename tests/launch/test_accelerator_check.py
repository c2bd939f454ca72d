"""The check of an accelerator, rehearsed without one."""

import json
import os
import pathlib
import subprocess
import sys
import tarfile

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'

# As small as `small_config`.
TRAIN_FLAGS = (
  '--config.data.options.images=160 --config.data.image_size=16 '
  '--config.model.filters=(4,) '
  '--config.model.blocks=(1,) --config.model.stem_filters=(4,) '
  '--config.model.units=4 --config.model.head=(4,) '
  '--config.train.batch_size=32 --config.train.epochs=2'
)


def check(out, **environ):
  data = ('FER2013_CSV', 'FER_JAX_DATA')
  return subprocess.run(
    ['bash', LAUNCH / 'accelerator_check.sh', out],
    capture_output=True,
    text=True,
    check=False,
    env={
      **{k: v for k, v in os.environ.items() if k not in data},
      'FER_JAX_VENV': sys.prefix,
      'EXTRAS': '',
      'REHEARSE': 'yes',
      **environ,
    },
  )


def test_a_part_that_fails_leaves_the_others_and_all_is_packed(tmp_path):
  out = tmp_path / 'out'
  done = check(
    out,
    PARTS='steps tests training',
    ROUNDS='0',
    TESTS='tests/test_files.py',
    TEST_WORKERS='0',
    TRAIN_FLAGS=TRAIN_FLAGS,
  )
  assert done.returncode == 1, done.stdout + done.stderr
  summary = json.loads((out / 'summary.json').read_text())
  ended = {name: part['exit_status'] for name, part in summary.items()}
  assert ended == {'steps': 2, 'tests': 0, 'training': 0, 'evaluation': 0}, (
    done.stdout
  )
  metrics = json.loads((out / 'metrics_test.json').read_text())
  assert metrics['environment']['platform'] == 'cpu'
  with tarfile.open(out / 'results.tar.gz') as packed:
    names = {name.removeprefix('./') for name in packed.getnames()}
  assert {
    *('summary.json', 'environment.log', 'steps.log', 'tests.xml', 'run.json'),
    *('metrics_validation.json', 'metrics_test.json', 'metrics.jsonl'),
  } <= names
  assert not any(name.startswith('work') for name in names)


def test_mistakes_are_told_before_the_work(tmp_path):
  done = check(tmp_path / 'a', PARTS='test')
  assert done.returncode == 1
  assert 'PARTS: test is not one of steps, recurrent' in done.stderr
  done = check(tmp_path / 'b', REHEARSE='', JAX_PLATFORMS='cpu')
  assert done.returncode == 1
  assert 'JAX finds no accelerator here' in done.stderr
