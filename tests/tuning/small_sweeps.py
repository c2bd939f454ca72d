"""Sweeps for tests and their processes."""

from fer_jax import config as config_lib
from fer_jax.tuning import search, sweep


def config(data_dir):
  """160 synthetic faces at 8 x 8 and the smallest fusion model."""
  made = config_lib.get_base(model='residual_gru')
  made.data.data_dir = str(data_dir)
  made.data.options.images = 160
  made.data.image_size = 8
  made.model.stem_filters = (2,)
  made.model.filters = (2,)
  made.model.blocks = (1,)
  made.model.units = 2
  made.model.head = ()
  made.augment.enabled = False
  made.train.batch_size = 32
  made.train.epochs = 2
  return made


def settings(**values):
  """No finalists unless they are asked for."""
  searched = {
    k: values.pop(k) for k in ('search', 'prune', 'seed') if k in values
  }
  return sweep.Settings(
    searching=search.Settings(**searched), **{'seeds': 0, **values}
  )
