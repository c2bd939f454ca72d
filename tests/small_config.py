"""The smallest config that trains, and its model."""

from fer_jax import config as config_lib

MODEL = {
  'stem_filters': (4,),
  'filters': (4,),
  'blocks': (1,),
  'units': 4,
  'head': (4,),
}
"""Fields of a residual preset: all its stages, each as narrow as can be."""


def small_config(data_dir, model='residual_gru', **model_fields):
  """160 synthetic faces at 16 x 16, not augmented; two epochs of 4 steps.

  Args:
    data_dir: where they are built.
    model: a residual preset.
    **model_fields: of the model, in place of `MODEL`'s.

  Returns:
    The config, for the test to change.
  """
  config = config_lib.get_base(model=model)
  config.data.data_dir = str(data_dir)
  config.data.options.images = 160
  config.data.image_size = 16
  config.model.update({**MODEL, **model_fields})
  config.augment.enabled = False
  config.train.batch_size = 32
  config.train.epochs = 2
  return config
