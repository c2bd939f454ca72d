"""The verb `report` from the command line."""

import json
import subprocess
import sys

import pytest


def _report(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'fer_jax', 'report', *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture
def workdirs(tmp_path):
  for name, seed in (('a', 0), ('b', 1)):
    (tmp_path / name).mkdir()
    config = {'seed': seed, 'model': {'name': 'm'}}
    (tmp_path / name / 'config.json').write_text(json.dumps(config))
  return tmp_path / 'a', tmp_path / 'b'


def test_workdirs_come_as_flags_and_as_arguments(workdirs):
  first, second = workdirs
  done = _report(f'--workdir={first}', second)
  assert (done.returncode, done.stderr) == (0, '')
  assert done.stdout == f'wrote {first / "report.html"}\n'
  assert '2 runs compared' in (first / 'report.html').read_text()


def test_mistakes_are_one_line(tmp_path):
  for arguments, said in (
    ((), '--workdir is missing'),
    ((f'--workdir={tmp_path}',), 'is no workdir of a run'),
  ):
    done = _report(*arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count('\n') == 1
