"""This package's population: members that train side by side.

The case's 'members' says how many, its 'mapping' how they share the device. A
step is one step of every member. What is timed is a user's loop over blocks and
epochs, with the draw of each epoch's order and the records between epochs.
"""

import time
from collections.abc import Callable, Iterator

import jax
import numpy as np

from fer_jax import provenance
from fer_jax.benchmark.contenders import own
from fer_jax.training import cores, population, progress
from fer_jax.training import state as state_lib

ENDLESS = 2**30
"""Epochs, so that no member is ever done."""


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`."""
  cores.spread(case['members'])
  case = {**case, 'what': 'train_step'}
  dispatch = case['steps_per_dispatch']
  images, order, _, plan = own.resident_set(case)
  settings = own.settings_of(case)
  members = [
    population.Member(
      state=jax.device_get(own.initial_state({**case, 'seed': number})),
      plan=plan._replace(key=jax.random.key(number)),
      train_rows=np.asarray(order),
      validation_rows=np.zeros(0, np.int32),
      number=number,
    )
    for number in range(case['members'])
  ]
  together = population.Population(
    images,
    members,
    graphdef=own.graph_definition(case),
    settings_of=lambda epoch: settings,
    selection=progress.SelectionSettings(metric='last'),
    epochs=ENDLESS,
    block_steps=dispatch,
    mapping=case['mapping'],
  )
  blocks = _endless(together)

  def run(steps: int) -> float:
    begun = time.perf_counter()
    for _ in range(0, steps, dispatch):
      next(blocks)
    together.wait()
    seconds = time.perf_counter() - begun
    if together.diverged.any():
      raise ValueError('a loss was not finite, so its member took no steps')
    return seconds

  return run, {
    'steps_per_dispatch': dispatch,
    'parameters': state_lib.parameter_count(members[0].state.params),
    'mapping': together.mapping,
    'devices': min(jax.local_device_count(), case['members']),
    'device': jax.devices()[0].device_kind,
    'threads': provenance.cores(),
    'versions': provenance.versions(
      ('fer-jax', 'jax', 'jaxlib', 'flax', 'optax')
    ),
  }


def _endless(together: population.Population) -> Iterator[None]:
  while True:
    yield from together.blocks()
    together.finish_epoch()
