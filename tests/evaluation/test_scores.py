"""Figures against scikit-learn, closed forms and examples worked by hand."""

import json

import numpy as np
import pytest
import sklearn.metrics

from fer_jax.evaluation import scores

NAMES = ('angry', 'happy', 'sad', 'neutral')
K = len(NAMES)


@pytest.fixture(scope='module')
def predictions():
  rng = np.random.default_rng(0)
  labels = rng.choice(K, 500, p=[0.1, 0.4, 0.3, 0.2])
  logits = rng.normal(size=(500, K)) + 1.5 * np.eye(K)[labels]
  return logits.astype(np.float32), labels


def _of_confusion(confusion):
  """(labels, predicted) that are counted so."""
  pairs = np.argwhere(np.ones_like(confusion))
  return np.repeat(pairs, np.ravel(confusion), axis=0).T


@pytest.fixture(scope='module')
def figures(predictions):
  return scores.all_scores(*predictions, NAMES)


def _softmax(logits):
  exp = np.exp(logits.astype(np.float64))
  return exp / exp.sum(-1, keepdims=True)


def test_averages_match_sklearn(predictions, figures):
  logits, labels = predictions
  predicted = logits.argmax(-1)
  for average in ('macro', 'weighted'):
    expected = sklearn.metrics.precision_recall_fscore_support(
      labels, predicted, average=average
    )
    for name, value in zip(
      ('precision', 'recall', 'f1'), expected, strict=False
    ):
      assert figures[average][name] == pytest.approx(value, abs=1e-12)
  assert figures['accuracy'] == np.mean(predicted == labels)
  assert figures['balanced_accuracy'] == pytest.approx(
    sklearn.metrics.balanced_accuracy_score(labels, predicted), abs=1e-12
  )
  assert figures['loss'] == pytest.approx(
    sklearn.metrics.log_loss(labels, _softmax(logits)), rel=1e-6
  )
  assert figures['n'] == 500


def test_rows_far_apart_keep_their_digits():
  """One shift for all rows would leave the lower one without any."""
  found = scores.log_softmax(np.array([[2e3, 2e3 - 1], [-2e3, -2e3 - 1]]))
  expected = -np.log1p(np.exp([-1.0, 1.0]))
  np.testing.assert_allclose(found, [expected, expected], rtol=1e-12)


def test_a_class_neither_true_nor_predicted_has_its_row():
  logits = 5.0 * np.eye(3)[[0, 2, 2]]
  figures = scores.all_scores(logits, np.array([0, 0, 2]), ('a', 'b', 'c'))
  rows = [(r['name'], r['support'], r['f1']) for r in figures['per_class']]
  two_thirds = pytest.approx(2 / 3)
  assert rows == [('a', 2, two_thirds), ('b', 0, None), ('c', 1, two_thirds)]
  assert figures['macro']['f1'] == two_thirds
  assert figures['bootstrap']['draws'] == 10_000


def test_confusion_rows_are_true_labels():
  labels = np.array([0, 0, 0, 1])
  logits = 5.0 * np.eye(2)[[0, 1, 1, 1]]
  figures = scores.all_scores(logits, labels, ('a', 'b'))
  assert figures['confusion'] == [[1, 2], [0, 1]]
  assert [row['support'] for row in figures['per_class']] == [3, 1]
  assert [row['predicted'] for row in figures['per_class']] == [1, 3]


def test_auc_matches_sklearn(predictions, figures):
  logits, labels = predictions
  probs = _softmax(logits)
  for k, row in enumerate(figures['per_class']):
    expected = sklearn.metrics.roc_auc_score(labels == k, probs[:, k])
    assert row['auc'] == pytest.approx(expected, abs=1e-9)
  assert figures['auc_macro'] == pytest.approx(
    sklearn.metrics.roc_auc_score(labels, probs, multi_class='ovr'), abs=1e-9
  )


def test_calibration_error_by_hand():
  # Two classes, two bins. In (0.5, 1]: confidences .6, .8 and .9 with two
  # right. A confidence of .5 falls in (0, 0.5]: right, by the first of equals.
  # ECE = 3/4 |2/3 - 23/30| + 1/4 |1 - 1/2| = .075 + .125.
  probs = np.array([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1], [0.5, 0.5]])
  labels = np.array([0, 0, 0, 0])
  bins = scores.calibration_bins(probs, labels, num_bins=2)
  assert [part['count'] for part in bins] == [1, 3]
  assert scores.expected_calibration_error(bins) == pytest.approx(0.2)


