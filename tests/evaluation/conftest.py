"""Workdirs as training and evaluation leave them, made up."""

import json
import pathlib

import numpy as np
import pytest

from fer_jax.evaluation import groups, scores
from fer_jax.evaluation import workdir as workdir_lib
from fer_jax.evaluation.workdir import Evaluation, Examples, Pictures

CLASS_NAMES = (
  'angry',
  'disgust',
  'fear',
  'happy',
  'sad',
  'surprise',
  'neutral',
)
GRID = (3, 3)
N_BOOT = 500


def make_run(
  path: pathlib.Path,
  *,
  seed: int = 0,
  learning_rate: float = 1e-3,
  leaks: bool = False,
  splits: tuple[str, ...] = ('validation', 'test'),
  epochs: int = 6,
  images: np.ndarray | None = None,
  labels: np.ndarray | None = None,
  frames: int = 0,
) -> pathlib.Path:
  """Writes a workdir; see the modules under test for the files.

  Args:
    path: the folder, made here.
    seed: the config's, and that of everything drawn.
    learning_rate: the config's.
    leaks: the protocol's flag.
    splits: those that were evaluated.
    epochs: recorded.
    images: uint8 (n, H, W, C), noise where None.
    labels: (n,), drawn where None.
    frames: makes clips of that many frames, 0 stills.
  """
  rng = np.random.default_rng(seed)
  path.mkdir(parents=True)
  config = {
    'seed': seed,
    'data': {'name': 'fer2013', 'protocol': 'fer2013_dev', 'options': {}},
    'optim': {'name': 'adam', 'learning_rate': learning_rate},
    'train': {'batch_size': 64, 'select': 'accuracy'},
    'model': {'name': 'residual_bilstm', 'filters': [32, 64], 'dropout': 0.5},
  }
  (path / 'config.json').write_text(json.dumps(config))
  facts = {
    'model': 'residual_bilstm',
    'parameters': 1_234_567,
    'class_names': CLASS_NAMES,
    'dataset': {
      'name': 'fer2013',
      'version': '1.0.0',
      'checksum': 'ab' * 32,
      'options': {},
    },
    'protocol': {
      'name': 'fer2013_dev',
      'seed': 0,
      'leaks': leaks,
      'reason': 'twins <kept> on one side & counted',
      'digest': 'cd' * 32,
      'train': 25838,
      'validation': 2871,
    },
    'environment': {
      'versions': {'python': '3.11.2', 'jax': '0.10.2'},
      'device': 'cpu',
      'cores': 2,
    },
    'seconds_to_first_step': 7.25,
  }
  (path / 'run.json').write_text(json.dumps(facts))
  records = [_record(epoch, rng) for epoch in range(1, epochs + 1)]
  lines = [json.dumps(record) + '\n' for record in records]
  (path / 'metrics.jsonl').write_text(''.join(lines))
  best = max(
    records,
    key=lambda r: r['validation']['accuracy'],
    default={'step': 500, 'epoch': 5},
  )
  for split in splits:
    evaluation = _evaluation(split, rng, images, labels, frames)
    at = {'which': 'best', 'step': best['step'], 'epoch': best['epoch']}
    evaluation.metrics['checkpoint'] = at
    workdir_lib.write_evaluation(path, evaluation)
  return path


def _record(epoch: int, rng: np.random.Generator) -> dict:
  progress = 1 - np.exp(-epoch / 8)
  noise = rng.normal(size=4) * 0.01
  return {
    'epoch': epoch,
    'step': epoch * 100,
    'train': {
      'loss': 1.9 - 1.2 * progress + noise[0],
      'accuracy': 0.2 + 0.5 * progress + noise[1],
    },
    'validation': {
      'loss': 1.8 - 0.9 * progress + noise[2],
      'accuracy': 0.25 + 0.4 * progress + noise[3],
    },
    'learning_rate': 1e-3,
    'images_per_second': 180.0 + rng.normal(),
    'seconds': 150.0,
  }


