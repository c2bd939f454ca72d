#!/usr/bin/env python
"""Does recurrence help? Every variant of a model's recurrent stage, measured.

  python launch/recurrence_study.py --data=temporal --models=residual_bilstm \
    --seeds=5 --workdir=runs/study --json=temporal.json
  python launch/recurrence_study.py --data=fer2013 --models=residual_bilstm \
    --seeds=2 --epochs=8 --workdir=runs/study --json=fer2013.json

temporal: rendered clips whose class is the order of their frames. A backbone
is first trained on the expressions of rendered images, then held fixed; bodies
and heads train on its maps. Accuracy on the clips of other persons (the
validation split).

fer2013: the whole model trains on Training less its validation tenth (protocol
fer2013_dev), which each seed draws anew. Accuracy of the last epoch on that
tenth; no test image is used.

`SETTINGS` has each model small, for the sake of a CPU: --dry_run prints it, and
how many steps the recurrent stage has. Figures: mean over seeds, its 95 %
interval by Student's t, and the same of the difference to the first of
--variants seed by seed. The seeds of fer2013 draw from one set, so that their
images overlap; its intervals are widened for that (see `interval`). The record
is written after each model.
"""

import dataclasses
import functools
import json
import math
import pathlib
import sys
import time
from typing import Any

import numpy as np
from absl import app, flags, logging
from scipy import stats

DATA = flags.DEFINE_enum('data', 'temporal', ['temporal', 'fer2013'], 'of what')
MODELS = flags.DEFINE_list('models', ['residual_bilstm'], 'names of models')
VARIANTS = flags.DEFINE_list(
  'variants', ['recurrent', 'shuffled', 'pointwise', 'attention'], 'of them'
)
SEEDS = flags.DEFINE_integer('seeds', 3, 'runs of each', lower_bound=2)
EPOCHS = flags.DEFINE_integer(
  'epochs', 0, '0 takes 20 for temporal, 12 for fer2013', lower_bound=0
)
CLIPS = flags.DEFINE_integer('clips', 6000, 'of temporal', lower_bound=100)
IMAGES = flags.DEFINE_integer(
  'images',
  0,
  'rendered images that the backbone of temporal trains and is chosen on, 0 '
  'for 8000; images of fer2013 that train, a stratified part that each seed '
  'draws, 0 for all',
  lower_bound=0,
)
BACKBONE_EPOCHS = flags.DEFINE_integer(
  'backbone_epochs', 8, 'of temporal', lower_bound=1
)
DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'only print what would be trained, and check its shapes'
)
WORKDIR = flags.DEFINE_string('workdir', 'runs/recurrence_study', 'for runs')
JSON = flags.DEFINE_string('json', None, 'file to write the record to')


@dataclasses.dataclass(frozen=True)
class Setting:
  """How a model is trained.

  Attributes:
    image_size: side of its images or frames in pixels.
    fields: of the model, where they are not the preset's.
    learning_rate: of the whole model, at its peak.
  """

  image_size: int
  fields: dict[str, Any] = dataclasses.field(default_factory=dict)
  learning_rate: float = 3e-3


# Of P0 and P1, maps of 6 x 6: the map of half an image with a stage less.
_RESIDUAL = {
  'filters': (16, 32, 32),
  'stem_filters': (16,),
  'units': 64,
  'attention_units': 32,
  'head': (64,),
}
RESIDUAL = {
  'temporal': Setting(48, _RESIDUAL),
  'fer2013': Setting(24, {**_RESIDUAL, 'filters': (16, 32), 'blocks': (1, 1)}),
}
# Of P4, whose unpadded convolutions leave fewer than their 16 cells of an
# image smaller than 46 x 46. A step is a quarter of a cell or a cell, and half
# a hidden state, as published.
_HYBRID = {
  'filters': (8, 16, 32, 32, 64),
  'dense': 64,
  'attention_units': 32,
}
HYBRID2 = Setting(48, {**_HYBRID, 'units': (16, 16)})
HYBRID3 = Setting(48, {**_HYBRID, 'units': (64, 32)})

