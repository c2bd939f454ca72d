"""The recipe of the CPU reference: augmentation, smoothing, mixup, schedule.

The model stays as it is. Strength, smoothing and learning rate are scalars, so
trials that differ in them alone share a compiled program; mixup and the
schedule are compiled in.

Data     FER2013: python -m fer_jax data build --dataset=fer2013 --source=...
Cost     not measured yet.
Score    not measured yet; selected on validation, the test split is not opened.
Command  python -m fer_jax sweep --config=configs/sweeps/recipe.py \
           --workdir=runs/sweep_recipe --prune=halving
"""

from fer_jax import config as base
from fer_jax.tuning import choice, log_uniform, uniform


def get_config():
  config = base.get_base(model='residual_bilstm', dataset='fer2013')
  config.data.protocol = 'fer2013_dev'
  config.model.filters = (32, 64, 128)
  config.model.dropout = 0.3
  config.augment.brightness = 0.0
  config.augment.contrast = 0.0
  config.augment.rotation = 12.0
  config.augment.crop = 0.85
  config.optim.name = 'adamw'
  config.optim.learning_rate = 2e-3
  config.optim.weight_decay = 2e-2
  config.optim.clip_norm = 1.0
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = 1.0
  config.train.epochs = 27
  config.train.label_smoothing = 0.1
  config.train.ema_decay = 0.999
  return config


def get_space():
  return {
    'optim.schedule': choice('cosine', 'constant', 'plateau'),
    'optim.final_fraction': choice(
      0.0, 0.05, when={'optim.schedule': 'cosine'}
    ),
    'optim.plateau_patience': choice(2, 4, when={'optim.schedule': 'plateau'}),
    'augment.mixup': choice(0.0, 0.2),
    'augment.strength': uniform(0.0, 1.5),
    'train.label_smoothing': uniform(0.0, 0.2),
    'optim.learning_rate': log_uniform(5e-4, 8e-3),
  }
