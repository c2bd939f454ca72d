"""Runs whose epoch is fixed beforehand, with and without validation."""

import json

import numpy as np
import pytest

from fer_jax import config as config_lib
from fer_jax.errors import UserError
from fer_jax.evaluation import evaluate, report
from fer_jax.training import checkpoint, loop, progress

pytestmark = pytest.mark.usefixtures('shared_programs')


@pytest.fixture
def config(tiny_config):
  config = tiny_config
  config.data.protocol = 'holdout_images'
  config.data.validation_share = 0.0
  config.train.epochs = 3
  config.train.select = 'last'
  return config


def test_without_validation_the_last_epoch_is_reported(config, tmp_path):
  outcome = loop.train(config, tmp_path)
  assert outcome.finished
  assert outcome.best_step == outcome.step == 12
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert all('validation' not in record for record in records)
  assert checkpoint.best_intact(tmp_path).step == 12
  metrics = evaluate.evaluate(tmp_path, 'test')
  assert metrics['checkpoint']['which'] == 'last'
  assert metrics['n'] == 32
  assert metrics['protocol']['options'] == {'validation_share': 0.0}
  empty = r'validation split .* has no examples; --split=test has 32$'
  with pytest.raises(UserError, match=empty):
    evaluate.evaluate(tmp_path, 'validation')
  assert report.write_report([tmp_path]).exists()


@pytest.mark.parametrize('residence', ['device', 'stream'])
def test_every_epoch_counts_whether_it_is_validated_or_not(
  config, tmp_path, residence
):
  config.data.residence = residence
  config.data.validation_share = 0.2
  config.train.validate_every = 2
  # Left after the first epoch, which nothing validates.
  outcome = loop.train(config, tmp_path, max_seconds=1e-6)
  assert (outcome.epoch, outcome.best_step) == (1, outcome.step)
  assert checkpoint.best_intact(tmp_path).step == outcome.step


def test_resumed_runs_are_the_same(config, tmp_path):
  loop.train(config, tmp_path / 'whole')
  loop.train(config, tmp_path / 'parts', max_seconds=1e-6)
  loop.train(config, tmp_path / 'parts')
  whole, parts = (
    evaluate.evaluate(tmp_path / name, 'test') for name in ('whole', 'parts')
  )
  assert whole['loss'] == parts['loss']


def test_other_metrics_need_examples_to_select_on(config, tmp_path):
  config.train.select = 'accuracy'
  with pytest.raises(UserError, match=r"leaves no validation .* 'last' needs"):
    loop.train(config, tmp_path)


@pytest.mark.parametrize(
  ('field', 'value'), [('train.patience', 2), ('optim.schedule', 'plateau')]
)
def test_what_looks_at_validation_is_refused(config, field, value):
  section, leaf = field.split('.')
  config[section][leaf] = value
  with pytest.raises(UserError, match='looks at no validation'):
    config_lib.validate(config)


def test_score_of_the_last_epoch_is_nan():
  settings = progress.SelectionSettings(metric='last')
  assert np.isnan(progress.score(settings, {}))
