"""Twenty steps of a small model, and what they gave where they were recorded.

    PYTHONPATH=. python tests/training/golden_steps.py

writes `golden_steps.json` anew, which only a change of the model or of the
step's arithmetic calls for. Parameters, images and labels are NumPy's draws,
and nothing else is drawn: neither augmentation nor dropout is on.
"""

import json
import math
import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from small_config import small_config

from fer_jax import files, provenance
from fer_jax.training import optim, sharding, task
from fer_jax.training import step as step_lib
from fer_jax.training.state import HPARAMS, initial_state

FILE = pathlib.Path(__file__).with_suffix('.json')
STEPS, BATCH, CLASSES, SIDE = 20, 32, 7, 16
_ELEMENTS = 4


def recorded() -> dict:
  """What the file says, as `taken` gives it."""
  return json.loads(FILE.read_text())


def taken() -> dict:
  """The steps, on as many devices as divide the batch.

  Returns:
    'gradients': of the first step, by the name of the array its 'norm', its
    'largest' element and some 'elements', evenly through it; 'losses' of all
    steps.
  """
  config = small_config('', 'residual_bilstm', dropout=0.0)
  settings = step_lib.StepSettings(
    batch_size=BATCH, optim=optim.OptimSettings(name='sgd', momentum=0.9)
  )
  devices = jax.devices()
  mesh = sharding.data_mesh(BATCH, devices[: math.gcd(BATCH, len(devices))])
  state = sharding.replicated(_first_state(config, settings), mesh)
  plan = sharding.replicated(step_lib.Plan(jax.random.key(0)), mesh)
  graphdef = task.graph_definition(config, CLASSES)
  step = step_lib.make_stream_step(graphdef, settings, mesh)
  batch = sharding.divided(_batch(), mesh)
  none = sharding.replicated(step_lib.zero_sums(), mesh)
  losses, gradients = [], {}
  with jax.default_matmul_precision('highest'):
    for _ in range(STEPS):
      state, sums, _ = step(state, none, batch, plan)
      losses.append(step_lib.means(sums)['loss'])
      # The first momentum is the first gradient.
      gradients = gradients or _facts(state.opt_state[1].trace)
  return {'gradients': gradients, 'losses': losses}


def _first_state(config, settings):
  shapes = task.abstract_state(config, CLASSES)
  draws = np.random.default_rng(0)

  def draw(path, leaf):
    values = draws.standard_normal(leaf.shape).astype(np.float32)
    if len(leaf.shape) > 1:
      return jnp.asarray(values * np.sqrt(2 / np.prod(leaf.shape[:-1])))
    positive = path[-1].key in ('scale', 'var')
    return jnp.asarray(0.1 * values + positive)

  params, model_state = (
    jax.tree_util.tree_map_with_path(draw, tree)
    for tree in (shapes.params, shapes.model_state)
  )
  hparams = {**dict.fromkeys(HPARAMS, 0.0), 'learning_rate': 0.1}
  direction = optim.direction(settings.optim).init(params)
  return initial_state(params, model_state, direction, hparams, ema=False)


def _batch():
  """Noise with two brighter rows, which tell the class."""
  draws = np.random.default_rng(1)
  label = draws.integers(0, CLASSES, BATCH)
  image = draws.integers(0, 150, (BATCH, SIDE, SIDE, 1), np.uint8)
  image[np.arange(BATCH), 2 * label] += 100
  image[np.arange(BATCH), 2 * label + 1] += 100
  return {
    'image': image,
    'target': np.eye(CLASSES, dtype=np.float32)[label],
    'weight': np.ones(BATCH, np.float32),
  }


def _facts(gradients) -> dict:
  facts = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
    values = np.asarray(leaf, np.float64).reshape(-1)
    places = np.linspace(0, values.size - 1, min(_ELEMENTS, values.size))
    name = jax.tree_util.keystr(path, simple=True, separator='.')
    facts[name] = {
      'norm': float(np.linalg.norm(values)),
      'largest': float(np.abs(values).max()),
      'elements': values[places.astype(int)].tolist(),
    }
  return facts


if __name__ == '__main__':
  files.write_json(FILE, {**taken(), 'environment': provenance.environment()})
