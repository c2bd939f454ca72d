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
