"""A config that trains in seconds, and its data."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from fer_jax import config as config_lib


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory):
  """A data directory that tests of one process share."""
  return tmp_path_factory.mktemp('data')


@pytest.fixture
def tiny_config(tiny_data):
  """160 synthetic faces at 16 x 16 and the smallest fusion model."""
  config = config_lib.get_base(model='residual_gru')
  config.data.data_dir = str(tiny_data)
  config.data.options.images = 160
  config.data.image_size = 16
  config.model.stem_filters = (4,)
  config.model.filters = (4,)
  config.model.blocks = (1,)
  config.model.units = 4
  config.model.head = (4,)
  config.augment.enabled = False
  config.train.batch_size = 32
  config.train.epochs = 2
  return config


@pytest.fixture(scope='module')
def compiled_once(tmp_path_factory):
  """Keeps compiled programs between the runs of a module, as the command line
  does between its processes."""
  place = tmp_path_factory.getbasetemp() / 'xla'
  settings = {
    'jax_compilation_cache_dir': str(place),
    'jax_persistent_cache_min_compile_time_secs': 0.1,
  }
  before = {name: getattr(jax.config, name) for name in settings}
  for name, value in settings.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
