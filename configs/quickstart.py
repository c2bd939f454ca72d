"""Quickstart: residual_bilstm on synthetic faces, on a laptop's CPU.

Data     synthetic_faces, rendered by the package itself on the first run.
Cost     41 s of epochs on two cores of an Intel Xeon, 9 s to the first step
Score    test 95.1 % (93.8 to 96.4), one seed; record docs/records/quickstart/
Command  python -m fer_jax train --config=configs/quickstart.py \
           --workdir=runs/quickstart
"""

from fer_jax import config as base


def get_config():
  config = base.get_base(model='residual_bilstm', dataset='synthetic_faces')
  config.model.filters = (16, 32, 64)
  config.model.stem_filters = (16,)
  config.model.units = 32
  config.model.head = (64,)
  config.model.dropout = 0.2
  config.augment.rotation = 10.0
  config.optim.name = 'adamw'
  config.optim.learning_rate = 3e-3
  config.optim.weight_decay = 1e-2
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = 1.0
  config.train.batch_size = 64
  config.train.epochs = 10
  return config
