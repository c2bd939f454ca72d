"""The verb `evaluate` from the command line: mistakes are one line."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    ((), '--workdir is missing'),
    (('--workdir=.', 'more'), "takes no argument 'more'"),
    (('--workdir=.', '--json=no/such/file'), 'no such folder'),
    (('--workdir=.', '--tta=mirror'), "--tta names 'mirror'"),
    (('--workdir=.', '--split=test'), 'is no workdir'),
  ],
)
def test_mistakes_are_one_line(arguments, said, tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'fer_jax', 'evaluate', *arguments],
    capture_output=True,
    text=True,
    check=False,
    cwd=tmp_path,
  )
  assert done.returncode == 2
  assert said in done.stderr
  assert done.stderr.count('\n') == 1
