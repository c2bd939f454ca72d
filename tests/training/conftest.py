"""A config that trains in seconds, and its data."""

import pytest

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
