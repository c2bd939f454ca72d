"""Intervals against textbooks, resampling by hand and simulated truth."""

import numpy as np
import pytest

from fer_jax.evaluation import counts as counts_lib
from fer_jax.evaluation import intervals


def _of_confusion(confusion):
  """(labels, predicted) that are counted so."""
  pairs = np.argwhere(np.ones_like(confusion))
  return np.repeat(pairs, np.ravel(confusion), axis=0).T


def test_accuracy_interval_matches_the_normal_approximation():
  # 3,000 of 4,000: p +- 1.96 sqrt(p (1 - p) / n) = .75 +- .0134.
  predictions = _of_confusion([[1500, 500], [500, 1500]])
  low, high = intervals.bootstrap_intervals(*predictions, 2)['accuracy']
  half_width = 1.96 * np.sqrt(0.75 * 0.25 / 4000)
  assert low == pytest.approx(0.75 - half_width, abs=6e-4)
  assert high == pytest.approx(0.75 + half_width, abs=6e-4)


def test_the_interval_is_seeded():
  predictions = _of_confusion([[30, 20], [10, 40]])
  ids = np.arange(100) // 2

  def found(seed, **given):
    return intervals.bootstrap_intervals(*predictions, 2, seed=seed, **given)

  assert found(1) == found(1) != found(2)
  copied = found(1, units=ids)
  assert copied == found(1, units=ids) != found(2, units=ids)


