"""Interleaving and statistics, against numbers worked out by hand."""

import pytest

from fer_jax.benchmark import rounds


def test_every_round_times_everyone_and_starts_with_another():
  calls = []
  contenders = {
    name: lambda name=name: calls.append(name) or 1.0 for name in 'abc'
  }
  seconds = rounds.interleave(contenders, 4)
  assert ''.join(calls) == 'abcbcacababc'
  assert seconds == {name: [1.0] * 4 for name in 'abc'}


def test_rounds_are_told_as_they_end():
  ended = []
  rounds.interleave({'a': lambda: 1.0}, 3, after_round=ended.append)
  assert ended == [0, 1, 2]


def test_ratios_are_formed_inside_a_round():
  # The machine slows down tenfold in the second round; the peer takes twice
  # as long in every round. Quotients of medians would not be 2.
  ours, theirs = [1.0, 10.0, 1.5, 9.0], [2.0, 20.0, 3.0, 18.0]
  assert rounds.ratios(theirs, ours) == {
    'median': 2.0,
    'min': 2.0,
    'max': 2.0,
  }


def test_ratios_of_unequal_rounds_are_refused():
  with pytest.raises(ValueError, match='shorter'):
    rounds.ratios([1.0, 2.0], [1.0])


def test_summary():
  summary = rounds.summarise(
    {'ours': [1.0, 2.0, 4.0], 'peer': [2.0, 6.0, 4.0]},
    images=8,
    reference='ours',
  )
  assert summary['ours']['speedup_of_reference']['median'] == 1.0
  assert summary['peer'] == {
    'seconds_per_step': {'median': 4.0, 'min': 2.0, 'max': 6.0},
    'images_per_second': {'median': 2.0, 'min': 8 / 6, 'max': 4.0},
    # 2 / 1, 6 / 2, 4 / 4: the median is 2, though 4 / 2 is 2 by chance.
    'speedup_of_reference': {'median': 2.0, 'min': 1.0, 'max': 3.0},
    'rounds': [2.0, 6.0, 4.0],
  }
