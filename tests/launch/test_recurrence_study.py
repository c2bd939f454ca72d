"""The study of recurrence: settings of every model, and a study as small as
can be."""

import json
import math
import pathlib
import runpy
import types

import numpy as np
import pytest
import small_config
from absl import flags
from scipy import stats

from fer_jax import config as config_lib
from fer_jax import datasets, models

SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'recurrence_study.py'
FUSION = [
  model for model in models.available() if 'recurrence' in models.fields(model)
]
STEPS = {
  'residual_lstm': (8, 36),
  'residual_gru': (8, 36),
  'residual_bilstm': (8, 36),
  'cnn_lstm_model2': (8 * 64, 64),
  'cnn_lstm_model3': (8 * 16, 16),
  'densenet121_gru': (8, 4),
  'vgg16_gru': (8, 1),
  'xception_gru': (8, 1),
}
"""Of a clip of 8 frames, and of an image."""


@pytest.fixture
def study():
  """The script's functions, given flags."""
  before = set(flags.FLAGS)

  def load(*arguments):
    found = runpy.run_path(str(SCRIPT), run_name='study')
    flags.FLAGS(['study', *map(str, arguments)])
    return types.SimpleNamespace(**found)

  yield load
  for name in set(flags.FLAGS) - before:
    delattr(flags.FLAGS, name)


@pytest.mark.parametrize('data', ['temporal', 'fer2013'])
def test_every_fusion_model_has_a_setting(data, study):
  """All variants by shapes alone, and configs that validate."""
  program = study(f'--data={data}', '--epochs=1', '--backbone_epochs=1')
  assert sorted(program.SETTINGS) == FUSION
  for model in FUSION:
    planned = program.plan(model)
    assert planned['steps'] == STEPS[model][data == 'fer2013'], model
    variants = ['recurrent', 'shuffled', 'pointwise', 'attention']
    if planned['steps'] == 1:
      variants.remove('shuffled')
    assert planned['variants'] == variants
    config = (
      program.expressions_config(model)
      if data == 'temporal'
      else program.fer2013_config(model, 'pointwise', seed=1, share=0.5)
    )
    config_lib.validate(config)


def test_a_study_of_clips_as_small_as_can_be(study, tmp_path, monkeypatch):
  monkeypatch.setenv('FER_JAX_DATA', str(tmp_path / 'data'))
  path = tmp_path / 'record.json'
  program = study(
    *('--models=residual_gru', '--variants=recurrent', '--seeds=2'),
    *('--epochs=1', '--clips=100', '--images=100', '--backbone_epochs=1'),
    *(f'--workdir={tmp_path}/study', f'--json={path}'),
  )
  setting = {'temporal': program.Setting(16, small_config.MODEL)}
  monkeypatch.setitem(program.SETTINGS, 'residual_gru', setting)
  program.main(['study'])
  record = json.loads(path.read_text())
  assert record['clips'] == 100
  assert record['settings']['residual_gru']['steps'] == 8
  found = record['models']['residual_gru']['recurrent']
  assert len(found['accuracies']) == 2
  assert found['mean'] == pytest.approx(np.mean(found['accuracies']))
  config = config_lib.load_json(
    tmp_path / 'study' / 'residual_gru_expressions' / 'config.json'
  )
  assert config.data.options.images == 100


def test_images_are_a_part_of_training_that_a_seed_draws(
  study, tmp_path, monkeypatch
):
  """Of 40 rows of Training four select, and 18 of the others are half."""
  draw = np.random.default_rng(0)
  rows = ['emotion,pixels,Usage']
  for n in range(44):
    pixels = ' '.join(map(str, draw.integers(256, size=48 * 48)))
    rows.append(f'{n % 2},{pixels},{"Training" if n < 40 else "PublicTest"}')
  source = tmp_path / 'fer2013.csv'
  source.write_text('\n'.join(rows) + '\n')
  monkeypatch.setenv('FER_JAX_DATA', str(tmp_path / 'data'))
  datasets.build('fer2013', data_dir=tmp_path / 'data', source=source)
  program = study('--data=fer2013', '--images=18', '--epochs=1')
  assert program.images_of_fer2013(seed=1) == (36, 4)
  share = program.train_share(seed=1)
  assert share == 0.5
  config = program.fer2013_config('residual_gru', 'shuffled', 1, share)
  assert config.data.train_share == 0.5
  assert config.data.protocol_seed == config.seed == 1
  assert config.model.recurrence == 'shuffled'
  assert config.data.image_size == 24


def test_what_is_one_order_is_not_shuffled(study):
  program = study('--data=fer2013', '--variants=shuffled,recurrent')
  with pytest.raises(ValueError, match='shuffled and recurrent are the same'):
    program.plan('vgg16_gru')


def test_draws_that_overlap_widen_the_interval(study):
  interval = study().interval
  values = np.array([0.50, 0.53, 0.51, 0.56])
  apart = interval(values, 0.0)
  low, high = stats.t.interval(
    0.95, 3, loc=values.mean(), scale=stats.sem(values)
  )
  assert apart['mean'] == pytest.approx((low + high) / 2)
  assert apart['half'] == pytest.approx((high - low) / 2)
  overlapping = interval(values, 1 / 4)
  assert overlapping['half'] == pytest.approx(math.sqrt(2) * apart['half'])