def test_as_many_resamples_are_drawn_as_asked_for():
  predictions = _of_confusion([[30, 20], [10, 40]])
  for ids in (None, np.arange(100) // 2):
    found = intervals.bootstrap_intervals(*predictions, 2, units=ids, n_boot=1)
    assert found['accuracy'] is None  # one resample has no spread
  counts = np.arange(12).reshape(6, 2)
  sums = intervals.resampled_sums(
    counts, n_boot=600, rng=np.random.default_rng(0)
  )
  assert sums.shape == (600, 2)


def test_a_class_that_a_resample_misses_is_in_none_of_its_means():
  figures = counts_lib.figures_of_counts(
    hits=np.array([3, 1, 0]),
    support=np.array([4, 1, 0]),
    predicted=np.array([3, 1, 1]),
  )
  # Recalls 3/4 and 1; F1 6/7 and 1; the third class is not true of any.
  assert figures['accuracy'] == 4 / 5
  assert figures['balanced_accuracy'] == pytest.approx((3 / 4 + 1) / 2)
  assert figures['macro_f1'] == pytest.approx((6 / 7 + 1) / 2)


def test_the_interval_is_the_same_however_many_draws_are_made_at_once(
  monkeypatch,
):
  predictions = _of_confusion([[30, 20, 0], [10, 40, 5], [1, 2, 7]])
  units = np.arange(len(predictions[0])) // 2

  def found():
    return [
      intervals.bootstrap_intervals(*predictions, 3, units=given, n_boot=200)
      for given in (None, units)
    ]

  before = found()
  monkeypatch.setattr(intervals, '_DRAWS_AT_ONCE', 70)
  after = found()
  # NumPy draws a multinomial's cells one after another.
  np.testing.assert_array_equal(
    [list(one.values()) for one in before],
    [list(one.values()) for one in after],
  )


def test_memory_does_not_grow_with_the_number_of_people(monkeypatch):
  monkeypatch.setattr(intervals, '_NUMBERS_AT_ONCE', 1000)
  drawn = []

  class Watched:
    def multinomial(self, n, shares, size):
      drawn.append((len(shares), size))
      return np.random.default_rng(0).multinomial(n, shares, size)

  # Four kinds of people, then 300 of whom no two are alike.
  for counts in (np.arange(8).reshape(4, 2), np.arange(600).reshape(300, 2)):
    sums = intervals.resampled_sums(counts, n_boot=501, rng=Watched())
    assert sums.shape == (501, 2)
  assert drawn == [(4, 250), (4, 250), (4, 1)] + [(300, 3)] * 167


@pytest.mark.parametrize(('people', 'level'), [(3, 0.8), (5, 0.8), (10, 3.0)])
def test_intervals_of_few_people_hold_the_truth_as_often_as_they_say(
  people, level
):
  """Accuracies of people vary by one standard deviation of the logit.

  Percentiles of the draws held it in 0.73 to 0.90 of the cases.
  """
  rng = np.random.default_rng(0)
  truth = _logistic(rng.normal(level, 1, 100_000)).mean()
  units = np.repeat(np.arange(people), 20)
  labels = np.tile(np.arange(20) % 2, people)
  held = []
  for n in range(200):
    of_people = _logistic(rng.normal(level, 1, people))
    right = rng.random(len(units)) < of_people[units]
    found = intervals.bootstrap_intervals(
      labels,
      np.where(right, labels, 1 - labels),
      2,
      units=units,
      n_boot=300,
      seed=n,
    )['accuracy']
    if found is not None:  # people who are all alike
      held.append(found[0] <= truth <= found[1])
  assert len(held) > 190
  assert 0.92 <= np.mean(held) <= 0.99


@pytest.mark.parametrize('people', [1, 2])
def test_intervals_of_rare_classes_hold_the_truth_as_often_as_they_say(people):
  """Two of four classes have 10 units, whose recall is 5 %.

  Without what the resamples of these do not show it was 0.63 of the cases.
  """
  rng = np.random.default_rng(0)
  labels = np.repeat(np.arange(4), [150, 150, 10, 10])
  recall = np.array([0.95, 0.95, 0.05, 0.05])
  held = {'balanced_accuracy': [], 'macro_f1': []}
  shares = (1 - recall[:, None]) / 3 * (1 - np.eye(4)) + np.diag(recall)
  truth = counts_lib.figures_of_counts(
    hits=recall * np.bincount(labels),
    support=np.bincount(labels),
    predicted=np.bincount(labels) @ shares,
  )
  for n in range(200):
    other = (labels + rng.integers(1, 4, len(labels))) % 4
    right = rng.random(len(labels)) < recall[labels]
    found = intervals.bootstrap_intervals(
      np.repeat(labels, people),
      np.repeat(np.where(right, labels, other), people),
      4,
      units=np.repeat(np.arange(len(labels)), people),
      n_boot=200,
      seed=n,
    )
    for name, of_name in held.items():
      low, high = found[name]
      of_name.append(low <= truth[name] <= high)
  for of_name in held.values():
    assert np.mean(of_name) >= 0.94


def test_a_class_that_is_all_wrong_adds_its_posteriors_variance():
  labels = np.array([0] * 40 + [1] * 20)
  predicted = np.array([0] * 30 + [1] * 10 + [0] * 20)
  found = intervals.bootstrap_intervals(labels, predicted, 2, n_boot=200_000)
  # Beta(1/3, 61/3): a b / ((a + b)^2 (a + b + 1)).
  unseen = (1 / 3) * (61 / 3) / ((62 / 3) ** 2 * (65 / 3))
  seen = 0.75 * 0.25 / 40
  quantile = 2.0010  # of Student's t, 59 degrees of freedom
  half = quantile * np.sqrt((seen + unseen) / 4) / (0.375 * 0.625)
  centre = np.log(0.375 / 0.625)
  np.testing.assert_allclose(
    found['balanced_accuracy'],
    [_logistic(centre - half), _logistic(centre + half)],
    atol=0.004,
  )
  # F1 of the second class is 2 r 20 / (20 + 20 r + 10): it rises by 4 / 3 of r.
  drawn = intervals.resampled_figures(
    np.arange(60), labels, predicted[None], 2, n_boot=50_000
  )['macro_f1']
  f1 = 60 / 90 / 2
  variance = drawn.var() * 60 / 59 + (4 / 3) ** 2 * unseen / 4
  half = quantile * np.sqrt(variance) / (f1 * (1 - f1))
  centre = np.log(f1 / (1 - f1))
  np.testing.assert_allclose(
    found['macro_f1'],
    [_logistic(centre - half), _logistic(centre + half)],
    atol=0.004,
  )
  # Accuracy is of all examples alike.
  low, high = found['accuracy']
  half = quantile * np.sqrt(1 / 60) / 0.5
  assert low == pytest.approx(_logistic(-half), abs=0.005)
  assert high == pytest.approx(_logistic(half), abs=0.005)


def _logistic(x):
  return 1 / (1 + np.exp(-x))


def test_being_right_every_time_is_not_certainty():
  # Clopper and Pearson: 0.025 ** (1 / n); of the class with 2 examples little
  # is known.
  labels = np.array([0] * 38 + [1] * 2)
  found = intervals.bootstrap_intervals(labels, labels, 2)
  assert found['accuracy'] == pytest.approx([0.9119, 1], abs=1e-4)
  assert found['balanced_accuracy'] == pytest.approx([0.1581, 1], abs=1e-4)
  assert found['macro_f1'] == found['balanced_accuracy']
  wrong = intervals.bootstrap_intervals(labels, 1 - labels, 2)
  assert wrong['accuracy'] == pytest.approx([0, 0.0881], abs=1e-4)
  # Of eight people, and three who show the second class.
  units = np.array([*range(8)] * 4 + [0, 1, 2, 0, 1, 2, 0, 1])
  found = intervals.bootstrap_intervals(
    np.array([0] * 32 + [1] * 8), np.array([0] * 32 + [1] * 8), 2, units=units
  )
  assert found['accuracy'] == pytest.approx([0.025 ** (1 / 8), 1])
  assert found['macro_f1'] == pytest.approx([0.025 ** (1 / 3), 1])


def test_a_single_example_has_no_interval():
  one = np.zeros(1, int)
  found = intervals.bootstrap_intervals(one, one, 2)
  assert set(found.values()) == {None}


def test_people_who_are_all_alike_have_no_interval():
  # Half of the pictures of each, so that no resample differs.
  labels, predicted = np.array([0, 1] * 20), np.zeros(40, int)
  units = np.repeat(['anne', 'bob'], 20)
  found = intervals.bootstrap_intervals(labels, predicted, 2, units=units)
  assert set(found.values()) == {None}
  # One picture tells them apart.
  predicted[1] = 1
  found = intervals.bootstrap_intervals(labels, predicted, 2, units=units)
  low, high = found['accuracy']
  assert low < 0.4 < 0.6 < high
  assert intervals.difference_interval(0.05, np.full(50, 0.05), 2) is None


def test_macro_f1_has_no_interval_where_recalls_do_not_vary():
  # Each person has one picture of either class, and one of them is right; what
  # the other is taken for is not the same of all.
  labels, units = np.tile([0, 1], 3), np.repeat(['anne', 'bob', 'eve'], 2)
  predicted = np.array([0, 0, 0, 0, 0, 2])
  found = intervals.bootstrap_intervals(labels, predicted, 3, units=units)
  assert set(found.values()) == {None}


def test_a_difference_has_the_interval_of_students_t():
  # Of ten units: the standard error of their mean, by the textbook.
  values = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3]) / 10
  rng = np.random.default_rng(0)
  draws = rng.choice(values, (20_000, 10)).mean(axis=1)
  half = 2.2622 * values.std(ddof=1) / np.sqrt(10)
  found = intervals.difference_interval(values.mean(), draws, 10)
  assert found == pytest.approx(
    [values.mean() - half, values.mean() + half], abs=0.003
  )
  assert intervals.difference_interval(0.2, draws, 1) is None
