"""Command lines in the process of the tests: a start takes seconds."""

import sys

import pytest
from absl import flags

from fer_jax import __main__ as program


def _forget_flags() -> None:
  """Those of our verbs; Grain's, once it is imported, have to stay."""
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    if module.startswith('fer_jax.'):
      for flag in tuple(defined):
        delattr(flags.FLAGS, flag.name)


@pytest.fixture
def command_line(capfd, monkeypatch):
  """Runs a command line: (exit status, what stdout got, what stderr got)."""

  def run(*arguments):
    monkeypatch.setattr(sys, 'argv', sys.argv)  # which the program changes
    try:
      status = program.main(['fer_jax', *map(str, arguments)])
    finally:
      _forget_flags()
    return status, *capfd.readouterr()

  return run


@pytest.fixture
def complaint(command_line):
  """Runs a command line that is a mistake: the one line that says so."""

  def run(*arguments):
    status, _, said = command_line(*arguments)
    assert status == 2, said
    assert said.count('\n') == 1, said
    return said

  return run
