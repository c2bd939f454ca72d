"""P0's seven hyperparameters on rendered faces, small: what throughput is of.

`benchmark --what=sweep` counts trials an hour of it, for any machine and
without a download. The space is that of p0.py; what is found in it tells
nothing of real faces.

Data     synthetic_faces, rendered by the package itself on the first run.
Cost     docs/records/benchmark_sweep.json has it, by size of the population.
Score    none: three epochs of small images.
Command  python -m fer_jax benchmark --what=sweep \
           --config=configs/sweeps/p0_small.py
"""

import pathlib

from fer_jax import config as base
from fer_jax.tuning import space


def get_config():
  config = base.get_base(model='residual_bilstm', dataset='synthetic_faces')
  config.data.options.images = 800
  config.data.image_size = 24
  config.optim.name = 'adamw'
  config.optim.weight_decay = 1e-2
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = 1.0
  config.train.epochs = 3
  return config


def get_space():
  return space.load(pathlib.Path(__file__).with_name('p0.py'))
