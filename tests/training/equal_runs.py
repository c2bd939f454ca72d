"""Two short trainings that ought to be one.

On other devices equal means 1e-4 after the few float32 steps that are taken, as
in the design; on the same ones, bit for bit.
"""

import json
import pathlib
import socket

import jax
import numpy as np
from small_config import small_config

from fer_jax import config as config_lib
from fer_jax import files, torture
from fer_jax.training import checkpoint, records, task

TOLERANCE = 1e-4


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


def differences(
  workdir: pathlib.Path, reference: pathlib.Path
) -> dict[str, float]:
  """The largest: of the 'state' at the end, as a share of each array's largest
  element, and of the 'figures' of all epochs, as a share of themselves."""
  found, expected = map(records.read_metrics, (workdir, reference))
  assert [r['epoch'] for r in found] == [r['epoch'] for r in expected]
  assert [r['step'] for r in found] == [r['step'] for r in expected]
  figures = [
    abs(here[part][name] - value) / max(abs(value), 1e-12)
    for here, there in zip(found, expected, strict=True)
    for part in ('train', 'validation')
    for name, value in there[part].items()
  ]

  def share(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    largest = max(np.max(np.abs(y), initial=0), 1e-3)
    return float(np.max(np.abs(x - y), initial=0) / largest)

  shares = jax.tree.map(share, final_state(workdir), final_state(reference))
  return {
    'state': max(jax.tree.leaves(shares)),
    'figures': max(figures),
  }


def assert_same(workdir: pathlib.Path, reference: pathlib.Path) -> None:
  """Steps, figures of both epochs and the state at the end."""
  assert [r['epoch'] for r in records.read_metrics(reference)] == [1, 2]
  assert max(differences(workdir, reference).values()) <= TOLERANCE


def assert_same_bits(workdir: pathlib.Path, reference: pathlib.Path) -> None:
  """Records, states, checkpoints: bit for bit, times aside."""
  assert torture.run_differences(reference, workdir) == []


def environments(count: int) -> list[dict[str, str]]:
  """What tells each of some processes that they belong together."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  return [
    {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': str(count),
      'JAX_PROCESS_ID': str(number),
    }
    for number in range(count)
  ]
