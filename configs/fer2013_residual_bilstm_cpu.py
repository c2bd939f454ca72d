"""residual_bilstm on FER2013, sized for two CPU cores.

Cost     46 minutes on two busy cores of an AMD EPYC (303 images/s).
Score    PublicTest, looked at once, flip-averaged: 65.8 % (95 % interval 64.2
         to 67.3), 63.7 % without twins; one seed. Validation 64.3 %.
Record   docs/records/fer2013_residual_bilstm_cpu/
Data     FER2013: python -m fer_jax data build --dataset=fer2013 --source=...
Command  python -m fer_jax train \
           --config=configs/fer2013_residual_bilstm_cpu.py \
           --workdir=runs/fer2013_cpu
"""

from fer_jax import config as base


def get_config():
  config = base.get_base(model='residual_bilstm', dataset='fer2013')
  config.data.protocol = 'fer2013_dev'
  config.model.filters = (32, 64, 128)
  config.model.dropout = 0.3
  # Standardising each image undoes brightness and contrast all the same.
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
  config.train.batch_size = 64
  config.train.epochs = 30
  config.train.label_smoothing = 0.1
  config.train.ema_decay = 0.999
  return config
