"""Start-up, on a real run of a small config."""

import pytest

from fer_jax.benchmark import startup
from fer_jax.benchmark.worker import WorkerError

CONFIG = """
from fer_jax import config as base

def get_config():
  config = base.get_base(model='residual_lstm', dataset='synthetic_faces')
  config.data.data_dir = {data_dir!r}
  config.data.options.images = 80
  config.data.options.size = 48
  config.data.image_size = 16
  config.model.stem_filters = (2,)
  config.model.filters = (2,)
  config.model.blocks = (1,)
  config.model.units = 2
  config.train.batch_size = 8
  config.train.epochs = 1000
  return config
"""


def test_seconds_are_read_once_they_are_there(tmp_path):
  path = tmp_path / 'run.json'
  assert startup.seconds_in(path) is None
  path.write_text('{"model": "residual_lstm"}')
  assert startup.seconds_in(path) is None
  path.write_text('{"seconds_to_first_step": 4.5}')
  assert startup.seconds_in(path) == 4.5


def test_a_run_is_stopped_after_its_first_step(tmp_path):
  config = tmp_path / 'small.py'
  config.write_text(CONFIG.format(data_dir=str(tmp_path / 'data')))
  result = startup.measure(config, starts=1)
  assert result['config'] == 'small.py'
  (seconds,) = result['rounds']
  assert seconds > 0
  assert result['seconds_to_first_step']['median'] == seconds
  assert result['cold'] > 0


def test_a_run_that_never_starts_says_why(tmp_path):
  config = tmp_path / 'broken.py'
  config.write_text('def get_config():\n  raise SystemExit("no config here")\n')
  with pytest.raises(WorkerError, match='no config here'):
    startup.measure(config, starts=1)