def test_calibration_bins_cover_everything_and_leave_empty_ones_blank(figures):
  bins = figures['calibration']
  assert len(bins) == 15
  assert sum(part['count'] for part in bins) == 500
  # With four classes no largest probability lies below a quarter.
  assert bins[0] == {
    'lower': 0.0,
    'upper': pytest.approx(1 / 15),
    'count': 0,
    'accuracy': None,
    'confidence': None,
  }


def test_calibration_error_matches_a_plain_loop(predictions, figures):
  logits, labels = predictions
  probs = _softmax(logits)
  confidence, right = probs.max(-1), probs.argmax(-1) == labels
  expected = 0.0
  for lower in np.arange(15) / 15:
    inside = (confidence > lower) & (confidence <= lower + 1 / 15)
    if inside.any():
      gap = abs(right[inside].mean() - confidence[inside].mean())
      expected += inside.mean() * gap
  assert figures['expected_calibration_error'] == pytest.approx(
    expected, abs=1e-9
  )


def test_accuracy_interval_matches_the_normal_approximation():
  # 3,000 of 4,000: p +- 1.96 sqrt(p (1 - p) / n) = .75 +- .0134.
  predictions = _of_confusion([[1500, 500], [500, 1500]])
  low, high = scores.bootstrap_intervals(*predictions, 2)['accuracy']
  half_width = 1.96 * np.sqrt(0.75 * 0.25 / 4000)
  assert low == pytest.approx(0.75 - half_width, abs=6e-4)
  assert high == pytest.approx(0.75 + half_width, abs=6e-4)


def test_intervals_match_resampling_the_examples(predictions, figures):
  logits, labels = predictions
  predicted = logits.argmax(-1)
  rng = np.random.default_rng(3)
  resampled = {'accuracy': [], 'balanced_accuracy': [], 'macro_f1': []}
  for _ in range(400):
    rows = rng.integers(0, 500, 500)
    true, guess = labels[rows], predicted[rows]
    resampled['accuracy'].append(np.mean(true == guess))
    resampled['balanced_accuracy'].append(
      sklearn.metrics.balanced_accuracy_score(true, guess)
    )
    resampled['macro_f1'].append(
      sklearn.metrics.f1_score(true, guess, average='macro')
    )
  # 400 resamples place a 2.5 % quantile within about 0.006 here.
  for name, values in resampled.items():
    np.testing.assert_allclose(
      figures['intervals'][name],
      np.quantile(values, [0.025, 0.975]),
      atol=0.015,
    )


def test_the_interval_is_seeded():
  predictions = _of_confusion([[30, 20], [10, 40]])
  ids = np.arange(100) // 2

  def intervals(seed, **given):
    return scores.bootstrap_intervals(*predictions, 2, seed=seed, **given)

  assert intervals(1) == intervals(1) != intervals(2)
  copied = intervals(1, units=ids)
  assert copied == intervals(1, units=ids) != intervals(2, units=ids)