SETTINGS = {
  'residual_lstm': RESIDUAL,
  'residual_gru': RESIDUAL,
  'residual_bilstm': RESIDUAL,
  'cnn_lstm_model2': {'temporal': HYBRID2, 'fer2013': HYBRID2},
  'cnn_lstm_model3': {'temporal': HYBRID3, 'fer2013': HYBRID3},
  # Of P2 as published. 32 x 32 leaves one cell, which is a step of a clip; on
  # an image DenseNet121's GRU recurs from 61 x 61 on, the others' never.
  'densenet121_gru': {
    'temporal': Setting(32, learning_rate=1e-3),
    'fer2013': Setting(64, learning_rate=1e-3),
  },
  # Nothing in it normalises.
  'vgg16_gru': {
    'temporal': Setting(32, learning_rate=1e-4),
    'fer2013': Setting(32, learning_rate=1e-4),
  },
  'xception_gru': {
    'temporal': Setting(32, learning_rate=1e-3),
    'fer2013': Setting(32, learning_rate=1e-3),
  },
}
"""Of each model for each of --data."""


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'flags only, not {argv[1]!r}')
  logging.set_verbosity(logging.WARNING)  # of Orbax
  from fer_jax import files, provenance
  from fer_jax.errors import UserError

  measure = {'temporal': temporal, 'fer2013': fer2013}[DATA.value]
  try:
    files.require_writable(JSON.value)
    plans = {model: plan(model) for model in MODELS.value}
  except ValueError as error:
    raise app.UsageError(str(error)) from error
  for model, planned in plans.items():
    print(
      f'{model}: {planned["image_size"]} x {planned["image_size"]}, steps '
      f'{planned["steps"]}, {" ".join(planned["variants"])}',
      flush=True,
    )
  if DRY_RUN.value:
    return
  record = {
    'data': DATA.value,
    'seeds': SEEDS.value,
    'epochs': epochs(),
    'images': IMAGES.value,
    **(
      {'clips': CLIPS.value, 'backbone_epochs': BACKBONE_EPOCHS.value}
      if DATA.value == 'temporal'
      else {}
    ),
    'difference_to': VARIANTS.value[0],
    'validation_to_train': 0.0,
    'environment': provenance.environment(),
    'settings': plans,
    'models': {},
  }
  try:
    if DATA.value == 'fer2013':
      train, validation = images_of_fer2013(seed=0)
      record['validation_to_train'] = validation / train
    for model in MODELS.value:
      scores = measure(model, plans[model]['variants'])
      record['models'][model] = summarise(scores, record['validation_to_train'])
      files.write_result(JSON.value, record)
  except UserError as error:
    sys.exit(f'launch/recurrence_study.py: {error}')


def plan(model):
  """A model's setting, the steps of its recurrent stage and its variants.

  Raises:
    ValueError: it has no such stage or no setting, a variant is unknown, or a
      stage does not fit what the one before it gives.
  """
  from fer_jax import models

  if 'recurrence' not in models.fields(model):
    raise ValueError(f'--models: {model} has no recurrent stage')
  if model not in SETTINGS:
    raise ValueError(f'--models: {model} is not in SETTINGS')
  steps = {variant: steps_of(model, variant) for variant in VARIANTS.value}
  # Of one step there is one order.
  variants = [
    variant
    for variant, count in steps.items()
    if not (variant == 'shuffled' and count == 1)
  ]
  first = VARIANTS.value[0]
  if first not in variants:
    raise ValueError(
      f'--variants: {first} and recurrent are the same in {model}, whose '
      'recurrent stage has one step; begin with another'
    )
  return {
    **dataclasses.asdict(setting_of(model)),
    'steps': steps[first],
    'variants': variants,
  }


