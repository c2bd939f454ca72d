"""P0's search: seven hyperparameters of a residual recurrent fusion model.

The abstract, all of P0 that is at hand, names what is tuned: kernel size,
filter size, recurrent units, batch size, learning rate, dropout and weight
decay. It gives no range, no number of trials and no method: all of those here
are chosen. Filter size is read as filters of each stage.

Four of the seven change what is compiled. Epochs are few: what is found is
trained again at length.

Data     FER2013: python -m fer_jax data build --dataset=fer2013 --source=...
         or ferplus, rafdb, ckplus, the others that P0 evaluates on
Cost     18 trials of at most 9 epochs of a fifth of the rows at 24 x 24, two
         finalists: 35 minutes on two busy cores. In full: not measured yet.
Score    docs/sweeps.md; selected on validation, the test split is not opened.
Command  python -m fer_jax sweep --config=configs/sweeps/p0.py \
           --workdir=runs/sweep_p0 --prune=halving --trials=64
           (its other models and sets: configs/sweeps/p0.py:residual_gru,rafdb)
"""

from fer_jax import config as base
from fer_jax.errors import UserError, nearest
from fer_jax.tuning import choice, log_uniform, uniform

DATASETS = {
  'fer2013': ('fer2013_dev', 48, 1),
  'ferplus': ('fer2013_dev', 100, 1),
  'rafdb': ('official', 100, 3),
  'ckplus': ('kfold_subjects', 48, 1),
}
"""An honest protocol, and size and channels as in configs/papers/p0.py."""


def get_config(which='residual_bilstm'):
  model, _, dataset = which.partition(',')
  dataset = dataset or 'fer2013'
  if dataset not in DATASETS:
    raise UserError(
      f'P0 searches on {", ".join(DATASETS)}, not on {dataset!r}'
      f'{nearest(dataset, DATASETS)}'
    )
  config = base.get_base(model=model, dataset=dataset)
  protocol, config.data.image_size, config.data.channels = DATASETS[dataset]
  config.data.protocol = protocol
  # Standardising each image undoes brightness and contrast all the same.
  config.augment.brightness = 0.0
  config.augment.contrast = 0.0
  config.augment.rotation = 12.0
  config.augment.crop = 0.85
  # P1, by the same authors, has Adam; weight decay needs the decoupled one.
  config.optim.name = 'adamw'
  config.optim.weight_decay = 1e-2
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = 1.0
  config.train.epochs = 27  # thrice, ninefold and so on for successive halving
  return config


def get_space():
  return {
    'model.kernel_size': choice(3, 5),
    'model.filters': choice((32, 64, 128), (48, 96, 192), (64, 128, 256)),
    'model.units': choice(64, 128, 256),
    'train.batch_size': choice(32, 64, 128),
    'optim.learning_rate': log_uniform(1e-4, 1e-2),
    'model.dropout': uniform(0.0, 0.6),
    'optim.weight_decay': log_uniform(1e-5, 1e-1),
  }
