"""The command line as its user meets it: in a process of its own."""

import os
import pathlib
import subprocess
import sys

import pytest

from fer_jax.__main__ import verbs

_BASE_CONFIG = """
from fer_jax import config

def get_config():
  return config.get_base()
"""


def _run(*arguments, cwd=None, **environ):
  return subprocess.run(
    [sys.executable, '-m', 'fer_jax', *arguments],
    capture_output=True,
    text=True,
    cwd=cwd,
    env=os.environ | environ,
    check=False,
  )


def _one_line(done) -> str:
  assert done.returncode == 2, done.stderr
  assert 'Traceback' not in done.stderr
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1, done.stderr
  return lines[0]


def test_without_a_verb_all_verbs_are_listed_with_a_line_each():
  done = _run()
  assert done.returncode == 0
  for verb in ('data', 'train', 'evaluate', 'report', 'summary', 'benchmark'):
    assert any(
      line.split()[:1] == [verb] and len(line.split()) > 3
      for line in done.stdout.splitlines()
    ), verb


def test_what_the_terminal_cannot_show_ends_no_verb():
  done = _run('data', 'list', '--data_dir=/d\xe9', PYTHONIOENCODING='ascii')
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith('data sets, builds in /d?\n')


@pytest.mark.parametrize('verb', verbs())
def test_every_verb_has_help(verb):
  done = _run(verb, '--help')
  assert done.returncode == 0, done.stderr
  assert '--' in done.stdout


@pytest.mark.parametrize(
  ('flags', 'kept'), [((), True), (('--compile_cache=',), False)]
)
def test_programs_are_kept_unless_told_otherwise(tmp_path, flags, kept):
  """Of a verb, and what it compiles; the place is the user's cache."""
  environ = {**os.environ, 'XDG_CACHE_HOME': str(tmp_path)}
  environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  del environ['JAX_COMPILATION_CACHE_DIR']
  compiles = """
import sys
from fer_jax.__main__ import main
main(sys.argv)
import jax
jax.jit(lambda x: x + 1)(1.0)
"""
  subprocess.run(
    [sys.executable, '-c', compiles, 'summary', '--model=basic_cnn', *flags],
    capture_output=True,
    env=environ,
    check=True,
  )
  place = tmp_path / 'fer_jax' / 'xla'
  assert (place.is_dir() and any(place.iterdir())) == kept


def test_an_unknown_verb_names_those_there_are():
  line = _one_line(_run('trian'))
  expected = f'expected one of {", ".join(verbs())}'
  assert line.endswith(f"{expected}; did you mean 'train'?")
  assert {'benchmark', 'compare', 'data', 'train'} <= set(verbs())


def test_missing_config_names_the_flag():
  assert '--config is missing' in _one_line(_run('train', '--workdir=x'))


@pytest.mark.parametrize(
  ('override', 'expected'),
  [
    (
      '--config.optim.learning_rat=1',
      "there is no field 'learning_rat'; did you mean 'learning_rate'?",
    ),
    ('--config.trian.epochs=1', "no field 'trian'; did you mean 'train'?"),
    (
      '--config.zzz=1',
      "there is no field 'zzz'; train --fields lists those there",
    ),
    (
      '--config.train.validation_share=0',
      "'validation_share'; did you mean --config.data.validation_share?",
    ),
    ('--config.model=residual_gru', 'as --config.model.FIELD=VALUE; train --f'),
    ('--config.train.epochs.x=1', "there is no field 'train.epochs.x'"),
  ],
)
def test_an_override_that_does_not_fit_is_told_as_it_was_given(
  tmp_path, override, expected
):
  path = tmp_path / 'c.py'
  path.write_text(_BASE_CONFIG)
  line = _one_line(
    _run('train', f'--config={path}', f'--workdir={tmp_path}/w', override)
  )
  assert line.startswith(f'fer_jax: {override}: '), line
  assert expected in line, line
  assert not (tmp_path / 'w').exists()


@pytest.mark.parametrize(
  ('flag', 'expected'),
  [
    ('--epochs=3', "flag 'epochs'. Did you mean: --config.train.epochs ?"),
    ('--model.filters=8', 'Did you mean: --config.model.filters ?'),
    ('--nonsense=3', "Unknown command line flag 'nonsense'"),
  ],
)
def test_a_field_that_is_given_as_a_flag_is_told_as_it_is_set(
  tmp_path, flag, expected
):
  path = tmp_path / 'c.py'
  path.write_text(_BASE_CONFIG)
  line = _one_line(_run('train', f'--config={path}', flag))
  assert line.startswith('fer_jax: Unknown command line'), line
  assert expected in line, line


def test_of_two_overrides_the_wrong_one_is_told(tmp_path):
  path = tmp_path / 'c.py'
  path.write_text(_BASE_CONFIG)
  line = _one_line(
    _run(
      'train',
      f'--config={path}',
      f'--workdir={tmp_path}/w',
      '--config.train.epochs=5',
      '--config.optim.epochs=3',
    )
  )
  assert "fer_jax: --config.optim.epochs=3: there is no field 'epochs'" in line


def test_a_missing_config_file_is_named(tmp_path):
  line = _one_line(
    _run('train', '--config=nowhere.py', f'--workdir={tmp_path}/w')
  )
  assert 'nowhere.py' in line


def test_a_config_may_be_given_as_a_word_of_its_own(tmp_path):
  line = _one_line(
    _run('train', '--config', 'nowhere.json', f'--workdir={tmp_path}/w')
  )
  assert 'there is no file nowhere.json' in line


def test_a_workdir_made_by_another_config_says_which_fields(tmp_path):
  from fer_jax import config as config_lib
  from fer_jax import files

  there = config_lib.get_base()
  there.seed = 5
  files.write_json(tmp_path / 'config.json', config_lib.to_json(there))
  (tmp_path / 'checkpoints' / '10').mkdir(parents=True)
  path = pathlib.Path(tmp_path) / 'c.py'
  path.write_text(_BASE_CONFIG)
  line = _one_line(_run('train', f'--config={path}', f'--workdir={tmp_path}'))
  assert 'seed is 5 there and 0 here' in line
