"""The benchmark of recurrent layers, on sizes that take no time."""

import dataclasses

import pytest

from fer_jax import provenance
from fer_jax.benchmark import recurrent_layers
from fer_jax.benchmark.contest import Effort
from fer_jax.benchmark.recurrent_layers import Size
from fer_jax.errors import UserError


def test_own_and_flax_layers_are_timed_and_have_the_same_parameters():
  size = Size(batch=2, steps=3, inputs=4, units=5)
  kept = []
  result = recurrent_layers.measure(
    ['flax'],
    Effort(rounds=2, warm_up=1, turn_seconds=0.0),
    backends=['auto', 'scan'],
    sizes=[size],
    cells=['gru'],
    keep=kept.append,
  )
  assert kept == [result]
  (row,) = result['cases']
  assert row['cell'] == 'gru'
  assert row['size'] == dataclasses.asdict(size)
  # Twice kernel, recurrent kernel, and both biases.
  expected = 2 * (4 * 15 + 5 * 15 + 2 * 15)
  for contender in row['contenders'].values():
    assert contender['parameters'] == expected
    assert len(contender['rounds']) == 2
  assert list(row['contenders']) == ['fer_jax', 'fer_jax scan', 'flax']
  lines = recurrent_layers.table(result)
  assert len(lines) == 4
  assert '(2, 3, 4) -> 5' in lines[-2]
  assert ' ms' in lines[-2]
  assert lines[-1] == (
    'fer_jax divided absent: a batch of this size is not divided here'
  )


@pytest.mark.skipif(provenance.cores() < 2, reason='needs two cores')
def test_a_batch_of_enough_is_divided_over_cores(monkeypatch):
  # As the process of a user has it, not that of the tests.
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  result = recurrent_layers.measure(
    [],
    Effort(rounds=1, warm_up=1, turn_seconds=0.0),
    sizes=[Size(batch=32, steps=2, inputs=3, units=4)],
    cells=['gru'],
  )
  contenders = result['cases'][0]['contenders']
  assert contenders['fer_jax']['devices'] == 1
  assert contenders['fer_jax divided']['devices'] == 2


def test_table_names_who_is_absent():
  spread = {'median': 2.0, 'min': 1.0, 'max': 3.0}
  row = {'seconds_per_step': spread, 'speedup_of_reference': spread}
  case = {
    'cell': 'lstm',
    'size': dataclasses.asdict(Size(64, 16, 128, 128)),
    'reference': 'fer_jax',
    'contenders': {'fer_jax': row, 'flax': row},
    'absent': {'torch': 'torch is not installed'},
  }
  assert recurrent_layers.table({'cases': [case]})[2:] == [
    'lstm      (64, 16, 128) -> 128    2000.00 ms   2.00 x (1.00 to 3.00)',
    'torch absent: torch is not installed',
  ]


def test_peers_without_a_recurrent_layer_are_named():
  with pytest.raises(UserError, match='keras_torch has no part'):
    recurrent_layers.measure(['keras_torch'], Effort())
