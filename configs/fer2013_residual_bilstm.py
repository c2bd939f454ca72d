"""residual_bilstm on FER2013, the reference training for an accelerator.

Data     FER2013: python -m fer_jax data build --dataset=fer2013 --source=...
Cost     not measured yet; a day or more on two CPU cores, see the one with _cpu
Score    not measured yet.
Command  python -m fer_jax train --config=configs/fer2013_residual_bilstm.py \
           --workdir=runs/fer2013
"""

from fer_jax import config as base


def get_config():
  config = base.get_base(model='residual_bilstm', dataset='fer2013')
  config.data.protocol = 'fer2013_dev'
  config.model.stem_filters = (64,)
  config.model.filters = (128, 256, 512)
  config.model.blocks = (2, 2, 2)
  config.model.units = 256
  config.augment.brightness = 0.0
  config.augment.contrast = 0.0
  config.augment.rotation = 15.0
  config.augment.crop = 0.8
  config.augment.erasing = 0.25
  config.augment.mixup = 0.2
  config.optim.name = 'sgd'
  config.optim.learning_rate = 0.05
  # Chosen, not tuned: decoupled from momentum it acts a tenth as strongly as
  # the 5e-4 that PyTorch's SGD adds to gradients.
  config.optim.weight_decay = 5e-4
  config.optim.clip_norm = 5.0
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = 5.0
  config.train.batch_size = 128
  config.train.epochs = 200
  config.train.label_smoothing = 0.1
  config.train.ema_decay = 0.9995
  return config
