"""Scripts that work for hours say at once what cannot be."""

import pathlib
import runpy
import subprocess
import sys
import types

import pytest

from fer_jax.benchmark import long_stream, scaling

LAUNCH = pathlib.Path(__file__).parents[2] / 'launch'


@pytest.mark.parametrize(
  ('script', 'arguments', 'said'),
  [
    ('mutants.py', ['--again'], '--again: --json has no record of fer_jax/'),
    ('mutants.py', ['--json=missing/x.json'], 'no such folder'),
    ('fuzz.py', ['--only=hdf6'], "no reader 'hdf6'; did you mean 'hdf5'?"),
    ('fuzz.py', ['--json=missing/x.json'], 'no such folder'),
  ],
)
def test_a_mistake_is_told_before_the_work(
  script, arguments, said, monkeypatch, capsys
):
  monkeypatch.chdir(LAUNCH)
  monkeypatch.setattr(sys, 'path', [*sys.path])
  monkeypatch.setattr(sys, 'argv', [script, *arguments])
  # Making the fuzzer's files takes seconds.
  targets = types.SimpleNamespace(targets=lambda: {'hdf5': None})
  monkeypatch.setitem(sys.modules, 'fuzz_targets', targets)
  monkeypatch.setitem(sys.modules, 'fuzz_running', targets)
  with pytest.raises(SystemExit) as left:
    runpy.run_path(str(LAUNCH / script), run_name='__main__')
  assert left.value.code == 2
  assert said in capsys.readouterr().err


@pytest.mark.parametrize(
  ('program', 'arguments'),
  [
    (scaling, ['configs/quickstart.py']),
    (long_stream, ['--folder=missing']),
  ],
)
def test_a_record_with_no_place_is_told_before_the_work(
  program, arguments, monkeypatch, capsys
):
  monkeypatch.setenv('XLA_FLAGS', '')
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  arguments = ['program', *arguments, '--json=missing/x.json']
  monkeypatch.setattr(sys, 'argv', arguments)
  with pytest.raises(SystemExit):
    program.main()
  assert 'no such folder' in capsys.readouterr().err


def test_an_unknown_variant_is_told_before_the_backbone_is_trained(tmp_path):
  done = subprocess.run(
    [
      *[sys.executable, LAUNCH / 'recurrence_study.py', '--variants=pointwize'],
      f'--workdir={tmp_path}/study',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode
  assert 'recurrence' in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (tmp_path / 'study').exists()
