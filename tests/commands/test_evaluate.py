"""The verb `evaluate` from the command line: mistakes are one line."""

import subprocess
import sys

import pytest

WORKDIR = '--workdir={}'


@pytest.mark.parametrize(
  ('arguments', 'said'),
  [
    ((), '--workdir is missing'),
    ((WORKDIR, 'more'), "takes no argument 'more'"),
    ((WORKDIR, '--json=no/such/file'), 'no such folder'),
    ((WORKDIR, '--tta=mirror'), "--tta names 'mirror'"),
    ((WORKDIR, '--split=test'), 'is no workdir'),
    ((WORKDIR, '--class_map=a:b'), '--class_map is for another data set'),
    ((WORKDIR, '--option=size=48'), '--option is for another data set'),
    ((WORKDIR, '--dataset=rafdb', '--class_map=a'), "--class_map has 'a'"),
    ((WORKDIR, '--dataset=rafdb', '--option=a'), '--option=a: NAME=VALUE'),
    ((WORKDIR, '--dataset=rafdb'), 'is no workdir'),
  ],
)
def test_mistakes_are_one_line(arguments, said, tmp_path):
  filled = [argument.format(tmp_path) for argument in arguments]
  done = subprocess.run(
    [sys.executable, '-m', 'fer_jax', 'evaluate', *filled],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2
  assert said in done.stderr
  assert done.stderr.count('\n') == 1
