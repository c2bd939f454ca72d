"""Parts of examples: their sizes, their classes, groups kept whole.

References: the definition of a stratified partition; for grouped parts,
scikit-learn's StratifiedGroupKFold as a bound on the imbalance.
"""

import hashlib

import numpy as np
import pytest
from sklearn import model_selection

from fer_jax.data import folds


def _ids(count):
  return np.array([f'id/{n:05d}' for n in range(count)])


def test_order_is_that_of_the_hashes():
  ids = _ids(50)
  expected = sorted(
    range(50), key=lambda n: hashlib.sha256(f'7 {ids[n]}'.encode()).digest()
  )
  np.testing.assert_array_equal(folds.draw_order(ids, 7), expected)


def test_linked_joins_what_any_grouping_joins():
  a = np.array([0, 0, 1, 2, 3, 4])
  b = np.array(['x', 'y', 'y', 'z', 'z', 'w'])
  got = folds.linked(a, b)
  assert got[0] == got[1] == got[2]
  assert got[3] == got[4]
  assert len(np.unique(got)) == 3


@pytest.mark.parametrize('count', [10, 97, 1000])
def test_single_rows_divide_every_class_evenly(count):
  rng = np.random.default_rng(count)
  label = rng.choice(4, count, p=[0.5, 0.3, 0.15, 0.05])
  part = folds.stratified_parts(
    _ids(count), label, np.arange(count), shares=[0.2] * 5, seed=1
  )
  sizes = np.bincount(part, minlength=5)
  assert np.ptp(sizes) <= 1
  for k in range(4):
    assert np.ptp(np.bincount(part[label == k], minlength=5)) <= 1


def test_shares_are_exact_to_rounding():
  label = np.repeat([0, 1, 2], [700, 200, 100])
  part = folds.stratified_parts(
    _ids(1000), label, np.arange(1000), shares=[0.7, 0.2, 0.1], seed=0
  )
  for k, total in enumerate([700, 200, 100]):
    got = np.bincount(part[label == k], minlength=3)
    np.testing.assert_array_equal(
      got, np.round(np.array([7, 2, 1]) / 10 * total)
    )


def test_groups_stay_whole_and_parts_stay_even():
  rng = np.random.default_rng(0)
  subject = rng.integers(0, 60, 900)
  # People differ in what they show.
  taste = rng.dirichlet(np.ones(6) * 0.7, 60)
  label = np.array([rng.choice(6, p=taste[s]) for s in subject])
  part = folds.stratified_parts(
    _ids(900), label, subject, shares=[0.1] * 10, seed=0
  )
  for s in range(60):
    assert len(np.unique(part[subject == s])) <= 1

  def imbalance(part):
    counts = np.array(
      [np.bincount(part[label == k], minlength=10) for k in range(6)]
    )
    return (counts / counts.sum(1, keepdims=True)).std(1).mean()

  reference = np.empty(900, int)
  splitter = model_selection.StratifiedGroupKFold(
    10, shuffle=True, random_state=0
  )
  for n, (_, test) in enumerate(splitter.split(label, label, subject)):
    reference[test] = n
  assert imbalance(part) <= 1.1 * imbalance(reference)
  assert np.bincount(part).min() > 45


def test_the_order_of_rows_and_the_names_of_groups_do_not_matter():
  rng = np.random.default_rng(3)
  ids, label = _ids(300), rng.integers(0, 3, 300)
  group = rng.integers(0, 150, 300)
  options = {'shares': [0.25] * 4, 'seed': 5}
  part = folds.stratified_parts(ids, label, group, **options)
  mixed = rng.permutation(300)
  renamed = rng.permutation(150)[group]
  again = folds.stratified_parts(
    ids[mixed], label[mixed], renamed[mixed], **options
  )
  np.testing.assert_array_equal(part[mixed], again)
  other = folds.stratified_parts(ids, label, group, shares=[0.25] * 4, seed=6)
  assert (part != other).mean() > 0.4


def test_share_of_groups_with_many_labels():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 4, 1000)
  group = rng.integers(0, 700, 1000)
  ids = _ids(1000)
  drawn = folds.stratified_share(ids, label, group, share=0.2, seed=3)
  expected = np.round(np.bincount(label) * 0.2)
  np.testing.assert_array_equal(np.bincount(label[drawn]), expected)
  assert not set(group[drawn]) & set(group[~drawn])
  # The order of the rows does not matter.
  mixed = rng.permutation(1000)
  again = folds.stratified_share(
    ids[mixed], label[mixed], group[mixed], share=0.2, seed=3
  )
  np.testing.assert_array_equal(drawn[mixed], again)


def test_no_part_is_left_empty_while_there_are_groups():
  group = np.repeat(np.arange(6), 20)
  label = np.arange(120) % 3
  part = folds.stratified_parts(
    _ids(120), label, group, shares=[0.97, 0.03], seed=0
  )
  np.testing.assert_array_equal(np.bincount(part), [100, 20])


def test_a_part_that_is_one_group_leaves_it_to_others_to_give():
  # The largest part, of 3 rows, is one group.
  sizes = [3, 1, 2, 1, 1, 1, 1]
  group = np.repeat(np.arange(7), sizes)
  for seed in range(20):
    part = folds.stratified_parts(
      _ids(10), group % 3, group, shares=[1 / 6] * 6, seed=seed
    )
    np.testing.assert_array_equal(np.unique(part), np.arange(6))
    assert np.unique([part, group], axis=1).shape[1] == 7


def test_no_rows_have_no_share():
  none = np.zeros(0, int)
  drawn = folds.stratified_share(_ids(0), none, none, share=0.5, seed=0)
  assert drawn.shape == (0,)
