"""Balanced lists: how many of every class, and which."""

import numpy as np

from fer_jax.data import sampling
from fer_jax.datasets import fer2013


def _lists(counts):
  label = np.repeat(np.arange(len(counts)), counts)
  label = label[np.random.default_rng(0).permutation(len(label))]
  rows = np.arange(len(label), dtype=np.int64) * 3
  ids = np.array([f'id/{row}' for row in rows])
  return rows, ids, label


def test_oversampling_keeps_all_and_copies_to_the_largest():
  rows, ids, label = _lists([50, 20, 7])
  got = sampling.oversample(rows, ids, label, seed=0)
  np.testing.assert_array_equal(got[:77], rows)
  class_of = dict(zip(rows, label, strict=True))
  counts = np.bincount([class_of[row] for row in got])
  np.testing.assert_array_equal(counts, [50, 50, 50])
  # Drawn with replacement: 43 of 7 rows, each of them several times.
  copies = got[77:]
  of_smallest = [row for row in copies if class_of[row] == 2]
  assert set(of_smallest) == set(rows[label == 2])
  other = sampling.oversample(rows, ids, label, seed=1)
  assert not np.array_equal(got, other)
  # Neither the order of the rows nor the numbers of the classes matter.
  mixed = np.random.default_rng(1).permutation(77)
  again = sampling.oversample(rows[mixed], ids[mixed], 2 - label[mixed], seed=0)
  np.testing.assert_array_equal(np.sort(again), np.sort(got))


def test_draws_are_uniform():
  rows, ids, label = _lists([4000, 4])
  got = sampling.oversample(rows, ids, label, seed=3)
  counts = np.unique(got[4004:], return_counts=True)[1]
  # 3,996 draws of four: a standard deviation of 27 about 999.
  assert abs(counts - 999).max() < 4 * 27


def test_the_draws_stay_what_they_were():
  """A list that a published figure was trained on can be made again."""
  rows, ids, label = _lists([9, 4])
  got = sampling.oversample(rows, ids, label, seed=5)
  np.testing.assert_array_equal(got[13:], [0, 30, 30, 0, 27])


def test_the_official_counts_give_the_papers_62923():
  counts = np.sum(list(fer2013.OFFICIAL_COUNTS.values()), axis=0)
  label = np.repeat(np.arange(7), counts)
  rows = np.arange(len(label))
  got = sampling.oversample(rows, rows.astype(str), label, seed=0)
  assert len(got) == 62923 == 7 * 8989


def test_downsampling_cuts_to_the_smallest_without_replacement():
  rows, ids, label = _lists([50, 20, 7])
  got = sampling.downsample(rows, ids, label, seed=0)
  class_of = dict(zip(rows, label, strict=True))
  np.testing.assert_array_equal(
    np.bincount([class_of[row] for row in got]), [7, 7, 7]
  )
  assert len(set(got)) == 21
  np.testing.assert_array_equal(got, np.sort(got))
  mixed = np.random.default_rng(1).permutation(77)
  again = sampling.downsample(rows[mixed], ids[mixed], label[mixed], seed=0)
  assert set(again) == set(got)
  assert set(sampling.downsample(rows, ids, label, seed=1)) != set(got)


def test_balance_by_name():
  rows, ids, label = _lists([5, 2])
  assert sampling.BALANCES == ('none', 'oversample', 'downsample')
  lengths = [
    len(sampling.balance(how, rows, ids, label, seed=0))
    for how in sampling.BALANCES
  ]
  assert lengths == [7, 10, 4]
