"""The verb `evaluate` from the command line: mistakes are one line."""

import json
import subprocess
import sys

import pytest

from fer_jax.evaluation import evaluate, summary
from fer_jax.evaluation.workdir import UnsavedError

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
def test_mistakes_are_one_line(arguments, said, tmp_path, complaint):
  filled = [argument.format(tmp_path) for argument in arguments]
  assert said in complaint('evaluate', *filled)


def test_figures_that_cannot_be_saved_are_printed(
  tmp_path, monkeypatch, command_line
):
  def unsaved(*_, **__):
    raise UnsavedError('cannot write it', {'accuracy': 0.5})

  monkeypatch.setattr(evaluate, 'evaluate', unsaved)
  monkeypatch.setattr(summary, 'text', str)
  status, said, why = command_line(
    'evaluate', f'--workdir={tmp_path}', f'--json={tmp_path / "figures.json"}'
  )
  assert (status, said) == (2, "{'accuracy': 0.5}\n")
  assert why == 'fer_jax: cannot write it\n'
  assert json.loads((tmp_path / 'figures.json').read_text()) == {
    'accuracy': 0.5
  }


def test_the_program_prints_no_more_than_that(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'fer_jax', 'evaluate', f'--workdir={tmp_path}'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (2, '')
  assert 'is no workdir' in done.stderr
  assert done.stderr.count('\n') == 1