def test_as_many_resamples_are_drawn_as_asked_for():
  predictions = _of_confusion([[30, 20], [10, 40]])
  for ids in (None, np.arange(100) // 2):
    found = scores.bootstrap_intervals(*predictions, 2, units=ids, n_boot=1)
    assert found['accuracy'] is None  # one resample has no spread
  counts = np.arange(12).reshape(6, 2)
  sums = scores.resampled_sums(counts, n_boot=600, rng=np.random.default_rng(0))
  assert sums.shape == (600, 2)


def test_a_class_that_a_resample_misses_is_in_none_of_its_means():
  figures = scores.figures_of_counts(
    hits=np.array([3, 1, 0]),
    support=np.array([4, 1, 0]),
    predicted=np.array([3, 1, 1]),
  )
  # Recalls 3/4 and 1; F1 6/7 and 1; the third class is not true of any.
  assert figures['accuracy'] == 4 / 5
  assert figures['balanced_accuracy'] == pytest.approx((3 / 4 + 1) / 2)
  assert figures['macro_f1'] == pytest.approx((6 / 7 + 1) / 2)


def test_copies_of_an_id_are_drawn_together(predictions):
  # Five copies of each of 500 examples are 500 examples: the interval is
  # theirs, and not the 2.2 times narrower one of 2,500 examples.
  logits, labels = (np.repeat(values, 5, axis=0) for values in predictions)
  ids = np.repeat([f'face{n}' for n in range(500)], 5)
  once = scores.all_scores(*predictions, NAMES)
  copied = scores.all_scores(logits, labels, NAMES, units=ids)
  assert copied['accuracy'] == pytest.approx(once['accuracy'])
  for name, (low, high) in once['intervals'].items():
    # Two bootstraps of 10,000 place a bound to about 0.002.
    np.testing.assert_allclose(
      copied['intervals'][name], [low, high], atol=0.004
    )
    apart = scores.all_scores(logits, labels, NAMES)['intervals'][name]
    assert apart[1] - apart[0] < 0.6 * (high - low)
  mask = np.arange(len(ids)) < 1000
  part = scores.slice_scores(logits, labels, {'part': mask}, NAMES, units=ids)
  alone = scores.all_scores(logits[mask], labels[mask], NAMES, units=ids[mask])
  assert part['part']['intervals'] == alone['intervals']
  # Of one person nothing else can be drawn.
  one = np.full(len(ids), 'one')
  found = scores.slice_scores(logits, labels, {'part': mask}, NAMES, units=one)
  assert set(found['part']['intervals'].values()) == {None}


def test_ids_that_occur_once_change_no_bit(predictions):
  ids = np.array([f'face{n}' for n in range(500)])
  with_ids = scores.all_scores(*predictions, NAMES, units=ids)
  assert with_ids == scores.all_scores(*predictions, NAMES)


def test_the_interval_is_the_same_however_many_draws_are_made_at_once(
  monkeypatch,
):
  predictions = _of_confusion([[30, 20, 0], [10, 40, 5], [1, 2, 7]])
  units = np.arange(len(predictions[0])) // 2

  def found():
    return [
      scores.bootstrap_intervals(*predictions, 3, units=given, n_boot=200)
      for given in (None, units)
    ]

  before = found()
  monkeypatch.setattr(scores, '_DRAWS_AT_ONCE', 70)
  after = found()
  # NumPy draws a multinomial's cells one after another.
  np.testing.assert_array_equal(
    [list(one.values()) for one in before],
    [list(one.values()) for one in after],
  )


def test_memory_does_not_grow_with_the_number_of_people(monkeypatch):
  monkeypatch.setattr(scores, '_NUMBERS_AT_ONCE', 1000)
  drawn = []

  class Watched:
    def multinomial(self, n, shares, size):
      drawn.append((len(shares), size))
      return np.random.default_rng(0).multinomial(n, shares, size)

  # Four kinds of people, then 300 of whom no two are alike.
  for counts in (np.arange(8).reshape(4, 2), np.arange(600).reshape(300, 2)):
    sums = scores.resampled_sums(counts, n_boot=501, rng=Watched())
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
    found = scores.bootstrap_intervals(
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
  truth = scores.figures_of_counts(
    hits=recall * np.bincount(labels),
    support=np.bincount(labels),
    predicted=np.bincount(labels) @ shares,
  )
  for n in range(200):
    other = (labels + rng.integers(1, 4, len(labels))) % 4
    right = rng.random(len(labels)) < recall[labels]
    found = scores.bootstrap_intervals(
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
  found = scores.bootstrap_intervals(labels, predicted, 2, n_boot=200_000)
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
  drawn = scores.resampled_figures(
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
  found = scores.bootstrap_intervals(labels, labels, 2)
  assert found['accuracy'] == pytest.approx([0.9119, 1], abs=1e-4)
  assert found['balanced_accuracy'] == pytest.approx([0.1581, 1], abs=1e-4)
  assert found['macro_f1'] == found['balanced_accuracy']
  wrong = scores.bootstrap_intervals(labels, 1 - labels, 2)
  assert wrong['accuracy'] == pytest.approx([0, 0.0881], abs=1e-4)
  # Of eight people, and three who show the second class.
  units = np.array([*range(8)] * 4 + [0, 1, 2, 0, 1, 2, 0, 1])
  found = scores.bootstrap_intervals(
    np.array([0] * 32 + [1] * 8), np.array([0] * 32 + [1] * 8), 2, units=units
  )
  assert found['accuracy'] == pytest.approx([0.025 ** (1 / 8), 1])
  assert found['macro_f1'] == pytest.approx([0.025 ** (1 / 3), 1])


def test_a_single_example_has_no_interval():
  one = np.zeros(1, int)
  found = scores.bootstrap_intervals(one, one, 2)
  assert set(found.values()) == {None}


def test_people_who_are_all_alike_have_no_interval():
  # Half of the pictures of each, so that no resample differs.
  labels, predicted = np.array([0, 1] * 20), np.zeros(40, int)
  units = np.repeat(['anne', 'bob'], 20)
  found = scores.bootstrap_intervals(labels, predicted, 2, units=units)
  assert set(found.values()) == {None}
  # One picture tells them apart.
  predicted[1] = 1
  found = scores.bootstrap_intervals(labels, predicted, 2, units=units)
  low, high = found['accuracy']
  assert low < 0.4 < 0.6 < high
  assert scores.difference_interval(0.05, np.full(50, 0.05), 2) is None


def test_a_difference_has_the_interval_of_students_t():
  # Of ten units: the standard error of their mean, by the textbook.
  values = np.array([3, 1, 4, 1, 5, 9, 2, 6, 5, 3]) / 10
  rng = np.random.default_rng(0)
  draws = rng.choice(values, (20_000, 10)).mean(axis=1)
  half = 2.2622 * values.std(ddof=1) / np.sqrt(10)
  found = scores.difference_interval(values.mean(), draws, 10)
  assert found == pytest.approx(
    [values.mean() - half, values.mean() + half], abs=0.003
  )
  assert scores.difference_interval(0.2, draws, 1) is None


def test_an_absent_class_is_said_and_changes_nothing_else(predictions):
  logits, labels = predictions
  kept = labels != 2
  figures = scores.all_scores(logits[kept], labels[kept], NAMES)
  assert figures['absent_classes'] == ['sad']
  absent = figures['per_class'][2]
  assert (absent['support'], absent['auc'], absent['recall']) == (0, None, None)
  assert absent['predicted'] > 0
  recalls = sklearn.metrics.recall_score(
    labels[kept], logits[kept].argmax(-1), labels=[0, 1, 3], average=None
  )
  assert figures['balanced_accuracy'] == pytest.approx(recalls.mean())
  expected = sklearn.metrics.precision_recall_fscore_support(
    labels[kept], logits[kept].argmax(-1), labels=[0, 1, 3], average='macro'
  )
  for name, value in zip(('precision', 'recall', 'f1'), expected, strict=False):
    assert figures['macro'][name] == pytest.approx(value)
  aucs = [row['auc'] for row in figures['per_class'] if row['auc'] is not None]
  assert figures['auc_macro'] == pytest.approx(np.mean(aucs))


def test_a_single_class_has_no_auc():
  figures = scores.all_scores(
    np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([0, 0]), ('a', 'b')
  )
  assert figures['auc_macro'] is None
  assert figures['accuracy'] == 0.5


def test_slices_are_scored_alone_and_may_be_empty(predictions):
  logits, labels = predictions
  mask = np.arange(500) < 200
  figures = scores.slice_scores(
    logits, labels, {'first': mask, 'none': np.zeros(500, bool)}, NAMES
  )
  assert figures['first']['n'] == 200
  assert figures['first']['accuracy'] == np.mean(
    (logits.argmax(-1) == labels)[:200]
  )
  assert figures['none']['n'] == 0
  assert figures['none']['accuracy'] is None


def test_figures_are_strict_json(figures):
  assert json.loads(json.dumps(figures, allow_nan=False)) == figures


@pytest.mark.parametrize(
  ('logits', 'labels', 'message'),
  [
    (np.zeros((2, 3)), [0, 1], r'expected \(n, 4\)'),
    (np.zeros((2, 4)), [0], '2 logits'),
    (np.zeros((0, 4)), [], 'no example'),
    (np.zeros((2, 4)), [0, 4], 'expected 0 to 3'),
    (np.array([[np.nan] * 4, [0.0] * 4]), [0, 1], '1 of 2 examples'),
  ],
)
def test_what_cannot_be_scored_is_refused(logits, labels, message):
  with pytest.raises(ValueError, match=message):
    scores.all_scores(logits, np.array(labels, int), NAMES)
