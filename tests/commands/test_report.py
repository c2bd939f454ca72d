"""The verb `report` from the command line."""

import json
import subprocess
import sys

import pytest


@pytest.fixture
def workdirs(tmp_path):
  for name, seed in (('a', 0), ('b', 1)):
    (tmp_path / name).mkdir()
    config = {'seed': seed, 'model': {'name': 'm'}}
    (tmp_path / name / 'config.json').write_text(json.dumps(config))
  return tmp_path / 'a', tmp_path / 'b'


def test_workdirs_come_as_flags_and_as_arguments(workdirs):
  first, second = workdirs
  command = [sys.executable, '-m', 'fer_jax', 'report', f'--workdir={first}']
  done = subprocess.run(
    [*command, second], capture_output=True, text=True, check=False
  )
  assert (done.returncode, done.stderr) == (0, '')
  written = first / 'comparison' / 'report.html'
  assert done.stdout == f'wrote {written}\n'
  assert '2 runs compared' in written.read_text()


def test_mistakes_are_one_line(tmp_path, complaint):
  assert '--workdir is missing' in complaint('report')
  assert 'is no workdir of a run' in complaint(
    'report', f'--workdir={tmp_path}'
  )
