"""This package as its users run it: blocks of steps over a resident set.

The case's 'what' says what of a step is in it:

  train_step  gather, standardise, forward, backward, Adam; no augmentation,
              so that it is the peers' work and the gather besides
  whole       the same with augmentation, as in training
  input_path  gather, augmentation and standardisation alone

Batches are divided over devices as `train` divides them.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fer_jax import models, provenance
from fer_jax.data import augment
from fer_jax.training import cores, optim, sharding
from fer_jax.training import state as state_lib
from fer_jax.training import step as step_lib

SET_STEPS = 32
"""Steps' worth of images in the resident set, so that gathers go far; at least
a dispatch, and whole ones."""


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`."""
  cores.spread(cores.parts_of_batch(case['batch_size']))
  mesh = sharding.data_mesh(case['batch_size'])
  images, order, count, plan = resident_set(case)
  images, order, plan = sharding.replicated((images, order, plan), mesh)
  settings = settings_of(case)
  graphdef = graph_definition(case)
  dispatch = case['steps_per_dispatch']
  state = sharding.replicated(
    jax.jit(functools.partial(initial_state, case))(), mesh
  )
  sums = sharding.replicated(step_lib.zero_sums(), mesh)
  info = {
    'steps_per_dispatch': dispatch,
    'parameters': state_lib.parameter_count(state.params),
    'device': jax.devices()[0].device_kind,
    'devices': sharding.parts(mesh),
    'threads': provenance.cores(),
    'versions': provenance.versions(
      ('fer-jax', 'jax', 'jaxlib', 'flax', 'optax')
    ),
  }
  if case['what'] == 'input_path':
    path = _input_path(
      images, order, count, plan, settings, mesh, dispatch=dispatch
    )
    return path, info
  block = step_lib.make_block(graphdef, settings, mesh)

  def run(steps: int) -> float:
    nonlocal state
    before = int(state.step)
    begun = time.perf_counter()
    for start in _starts(steps, dispatch):
      stop = start + dispatch
      state, _ = block(state, sums, images, order, count, start, stop, plan)
    jax.block_until_ready(state)
    seconds = time.perf_counter() - begun
    if int(state.step) - before != steps:
      raise ValueError(
        f'the loss was not finite after step {int(state.step)}, so fewer '
        'steps were taken than were timed'
      )
    return seconds

  return run, info


def block_of(case: dict) -> tuple[Any, tuple[Any, ...]]:
  """The block of train steps of one device, and what it is called with;
  nothing compiled."""
  state = jax.eval_shape(functools.partial(initial_state, case))
  images, order, count, plan = jax.eval_shape(
    functools.partial(resident_set, case)
  )
  block = step_lib.make_block(graph_definition(case), settings_of(case))
  arguments = (state, step_lib.zero_sums(), images, order, count, 0, 1, plan)
  return block, arguments


def resident_set(case: dict) -> tuple[Any, jax.Array, int, step_lib.Plan]:
  """Random images, an order of theirs, their number, and a plan."""
  draws = np.random.default_rng(case['seed'])
  classes = case['num_classes']
  count = _set_steps(case['steps_per_dispatch']) * case['batch_size']
  shape = (count, *case['input_shape'])
  labels = draws.integers(classes, size=count)
  images = jax.device_put(
    {
      'image': draws.integers(256, size=shape, dtype=np.uint8),
      'target': np.eye(classes, dtype=np.float32)[labels],
    }
  )
  order = jnp.asarray(draws.permutation(count), jnp.int32)
  return images, order, count, step_lib.Plan(jax.random.key(case['seed']))


def settings_of(case: dict) -> step_lib.StepSettings:
  """Of the step; augmentation is left out of what peers are timed beside."""
  augmented = case['what'] != 'train_step'
  return step_lib.StepSettings(
    batch_size=case['batch_size'],
    augmentation=augment.Augmentation() if augmented else None,
    pixels=_specification(case).pixels,
  )


def _specification(case: dict) -> models.Specification:
  return models.specify(case['model'], **_tuples(case['overrides']))


def _model(case: dict) -> nnx.Module:
  return models.create(
    case['model'],
    num_classes=case['num_classes'],
    rngs=nnx.Rngs(case['seed']),
    **_tuples(case['overrides']),
  )


def graph_definition(case: dict) -> nnx.GraphDef:
  """Of the case's model."""
  return state_lib.split(nnx.eval_shape(lambda: _model(case)))[0]


def initial_state(case: dict) -> state_lib.TrainState:
  """Of a run that begins."""
  _, params, model_state = state_lib.split(_model(case))
  return state_lib.initial_state(
    params,
    model_state,
    optim.direction(optim.OptimSettings()).init(params),
    {
      'learning_rate': case['learning_rate'],
      'weight_decay': 0.0,
      'l2': 0.0,
      'dropout': case['dropout'],
      'label_smoothing': 0.0,
      'augment_strength': 1.0,
    },
    ema=False,
  )


def _input_path(
  images, order, count, plan, settings, mesh, *, dispatch
) -> Callable[[int], float]:
  """Everything of a step that comes before the model, without the model."""
  settings = settings.over(mesh)

  def block(total, images, order, plan, start, step):
    def body(i, total):
      batch = step_lib.batch_at(images, order, count, start + i, settings)
      inputs, targets = step_lib.prepare(
        batch,
        settings.augmentation,
        key=plan.key,
        step=step + i,
        pixels=settings.pixels,
        axis=settings.axis,
      )
      # Every pixel is asked for, or the compiler would leave the work out.
      return total + jnp.sum(jnp.square(inputs)) + jnp.sum(targets)

    return jax.lax.fori_loop(0, dispatch, body, total)

  block = jax.jit(sharding.over_devices(block, mesh))

  def run(steps: int) -> float:
    begun = time.perf_counter()
    total = sharding.replicated(jnp.zeros(()), mesh)
    for number, start in enumerate(_starts(steps, dispatch)):
      first = number * dispatch
      total = block(total, images, order, plan, start, first)
    jax.block_until_ready(total)
    return time.perf_counter() - begun

  return run


def _starts(steps: int, dispatch: int) -> list[int]:
  """First step of each dispatch, going round the set."""
  whole = _set_steps(dispatch)
  return [start % whole for start in range(0, steps, dispatch)]


def _set_steps(dispatch: int) -> int:
  """`SET_STEPS`, or near it in whole dispatches."""
  return max(1, SET_STEPS // dispatch) * dispatch


def _tuples(overrides: dict) -> dict:
  """The overrides with JSON's lists as the tuples they were."""
  return {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in overrides.items()
  }
