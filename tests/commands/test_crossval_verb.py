"""The verb `crossval`: left, gone on with, scored; and its mistakes."""

import json

import pytest
from small_config import small_config

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.training import cores

# Of ml_collections, which loads config files so.
pytestmark = pytest.mark.filterwarnings(
  'ignore:the load_module:DeprecationWarning'
)


@pytest.fixture
def place(tmp_path, monkeypatch):
  """The current folder, with a config; JAX keeps the devices it has."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(cores, 'spread', lambda parts: None)
  config = small_config(tmp_path / 'data')
  config.data.protocol = 'kfold_subjects'
  config.data.folds = 2
  config.data.validation_share = 0.2
  files.write_json(tmp_path / 'folds.json', config_lib.to_json(config))
  return tmp_path


def test_folds_are_left_gone_on_with_and_scored(place, command_line):
  arguments = ('crossval', '--config=folds.json', '--workdir=runs/folds')
  status, said, why = command_line(*arguments, '--max_seconds=1e-6')
  assert status == 0, why
  assert 'stopped at the time limit, to be resumed by the same command' in said
  assert not (place / 'runs' / 'folds' / 'report.html').exists()
  status, said, why = command_line(*arguments, '--json=folds_figures.json')
  assert status == 0, why
  assert 'over folds' in said
  assert 'report: ' in said
  figures = json.loads((place / 'folds_figures.json').read_text())
  assert [fold['fold'] for fold in figures['folds']] == [0, 1]
  assert figures['out_of_fold']['n'] == 160
  assert (place / 'runs' / 'folds' / 'report.html').exists()


@pytest.mark.parametrize(
  ('arguments', 'line'),
  [
    (('folds.json',), "crossval takes no argument 'folds.json'"),
    (('--workdir=x',), '--config is missing; expected a config file'),
    (('--config=folds.json',), '--workdir is missing; expected a folder'),
    (
      ('--config=folds.json', '--workdir=x', '--json=none/x.json'),
      'cannot write --json none/x.json: no such folder',
    ),
    (
      ('--config=folds.json', '--workdir=x', '--config.data.folds=1'),
      'data.folds is 1',
    ),
  ],
)
def test_mistakes(place, complaint, arguments, line):
  assert line in complaint('crossval', *arguments)
  assert not (place / 'x').exists()


def test_a_dry_run_says_what_it_takes_and_makes_no_workdir(place, command_line):
  there = sorted(place.iterdir())
  status, said, why = command_line(
    'crossval', '--config=folds.json', '--dry_run', '--seeds=2'
  )
  assert status == 0, why
  assert 'memory, predicted ' in said
  assert 'images/s, of 4 runs side by side' in said
  assert 'for 1 wave of at most 4 runs' in said
  assert set(place.iterdir()) - set(there) <= {place / 'data'}
