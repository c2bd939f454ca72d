"""Memory of a population against XLA's own account of its block."""

import itertools

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
def test_prediction_is_what_the_compiled_block_takes(
  need, mapping, monkeypatch, caplog
):
  """At most a hundredth less, and a quarter more; beforehand, and by a
  population that has a limit, which compiles nothing for that."""
  count = 12
  looks = []
  monkeypatch.setattr(memory, 'require', lambda *look: looks.append(look))
  members = small.population_of(
    [small.member(0, 0)] * count, mapping, 0, limit=7, block_steps=1
  )
  with jax.log_compiles(), caplog.at_level('WARNING'):
    for _ in itertools.islice(members.blocks(), 2):
      pass
  compiled = 'Finished XLA compilation of jit(_at_once)'
  if mapping == 'in_turn':
    compiled = 'Finished XLA compilation of jit(_in_turn)'
  assert caplog.text.count(compiled) == 2  # the block, and the epoch's order
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
  ((limit, own, *how),) = looks
  assert (limit, *how) == (7, count, mapping, 1)
  for told in need, own:
    predicted = memory.predicted_bytes(told, count, mapping)
    assert 0.99 * actual < predicted < 1.25 * actual


def test_a_prediction_grows_with_members():
  assert memory.predicted_bytes(NEED, 0, 'in_turn') == 100
  assert memory.predicted_bytes(NEED, 3, 'in_turn') == 135
  assert memory.predicted_bytes(NEED, 3, 'vmap') == 145


def test_devices_that_have_one_memory_hold_the_set_once():
  for mapping, members, parts, expected in (
    ('in_turn', 0, 8, 100),
    ('in_turn', 1, 8, 115),
    ('in_turn', 8, 8, 220),
    ('in_turn', 3, 2, 150),  # idle copies of the last fill up
    ('vmap', 3, 2, 160),
  ):
    found = memory.predicted_bytes(NEED, members, mapping, parts)
    assert found == expected
  for limit, sizes in ((220, [5, 5]), (145, [3, 3, 2, 2]), (115, [1] * 10)):
    waves = memory.waves(10, limit, NEED, 'in_turn', parts=8)
    assert [len(wave) for wave in waves] == sizes


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
  assert memory.require(5 * 2**30, large, 4, 'vmap') is None
  says = r'^4 runs need 5,120 MiB of memory, 1,024 of .* at most 4,096: a small'
  with pytest.raises(memory.ExhaustedError, match=says) as raised:
    memory.require(4 * 2**30, large, 4, 'vmap')
  assert raised.value.fewer(4) == 3


def test_half_as_many_are_tried_where_nobody_knows_how_many_fit():
  error = memory.ExhaustedError('full')
  assert [error.fewer(n) for n in (1, 2, 3, 8)] == [0, 1, 2, 4]
  assert memory.split(range(4, 7), 2) == [range(4, 6), range(6, 7)]


def test_the_limit_of_a_cpu_is_that_of_the_machine():
  limit = memory.limit_bytes(jax.devices('cpu')[0])
  assert 2**26 < limit < 2**44