def _evaluation(split, rng, images, labels, frames) -> Evaluation:
  n, num_classes = 240, len(CLASS_NAMES)
  if images is None:
    shape = (n, frames, 12, 12, 1) if frames else (n, 12, 12, 1)
    images = rng.integers(0, 256, shape, np.uint8)
  n = len(images)
  if labels is None:
    labels = np.arange(n) % num_classes
  logits = rng.normal(size=(n, num_classes)) + 1.8 * np.eye(num_classes)[labels]
  logits = logits.astype(np.float32)
  ids = np.array([f'{split}-{row:05d}' for row in range(n)])
  metrics = {
    'split': split,
    **scores.all_scores(logits, labels, CLASS_NAMES, n_boot=N_BOOT),
    'slices': scores.slice_scores(
      logits,
      labels,
      {
        'without_exact_twins': np.arange(n) >= 20,
        'without_twins': np.arange(n) >= 30,
      },
      CLASS_NAMES,
      n_boot=N_BOOT,
    ),
    'groups': groups.group_scores(
      logits,
      labels,
      {'age_group': np.array(['20-39', '40-69', '70+'])[np.arange(n) % 37 % 3]},
      CLASS_NAMES,
      n_boot=N_BOOT,
    ),
    'class_names': list(CLASS_NAMES),
    'views': ['plain', 'flip'],
    'definitions': scores.DEFINITIONS,
    'unit': 'example',
    'time': '2025-01-02T03:04:05+00:00',
    'seconds': 4.5,
  }
  if split == 'test':
    metrics['looks'] = 3
  probs = np.exp(scores.log_softmax(logits)).astype(np.float32)
  wrong = np.flatnonzero(logits.argmax(-1) != labels)
  wrong = wrong[np.argsort(probs[wrong, labels[wrong]])][:24]
  shown = np.unique(labels, return_index=True)[1]

  def pictures(rows, **extra):
    return Pictures(
      ids=ids[rows],
      labels=labels[rows],
      probs=probs[rows],
      images=images[rows],
      frame_mask=np.ones((len(rows), frames), bool) if frames else None,
      **extra,
    )

  tokens = frames or GRID[0] * GRID[1]
  attention = rng.dirichlet(np.ones(tokens), len(shown)).astype(np.float32)
  examples = Examples(
    pictures(wrong),
    pictures(shown, attention=attention),
    None if frames else GRID,
  )
  return Evaluation(split, metrics, ids, logits, labels, examples)


@pytest.fixture(scope='session')
def trained(tmp_path_factory) -> pathlib.Path:
  """What `train` writes, its model untrained."""
  # Reports are tested without JAX.
  from small_config import small_config

  from fer_jax.training import checkpoint, loop, task
  from fer_jax.training import step as step_lib

  root = tmp_path_factory.mktemp('evaluation')
  config = small_config(
    root / 'data', 'residual_bilstm', filters=(4, 4), blocks=(1, 1)
  )
  config.train.epochs = 1
  # Without the compilation of its step.
  workdir = root / 'run'
  with loop.claimed(workdir, config):
    pass
  prepared = task.prepare(config)
  state = prepared.initial_state()
  loop.write_run_json(workdir, config, prepared.facts, state, {})
  validation = step_lib.means(prepared.feed.validate(state))
  record = {'epoch': 1, 'step': 0, 'validation': validation}
  (workdir / 'metrics.jsonl').write_text(json.dumps(record) + '\n')
  writer = checkpoint.Writer(workdir)
  writer.save(state, epoch=1)
  writer.close()
  return workdir


@pytest.fixture(scope='session')
def run_maker():
  """`make_run`, for tests that want a workdir of their own."""
  return make_run


@pytest.fixture(scope='session')
def finished(tmp_path_factory) -> pathlib.Path:
  """A workdir with both splits evaluated; nobody writes to it."""
  return make_run(tmp_path_factory.mktemp('runs') / 'finished')
