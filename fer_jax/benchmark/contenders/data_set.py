"""A data set as its users build, open and read it.

The case is of its own: 'dataset', 'options', 'source' and 'data_dir' (as
`datasets.build` takes them), 'batch_size' (examples a step), 'input_shape'
(the model's) and 'seed'. Its 'what' says what a step is:

  build           a build from the source
  open            `datasets.load`
  cache           a batch at random from the decoded cache, as stored
  records         the same from the ArrayRecord files, decoded
  stream_cache    a batch that Grain reads ahead, brought to the input's shape,
                  from the cache, as a run streams where there is one
  stream_records  the same from the records
"""

import dataclasses
import shutil
import time
from collections.abc import Callable

import numpy as np

from fer_jax import datasets, provenance

EPOCH_STEPS = 1024
"""Steps of one pass of the stream; its turns are the ends of passes."""


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`."""
  what = case['what']
  if what == 'build':
    run = _build(case)
  elif what == 'open':
    run = _open(case)
  else:
    dataset = _load(case)
    if what in ('records', 'stream_records'):
      dataset = _without_cache(dataset)
    elif not has_cache(dataset):
      raise ValueError(f'{dataset.name} has no decoded cache')
    run = (_stream if what.startswith('stream') else _read)(case, dataset)
  return run, {
    'steps_per_dispatch': 1,
    'threads': provenance.cores(),
    'versions': provenance.versions(
      ('fer-jax', 'numpy', 'pillow', 'tensorflow-datasets', 'array-record')
      + (('grain',) if what.startswith('stream') else ())
    ),
  }


def has_cache(dataset: datasets.Dataset) -> bool:
  """Whether a build keeps its images decoded too."""
  return 'pixels.npy' in dataset.metadata['files']


def _without_cache(dataset: datasets.Dataset) -> datasets.Dataset:
  """The data set as if its images were too many for a cache."""
  files = {
    name: known
    for name, known in dataset.metadata['files'].items()
    if name != 'pixels.npy'
  }
  return dataclasses.replace(
    dataset, metadata={**dataset.metadata, 'files': files}
  )


def _load(case: dict) -> datasets.Dataset:
  return datasets.load(
    case['dataset'], data_dir=case['data_dir'], **case['options']
  )


def _build(case: dict) -> Callable[[int], float]:
  def run(steps: int) -> float:
    seconds = 0.0
    for _ in range(steps):
      # A whole build would be found, not made again. The last one stays.
      shutil.rmtree(case['data_dir'], ignore_errors=True)
      begun = time.perf_counter()
      datasets.build(
        case['dataset'],
        data_dir=case['data_dir'],
        source=case['source'],
        **case['options'],
      )
      seconds += time.perf_counter() - begun
    return seconds

  return run


def _open(case: dict) -> Callable[[int], float]:
  def run(steps: int) -> float:
    begun = time.perf_counter()
    for _ in range(steps):
      _load(case)
    return time.perf_counter() - begun

  return run


def _read(case: dict, dataset: datasets.Dataset) -> Callable[[int], float]:
  draw = np.random.default_rng(case['seed'])

  def run(steps: int) -> float:
    batches = draw.integers(len(dataset), size=(steps, case['batch_size']))
    begun = time.perf_counter()
    for rows in batches:
      dataset.read(rows)
    return time.perf_counter() - begun

  return run


def _stream(case: dict, dataset: datasets.Dataset) -> Callable[[int], float]:
  from fer_jax.data import stream

  draw = np.random.default_rng(case['seed'])
  *size, channels = case['input_shape']
  batches = stream.Stream(
    dataset,
    draw.integers(len(dataset), size=EPOCH_STEPS * case['batch_size']),
    batch_size=case['batch_size'],
    image_size=tuple(size),
    channels=channels,
  )

  def run(steps: int) -> float:
    begun = time.perf_counter()
    for done in range(0, steps, EPOCH_STEPS):
      # Each pass is read to its end, or Grain would still be reading ahead in
      # the turns of others, and have batches in hand when the next one begins.
      for _ in batches.epoch(0, EPOCH_STEPS - min(steps - done, EPOCH_STEPS)):
        pass
    return time.perf_counter() - begun

  return run