def steps_of(model, variant):
  """Steps of an image's or a clip's sequence, by shapes alone."""
  import jax.numpy as jnp
  from flax import nnx

  from fer_jax.datasets import synthetic_faces
  from fer_jax.models import FusionModel
  from fer_jax.training import probe

  shape = map_shape(model)
  frames = synthetic_faces.OPTIONS['frames']
  clip = (frames,) if DATA.value == 'temporal' else ()

  def tokens():
    body = FusionModel(
      probe.on_maps(specify(model, variant), shape),
      num_classes=2,
      rngs=nnx.Rngs(0),
    )
    maps = jnp.zeros((1, *clip, *shape))
    return body(maps, return_features=True)[1]['tokens']

  return nnx.eval_shape(tokens).shape[1]


@functools.cache
def map_shape(model) -> Any:
  """(h, w, D) of what its backbone gives."""
  from flax import nnx

  from fer_jax.models import FusionModel

  specification = specify(model, 'recurrent')
  return nnx.eval_shape(
    lambda: FusionModel(specification, num_classes=2, rngs=nnx.Rngs(0))
  ).map_shape


def specify(model, variant):
  """The stages of a variant at the model's setting."""
  from fer_jax import models

  setting = setting_of(model)
  return models.specify(
    model,
    **setting.fields,
    input_shape=(setting.image_size, setting.image_size, 1),
    recurrence=variant,
  )


def setting_of(model):
  return SETTINGS[model][DATA.value]


def temporal(model, variants):
  """Accuracy of each variant and seed on maps of a fixed backbone."""
  from fer_jax import datasets
  from fer_jax.data import protocol
  from fer_jax.training import loop, probe
  from fer_jax.training.inference import Predictor

  workdir = pathlib.Path(WORKDIR.value) / f'{model}_expressions'
  loop.train(expressions_config(model), workdir)
  predictor = Predictor.from_workdir(workdir)
  clips = datasets.load(
    'synthetic_faces',
    data_dir=datasets.default_data_dir(),
    images=CLIPS.value,
    clips=True,
    variant='temporal',
  )
  partition = protocol.resolve(clips, 'official', seed=0)
  size = setting_of(model).image_size
  train, held_out = (
    load(clips, index, size)
    for index in (partition.train, partition.validation)
  )
  backbone = predictor.model()
  maps = {
    'train': probe.maps_of(backbone, train[0]),
    'held_out': probe.maps_of(backbone, held_out[0]),
  }
  maps = {
    part: probe.standardised(values, like=maps['train'])
    for part, values in maps.items()
  }
  found = {}
  for variant in variants:
    specification = probe.on_maps(specify(model, variant), backbone.map_shape)
    for seed in range(SEEDS.value):
      begun = time.monotonic()
      trained = probe.train(
        specification,
        maps['train'],
        train[1],
        num_classes=2,
        seed=seed,
        epochs=epochs(),
      )
      score = probe.accuracy(trained, maps['held_out'], held_out[1])
      say(model, variant, seed, score, begun)
      found.setdefault(variant, []).append(score)
  return found


def fer2013(model, variants):
  """Validation accuracy of each variant and seed after the last epoch."""
  from fer_jax.training import loop

  found = {}
  # Seed by seed, so that what is measured so far compares like with like.
  for seed in range(SEEDS.value):
    share = train_share(seed)
    for variant in variants:
      begun = time.monotonic()
      workdir = pathlib.Path(WORKDIR.value) / f'{model}_{variant}_{seed}'
      loop.train(fer2013_config(model, variant, seed, share), workdir)
      lines = (workdir / 'metrics.jsonl').read_text().splitlines()
      score = json.loads(lines[-1])['validation']['accuracy']
      say(model, variant, seed, score, begun)
      found.setdefault(variant, []).append(score)
  return found


