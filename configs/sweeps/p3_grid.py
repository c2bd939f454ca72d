"""P3's grid search, of the improved CNN on four classes of FER2013.

P3 speaks of "testing every combination from a predefined set of
hyperparameters" and prints what came out (table 1: dropout 0.2, learning rate
0.001, batch 16), not the set. The grid is chosen around that: these three are
in it, beside neighbours that anybody would try. As in P3's honest twin training
alone is cut to the smallest class; a tenth of it selects.

Data     FER2013: python -m fer_jax data build --dataset=fer2013 --source=...
Cost     27 trials of 30 epochs, of three shapes; not measured yet.
Score    not measured yet; selected on validation, the test split is not opened.
Command  python -m fer_jax sweep --config=configs/sweeps/p3_grid.py \
           --workdir=runs/sweep_p3 --search=grid
"""

from fer_jax import config as base
from fer_jax.tuning import choice


def get_config():
  config = base.get_base(model='improved_cnn', dataset='fer2013')
  config.data.classes = ('angry', 'happy', 'neutral', 'sad')
  config.data.protocol = 'fer2013_dev'
  config.data.balance = 'downsample'
  config.augment.enabled = False
  config.optim.name = 'adam'
  config.train.batch_size = 16
  config.train.epochs = 30  # of P3's 100: enough to tell the grid's corners
  return config


def get_space():
  return {
    'train.batch_size': choice(16, 32, 64),
    'optim.learning_rate': choice(1e-2, 1e-3, 1e-4),
    'model.dropout': choice(0.2, 0.35, 0.5),
  }
