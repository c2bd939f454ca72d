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
fer2013_dev), at half its size for the sake of a CPU. Accuracy of the last epoch
on that tenth; no test image is used.

Figures: mean over seeds, its 95 % interval by Student's t, and the same of the
difference to the first of --variants seed by seed.
"""

import json
import math
import pathlib
import sys
import time

import numpy as np
from absl import app, flags
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
WORKDIR = flags.DEFINE_string('workdir', 'runs/recurrence_study', 'for runs')
JSON = flags.DEFINE_string('json', None, 'file to write the record to')

# What a laptop trains in minutes. The other models are taken as published.
SMALL = {
  'filters': (16, 32, 32),
  'stem_filters': (16,),
  'units': 64,
  'attention_units': 32,
  'head': (64,),
}
# Half the image leaves the same map with a stage less.
SMALLER = {**SMALL, 'filters': (16, 32), 'blocks': (1, 1)}


def main(argv):
  if len(argv) > 1:
    raise app.UsageError(f'flags only, not {argv[1]!r}')
  from fer_jax import files, models, provenance
  from fer_jax.errors import UserError

  measure = {'temporal': temporal, 'fer2013': fer2013}[DATA.value]
  try:
    files.require_writable(JSON.value)
    for model in MODELS.value:
      if 'recurrence' not in models.fields(model):
        raise app.UsageError(f'--models: {model} has no recurrent stage')
      for variant in VARIANTS.value:
        models.check(model, **fields_of(model), recurrence=variant)
  except ValueError as error:
    raise app.UsageError(str(error)) from error
  result = {}
  try:
    for model in MODELS.value:
      result[model] = summarise(measure(model))
  except UserError as error:
    sys.exit(f'launch/recurrence_study.py: {error}')
  record = {
    'data': DATA.value,
    'seeds': SEEDS.value,
    'epochs': epochs(),
    'difference_to': VARIANTS.value[0],
    'environment': provenance.environment(),
    'models': result,
  }
  files.write_result(JSON.value, record)


def temporal(model):
  """Accuracy of each variant and seed on maps of a fixed backbone."""
  from fer_jax import datasets, models
  from fer_jax.data import protocol, resident
  from fer_jax.training import loop, probe
  from fer_jax.training.inference import Predictor

  workdir = pathlib.Path(WORKDIR.value) / f'{model}_expressions'
  config = base_config(model, 'synthetic_faces')
  config.train.epochs = 8
  loop.train(config, workdir)
  predictor = Predictor.from_workdir(workdir)
  clips = datasets.load(
    'synthetic_faces',
    data_dir=datasets.default_data_dir(),
    images=CLIPS.value,
    clips=True,
    variant='temporal',
  )
  partition = protocol.resolve(clips, 'official', seed=0)
  train, held_out = (
    load(resident, clips, index)
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
  for variant in VARIANTS.value:
    specification = probe.on_maps(
      models.specify(model, **fields_of(model), recurrence=variant),
      backbone.map_shape,
    )
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


def fer2013(model):
  """Validation accuracy of each variant and seed after the last epoch."""
  from fer_jax.training import loop

  found = {}
  # Seed by seed, so that what is measured so far compares like with like.
  for seed in range(SEEDS.value):
    for variant in VARIANTS.value:
      begun = time.monotonic()
      config = base_config(model, 'fer2013')
      config.data.protocol = 'fer2013_dev'
      config.data.image_size = 24
      config.model.recurrence = variant
      config.seed = seed
      config.train.epochs = epochs()
      workdir = pathlib.Path(WORKDIR.value) / f'{model}_{variant}_{seed}'
      loop.train(config, workdir)
      lines = (workdir / 'metrics.jsonl').read_text().splitlines()
      score = json.loads(lines[-1])['validation']['accuracy']
      say(model, variant, seed, score, begun)
      found.setdefault(variant, []).append(score)
  return found


def base_config(model, dataset):
  """Adam with warm-up and a cosine, mild augmentation, no dropout."""
  from fer_jax import config as config_lib

  config = config_lib.get_base(model=model, dataset=dataset)
  for name, value in fields_of(model).items():
    config.model[name] = value
  config.model.dropout = 0.0
  config.augment.rotation = 10.0
  config.augment.brightness = 0.0
  config.augment.contrast = 0.0
  config.optim.name = 'adamw'
  config.optim.learning_rate = 3e-3
  config.optim.weight_decay = 1e-2
  config.optim.schedule = 'cosine'
  config.optim.warmup_epochs = 1.0
  config.train.batch_size = 64
  return config


def epochs():
  return EPOCHS.value or {'temporal': 20, 'fer2013': 12}[DATA.value]


def fields_of(model):
  if not model.startswith('residual'):
    return {}
  return {'temporal': SMALL, 'fer2013': SMALLER}[DATA.value]


def load(resident, clips, index):
  arrays = resident.load_resident(clips, index, image_size=(48, 48), channels=1)
  return arrays['image'], arrays['target'].argmax(-1)


def say(model, variant, seed, score, begun):
  seconds = time.monotonic() - begun
  print(
    f'{model} {variant} seed {seed}: {100 * score:.2f} %  {seconds:.0f} s',
    flush=True,
  )


def summarise(scores):
  """Mean and interval of each variant, and of its difference to the first."""
  reference = np.array(scores[VARIANTS.value[0]])
  result = {}
  for variant, values in scores.items():
    result[variant] = {
      'accuracies': values,
      **interval(np.array(values)),
      'difference': interval(np.array(values) - reference),
    }
    row = result[variant]
    print(
      f'  {variant:10} {100 * row["mean"]:6.2f} +- {100 * row["half"]:.2f}'
      f'  difference {100 * row["difference"]["mean"]:+.2f} +- '
      f'{100 * row["difference"]["half"]:.2f}'
    )
  return result


def interval(values):
  """Mean, deviation, and half of the 95 % interval of the mean."""
  deviation = float(values.std(ddof=1))
  half = (
    stats.t.ppf(0.975, len(values) - 1) * deviation / math.sqrt(len(values))
  )
  return {'mean': float(values.mean()), 'deviation': deviation, 'half': half}


if __name__ == '__main__':
  app.run(main)