def expressions_config(model):
  """Of the run that trains the backbone of temporal."""
  config = base_config(model, 'synthetic_faces', BACKBONE_EPOCHS.value)
  if IMAGES.value:
    config.data.options.images = IMAGES.value
  return config


def fer2013_config(model, variant, seed, share):
  """Of a run of fer2013 on a share of its training list."""
  config = base_config(model, 'fer2013', epochs())
  config.data.protocol = 'fer2013_dev'
  config.data.protocol_seed = seed
  config.data.train_share = share
  config.model.recurrence = variant
  config.seed = seed
  config.train.validate_every = epochs()
  return config


def train_share(seed):
  """The part of fer2013's training list that --images is."""
  if not IMAGES.value:
    return 1.0
  train, _ = images_of_fer2013(seed)
  return min(1.0, IMAGES.value / train)


def images_of_fer2013(seed):
  """How many there are to train on, and to validate."""
  from fer_jax import datasets
  from fer_jax.data import protocol

  whole = datasets.load('fer2013', data_dir=datasets.default_data_dir())
  partition = protocol.resolve(whole, 'fer2013_dev', seed=seed)
  return len(partition.train), len(partition.validation)


def base_config(model, dataset, run_epochs):
  """Adam with warm-up and a cosine, mild augmentation, no dropout."""
  from fer_jax import config as config_lib

  setting = setting_of(model)
  config = config_lib.get_base(model=model, dataset=dataset)
  for name, value in setting.fields.items():
    config.model[name] = value
  config.model.dropout = 0.0
  config.data.image_size = setting.image_size
  config.augment.rotation = 10.0
  config.augment.brightness = 0.0
  config.augment.contrast = 0.0
  config.optim.name = 'adamw'
  config.optim.learning_rate = setting.learning_rate
  config.optim.weight_decay = 1e-2
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = min(1.0, run_epochs / 4)
  config.train.batch_size = 64
  config.train.epochs = run_epochs
  return config


def epochs():
  return EPOCHS.value or {'temporal': 20, 'fer2013': 12}[DATA.value]


def load(clips, index, size):
  """(frames uint8 (N, T, size, size, 1), labels int (N,))."""
  from fer_jax.data import resident

  arrays = resident.load_resident(
    clips, index, image_size=(size, size), channels=1
  )
  return arrays['image'], arrays['target'].argmax(-1)


def say(model, variant, seed, score, begun):
  seconds = time.monotonic() - begun
  print(
    f'{model} {variant} seed {seed}: {100 * score:.2f} %  {seconds:.0f} s',
    flush=True,
  )


def summarise(scores, validation_to_train):
  """Mean and interval of each variant, and of its difference to the first."""
  reference = np.array(scores[VARIANTS.value[0]])
  result = {}
  for variant, values in scores.items():
    result[variant] = {
      'accuracies': values,
      **interval(np.array(values), validation_to_train),
      'difference': interval(np.array(values) - reference, validation_to_train),
    }
    row = result[variant]
    print(
      f'  {variant:10} {100 * row["mean"]:6.2f} +- {100 * row["half"]:.2f}'
      f'  difference {100 * row["difference"]["mean"]:+.2f} +- '
      f'{100 * row["difference"]["half"]:.2f}'
    )
  return result


def interval(values, validation_to_train):
  """Mean, deviation, and half of the 95 % interval of the mean.

  Args:
    values: (seeds,).
    validation_to_train: images to validate for each that trains, where each
      seed draws both from one set. Such values are correlated, and their mean
      varies by that much more (Nadeau and Bengio 2003,
      doi 10.1023/A:1024068626366). 0 where a set is held out once and for all:
      the interval is that of training alone.
  """
  deviation = float(values.std(ddof=1))
  quantile = stats.t.ppf(0.975, len(values) - 1)
  half = quantile * deviation * math.sqrt(1 / len(values) + validation_to_train)
  return {'mean': float(values.mean()), 'deviation': deviation, 'half': half}


if __name__ == '__main__':
  app.run(main)
