"""Two short trainings that ought to be one, whatever devices each had.

Equal means 1e-4 after the few float32 steps that are taken, as in the design.
"""

import json
import pathlib

import jax
import numpy as np
import pytest
from small_config import small_config

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.training import checkpoint, records, task


def write_config(root: pathlib.Path, residence: str = 'auto') -> pathlib.Path:
  """A file of a config which rounding disturbs little: batches of 32."""
  config = small_config(root / 'data')
  config.data.image_size = 8
  config.data.residence = residence
  config.optim.name = 'sgd'
  config.optim.learning_rate = 0.05
  config.train.ema_decay = 0.9
  path = root / 'config.json'
  files.write_json(path, config_lib.to_json(config))
  return path


def final_state(workdir: pathlib.Path):
  """Of the last checkpoint."""
  config = config_lib.load_json(workdir / 'config.json')
  sealed = checkpoint.latest_intact(workdir)
  run = json.loads((workdir / 'run.json').read_text())
  return checkpoint.restore(
    sealed, task.abstract_state(config, len(run['class_names']))
  )


def assert_same(workdir: pathlib.Path, reference: pathlib.Path) -> None:
  """Steps, figures of both epochs and the state at the end."""
  found, expected = map(records.read_metrics, (workdir, reference))
  assert [record['epoch'] for record in found] == [1, 2]
  for here, there in zip(found, expected, strict=True):
    assert here['step'] == there['step']
    for part in ('train', 'validation'):
      assert here[part] == pytest.approx(there[part], rel=1e-4)

  def close(x, y):
    largest = max(np.max(np.abs(y), initial=0), 1e-3)
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * largest)

  jax.tree.map(close, final_state(workdir), final_state(reference))
