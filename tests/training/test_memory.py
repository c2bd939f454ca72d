"""Memory of a population against XLA's own account of its block."""

import jax
import numpy as np
import pytest
import small_populations as small

from fer_jax.errors import UserError
from fer_jax.training import memory

NEED = memory.Need(shared=100, member=10, working=5)


@pytest.fixture(scope='module')
def need():
  member = small.member(0, 0)
  return memory.need(
    small.images(),
    jax.eval_shape(lambda: member.state),
    member.plan,
    (2100, 310),
    graphdef=small.graph_definition(0),
    settings=small.SETTINGS,
  )


@pytest.mark.parametrize('mapping', ['in_turn', 'vmap'])
def test_prediction_is_what_the_compiled_block_takes(need, mapping):
  """At most a hundredth less, and a quarter more."""
  count = 12
  members = small.population_of([small.member(0, 0)] * count, mapping, 0)
  given = members._given
  places = np.zeros(count, np.int32)
  order = given.train_rows
  arguments = (order, given.train_count, places, places, given.plan)
  compiled = (
    members._programs.block(small.SETTINGS)
    .lower(members._own, arguments, members._images)
    .compile()
  )
  taken = compiled.memory_analysis()
  # The block is not handed the validation lists, nor the lists in their order.
  actual = (
    taken.argument_size_in_bytes
    + taken.temp_size_in_bytes
    + taken.output_size_in_bytes
    - taken.alias_size_in_bytes
    + sum(x.nbytes for x in (given.validation_rows, given.train_rows))
  )
  predicted = memory.predicted_bytes(need, count, mapping)
  assert 0.99 * actual < predicted < 1.25 * actual


def test_a_prediction_grows_with_members():
  assert memory.predicted_bytes(NEED, 0, 'in_turn') == 100
  assert memory.predicted_bytes(NEED, 3, 'in_turn') == 135
  assert memory.predicted_bytes(NEED, 3, 'vmap') == 145


@pytest.mark.parametrize(
  ('mapping', 'limit', 'devices', 'sizes'),
  [
    ('in_turn', 145, 1, [4, 3, 3]),
    ('vmap', 145, 1, [3, 3, 2, 2]),
    ('vmap', 145, 2, [5, 5]),
    ('in_turn', 205, 1, [10]),
    ('in_turn', 204, 1, [5, 5]),
    ('vmap', 115, 1, [1] * 10),
  ],
)
def test_waves_are_few_and_fit(mapping, limit, devices, sizes):
  waves = memory.waves(10, limit, NEED, mapping, devices=devices)
  assert [len(wave) for wave in waves] == sizes
  assert [m for wave in waves for m in wave] == list(range(10))
  largest = -(-max(sizes) // devices)
  assert memory.predicted_bytes(NEED, largest, mapping) <= limit


def test_one_that_does_not_fit_is_refused():
  large = memory.Need(shared=2**30, member=2**29, working=2**29)
  with pytest.raises(UserError, match=r'needs 2,048 MiB .* 1,024 of them'):
    memory.waves(2, 2**30, large, 'vmap')


def test_the_limit_of_a_cpu_is_its_share_of_the_machine():
  limit = memory.limit_bytes(jax.devices('cpu')[0])
  assert 2**26 < limit < 2**44
