"""Figures of a classifier from its logits and the true labels.

n examples, K classes. Plain NumPy and scikit-learn: no accelerator and no
import of JAX. Everything returned goes into JSON as it is: a figure that is
not defined on these examples (the AUC of a class that does not occur) is None,
and `absent_classes` says why.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
import scipy.stats
import sklearn.metrics

BOOTSTRAP_DRAWS = 10_000
CALIBRATION_BINS = 15
CONFIDENCE_LEVEL = 0.95

DEFINITIONS = {
  'interval': (
    f"95 % interval on the logit scale by Student's t, with as many degrees "
    'of freedom as there are units but one, and the standard error of '
    f'{BOOTSTRAP_DRAWS:,} bootstrap resamples (seeded) of whole units: of '
    'people, each drawn with all its pictures, where the data set says who is '
    'in them; else of recordings, where it says that; else of examples, one '
    'that occurs several times drawn with all its copies (`unit` says which). '
    "Where all is right or nothing, Clopper and Pearson's interval of the "
    'units. It holds the noise of sampling units, not that of training seeds; '
    'of a single unit there is none, nor of units that are all alike. Of '
    'balanced accuracy and macro F1 a class whose units are all alike, all '
    'right or all wrong, adds the variance that it may have had unseen, by '
    "Kerman's neutral prior (2011)"
  ),
  'macro': 'mean over the classes that occur among the true labels',
  'weighted': 'mean over classes weighted by how often each is true',
  'balanced_accuracy': 'mean recall over the classes that occur',
  'auc': 'one class against the rest, by its softmax probability',
  'expected_calibration_error': (
    f'sum over {CALIBRATION_BINS} equal-width bins (lower, upper] of the '
    'largest softmax probability of |accuracy - mean confidence|, weighted by '
    'the share of examples in the bin (Guo et al. 2017, arXiv 1706.04599)'
  ),
  'loss': 'mean cross-entropy in nats against the hard labels',
}
"""What each figure means, in words that a report can print."""

# A deviation below it is rounding: one wrong of a million units makes 1e-6.
_LEAST_SPREAD = 1e-12
# Resamples at a time, and numbers that they take: memory stays flat on splits
# of any size.
_DRAWS_AT_ONCE = 500
_NUMBERS_AT_ONCE = 1 << 22


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """(n, K) log-probabilities in float64."""
  logits = np.asarray(logits, np.float64)
  logits = logits - logits.max(axis=-1, keepdims=True)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def all_scores(
  logits: np.ndarray,
  labels: np.ndarray,
  class_names: Sequence[str],
  *,
  units: np.ndarray | None = None,
  n_boot: int = BOOTSTRAP_DRAWS,
  seed: int = 0,
) -> dict[str, Any]:
  """Every figure of one set of predictions.

  Args:
    logits: (n, K) finite.
    labels: (n,) integers below K.
    class_names: K names.
    units: (n,) text, equal for what is not independent: the pictures of a
      person, the copies of an example; None where every row is independent.
    n_boot: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    A JSON-able dict: `n`, `loss`, `accuracy`, `balanced_accuracy`,
    `macro` and `weighted` (each `precision`, `recall`, `f1`), `intervals`
    (of `accuracy`, `balanced_accuracy`, `macro_f1`: [low, high]),
    `per_class` (a list of dicts: `name`, `support`, `predicted`, `precision`,
    `recall`, `f1`, `auc`), `auc_macro`, `confusion` (K lists of K counts, rows
    true), `expected_calibration_error`, `calibration` (the bins),
    `absent_classes`, `bootstrap` (draws, seed, level).

  Raises:
    ValueError: shapes disagree, a label is outside 0..K-1, a logit is not
      finite, or there is no example.
  """
  logits, labels = np.asarray(logits), np.asarray(labels)
  _check(logits, labels, len(class_names))
  n, num_classes = logits.shape
  log_probs = log_softmax(logits)
  probs = np.exp(log_probs)
  predicted = probs.argmax(axis=-1)
  confusion = confusion_counts(labels, predicted, num_classes)
  present = confusion.sum(axis=1) > 0

  # Precision of a class never predicted counts as 0, scikit-learn's default,
  # asked for by name so that it does not warn. Any: its stub wants a text.
  zero: Any = 0.0
  by_class = sklearn.metrics.precision_recall_fscore_support(
    labels, predicted, labels=np.arange(num_classes), zero_division=zero
  )
  precision, recall, f1, support = (np.asarray(column) for column in by_class)
  share = support / n
  aucs = [
    curve['auc'] if curve else None
    for curve in roc_curves(probs, labels, class_names)
  ]
  known_aucs = [auc for auc in aucs if auc is not None]
  bins = calibration_bins(probs, labels)
  return {
    'n': int(n),
    'loss': float(-log_probs[np.arange(n), labels].mean()),
    'accuracy': float((predicted == labels).mean()),
    'balanced_accuracy': float(recall[present].mean()),
    'macro': {
      'precision': float(precision[present].mean()),
      'recall': float(recall[present].mean()),
      'f1': float(f1[present].mean()),
    },
    'weighted': {
      'precision': float(share @ precision),
      'recall': float(share @ recall),
      'f1': float(share @ f1),
    },
    'intervals': bootstrap_intervals(
      labels, predicted, num_classes, units=units, n_boot=n_boot, seed=seed
    ),
    'auc_macro': float(np.mean(known_aucs)) if known_aucs else None,
    'per_class': [
      {
        'name': name,
        'support': int(support[k]),
        'predicted': int(confusion[:, k].sum()),
        'precision': float(precision[k]),
        'recall': float(recall[k]) if present[k] else None,
        'f1': float(f1[k]) if present[k] else None,
        'auc': aucs[k],
      }
      for k, name in enumerate(class_names)
    ],
    'confusion': confusion.tolist(),
    'expected_calibration_error': expected_calibration_error(bins),
    'calibration': bins,
    'absent_classes': [
      name
      for name, is_present in zip(class_names, present, strict=True)
      if not is_present
    ],
    'bootstrap': {'draws': n_boot, 'seed': seed, 'level': CONFIDENCE_LEVEL},
  }


def slice_scores(
  logits: np.ndarray,
  labels: np.ndarray,
  slices: dict[str, np.ndarray],
  class_names: Sequence[str],
  *,
  units: np.ndarray | None = None,
  n_boot: int = BOOTSTRAP_DRAWS,
  seed: int = 0,
) -> dict[str, dict[str, Any]]:
  """The main figures on parts of the examples, such as those without twins.

  Args:
    logits: (n, K).
    labels: (n,).
    slices: name -> (n,) bool.
    class_names: K names.
    units: as for `all_scores`.
    n_boot: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    name -> {`n`, `accuracy`, `balanced_accuracy`, `macro_f1`, `auc_macro`,
    `intervals`}; an empty slice has `n` 0 and None elsewhere.
  """
  figures = {}
  for name, mask in slices.items():
    mask = np.asarray(mask, bool)
    if not mask.any():
      keys = ('accuracy', 'balanced_accuracy', 'macro_f1', 'auc_macro')
      figures[name] = {'n': 0, 'intervals': {}} | dict.fromkeys(keys)
      continue
    scores = all_scores(
      logits[mask],
      labels[mask],
      class_names,
      units=None if units is None else units[mask],
      n_boot=n_boot,
      seed=seed,
    )
    figures[name] = {
      'n': scores['n'],
      'accuracy': scores['accuracy'],
      'balanced_accuracy': scores['balanced_accuracy'],
      'macro_f1': scores['macro']['f1'],
      'auc_macro': scores['auc_macro'],
      'intervals': scores['intervals'],
    }
  return figures


def confusion_counts(
  labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> np.ndarray:
  """(K, K) counts: rows true, columns predicted."""
  return sklearn.metrics.confusion_matrix(
    labels, predicted, labels=np.arange(num_classes)
  )


def bootstrap_intervals(
  labels: np.ndarray,
  predicted: np.ndarray,
  num_classes: int,
  *,
  units: np.ndarray | None = None,
  n_boot: int = BOOTSTRAP_DRAWS,
  seed: int = 0,
) -> dict[str, list[float] | None]:
  """Intervals of what a confusion matrix determines.

  Args:
    labels: (n,).
    predicted: (n,) classes.
    num_classes: K.
    units: (n,) text; one that occurs several times is drawn with all its
      positions, which are not independent.
    n_boot: resamples.
    seed: of the draws.

  Returns:
    [low, high] of `accuracy`, `balanced_accuracy` and `macro_f1`; None as of
    `share_interval`. A class that a resample misses is left out of that
    resample's means.
  """
  confusion = confusion_counts(labels, predicted, num_classes)
  estimates = _figures_of_confusion(confusion)
  if units is not None and len(np.unique(units)) < len(units):
    resampled = resampled_figures(
      units, labels, predicted[None], num_classes, n_boot=n_boot, seed=seed
    )
    draws = {name: values[:, 0] for name, values in resampled.items()}
    return intervals_of(estimates, draws, labels, predicted[None], units)
  # Resampling n examples with replacement and counting them is a multinomial
  # draw of the confusion matrix.
  n, rng, parts = len(labels), np.random.default_rng(seed), []
  for size in _chunks(n_boot, num_classes**2):
    drawn = rng.multinomial(n, confusion.ravel() / n, size=size)
    drawn = drawn.reshape(size, num_classes, num_classes)
    parts.append(_figures_of_confusion(drawn))
  draws = {
    name: np.concatenate([part[name] for part in parts]) for name in estimates
  }
  return intervals_of(estimates, draws, labels, predicted[None], np.arange(n))


def intervals_of(
  estimates: Mapping[str, Any],
  draws: Mapping[str, np.ndarray],
  labels: np.ndarray,
  predicted: np.ndarray,
  units: np.ndarray,
) -> dict[str, list[float] | None]:
  """Intervals of `accuracy`, `balanced_accuracy` and `macro_f1`.

  Args:
    estimates: figure -> its value on all units.
    draws: figure -> (n_boot,), its value on resamples of the units.
    labels: (n,).
    predicted: (S, n) classes, by the systems of which a figure is the mean.
    units: (n,) what was drawn as one.

  Returns:
    figure -> [low, high]; None as of `share_interval`.
  """
  unit = np.unique(units, return_inverse=True)[1]
  count = int(unit.max()) + 1
  # One unit wrong may be all that there is of a class.
  rarest = min(len(np.unique(unit[labels == k])) for k in np.unique(labels))
  unseen = _unseen_variances(labels, predicted, unit)
  return {
    name: share_interval(
      float(estimates[name]),
      values,
      count,
      at_bounds=count if name == 'accuracy' else rarest,
      unseen=unseen.get(name, 0.0),
    )
    for name, values in draws.items()
  }


def _unseen_variances(
  labels: np.ndarray, predicted: np.ndarray, unit: np.ndarray
) -> dict[str, float]:
  """What the classes whose units are all alike may add to the variance.

  Of ten examples that are all wrong no resample gets one right, though one in
  twenty may be right among others. The recall of such a class has the variance
  of its posterior under Kerman's neutral prior, Beta(1/3, 1/3) (2011,
  doi 10.1214/11-EJS648).

  Args:
    labels: (n,).
    predicted: (S, n) classes.
    unit: (n,) numbers of what is drawn as one.

  Returns:
    Of `balanced_accuracy` and `macro_f1`.
  """
  right = (predicted == labels).mean(axis=0)
  classes = np.unique(labels)
  of_recall, of_f1 = 0.0, 0.0
  for k in classes:
    of_class = labels == k
    examples = np.bincount(unit[of_class])
    hits = np.bincount(unit[of_class], right[of_class])
    recalls = hits[examples > 0] / examples[examples > 0]
    if np.ptp(recalls) > _LEAST_SPREAD:
      continue
    recall, count = recalls[0], len(recalls)
    hit, missed = count * recall + 1 / 3, count * (1 - recall) + 1 / 3
    variance = hit * missed / ((hit + missed) ** 2 * (hit + missed + 1))
    support = int(of_class.sum())
    false = (predicted[:, ~of_class] == k).sum() / len(predicted)
    # Of F1 = 2 r s / (s + r s + false), by the recall r.
    slope = 2 * support * (support + false)
    slope /= (support * (1 + recall) + false) ** 2
    of_recall += variance
    of_f1 += slope**2 * variance
  return {
    'balanced_accuracy': float(of_recall / len(classes) ** 2),
    'macro_f1': float(of_f1 / len(classes) ** 2),
  }


def share_interval(
  estimate: float,
  draws: np.ndarray,
  units: int,
  at_bounds: int,
  unseen: float = 0.0,
) -> list[float] | None:
  """[low, high] of a figure between 0 and 1.

  Student's t on the logit scale, with the bootstrap's standard error: unlike
  the percentiles of the draws it is wide enough of few units, and of figures
  near 1.

  Args:
    estimate: the figure on all units.
    draws: (n_boot,), the figure on resamples of them.
    units: how many there are.
    at_bounds: how many of them tell of an estimate of 0 or 1 (Clopper and
      Pearson 1934).
    unseen: variance beside that of the draws.

  Returns:
    None of a single unit, and of units that are all alike: two people who are
    right as often as each other do not show how far others are from them.
  """
  if units < 2:
    return None
  tail = (1 - CONFIDENCE_LEVEL) / 2
  if estimate >= 1:
    return [tail ** (1 / at_bounds), 1.0]
  if estimate <= 0:
    return [0.0, 1 - tail ** (1 / at_bounds)]
  centre = scipy.special.logit(estimate)
  half = _half_width(draws, units, unseen)
  if half is None:
    return None
  half /= estimate * (1 - estimate)
  return [float(scipy.special.expit(centre + d)) for d in (-half, half)]


def difference_interval(
  estimate: float, draws: np.ndarray, units: int
) -> list[float] | None:
  """[low, high] of a difference by Student's t, as `share_interval`.

  Args:
    estimate: the difference on all units.
    draws: (n_boot,), the difference on resamples of them.
    units: how many there are, of two groups in the smaller one.

  Returns:
    None as of `share_interval`.
  """
  half = _half_width(draws, units)
  return None if half is None else [estimate - half, estimate + half]


def _half_width(
  draws: np.ndarray, units: int, unseen: float = 0.0
) -> float | None:
  """Of the interval by Student's t, None where the draws have no spread.

  A bootstrap's variance is (m - 1) / m of that of m units.
  """
  if units < 2 or np.std(draws) < _LEAST_SPREAD:
    return None
  quantile = scipy.stats.t.ppf((1 + CONFIDENCE_LEVEL) / 2, units - 1)
  variance = np.var(draws) * units / (units - 1) + unseen
  return float(quantile * np.sqrt(variance))


def _figures_of_confusion(counts: np.ndarray) -> dict[str, np.ndarray]:
  """`figures_of_counts` of (..., K, K) counts, rows true."""
  return figures_of_counts(
    hits=np.diagonal(counts, axis1=-2, axis2=-1),
    support=counts.sum(axis=-1),
    predicted=counts.sum(axis=-2),
  )


def _chunks(n_boot: int, cells: int) -> list[int]:
  """How many resamples of so many cells are drawn, time after time."""
  at_once = max(min(_DRAWS_AT_ONCE, _NUMBERS_AT_ONCE // cells), 1)
  return [min(at_once, n_boot - start) for start in range(0, n_boot, at_once)]


def resampled_figures(
  units: np.ndarray,
  labels: np.ndarray,
  predicted: np.ndarray,
  num_classes: int,
  *,
  n_boot: int = BOOTSTRAP_DRAWS,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """Figures of S systems on the same bootstrap resamples of distinct units.

  Args:
    units: (n,) text; a unit is drawn with all its positions.
    labels: (n,).
    predicted: (S, n) classes.
    num_classes: K.
    n_boot: resamples.
    seed: of the draws.

  Returns:
    `accuracy`, `balanced_accuracy` and `macro_f1`, each (n_boot, S).
  """
  systems = len(predicted)
  unit = np.unique(units, return_inverse=True)[1]
  m = unit.max() + 1

  def by_unit(classes: np.ndarray, kept: np.ndarray | None = None):
    flat = np.bincount(
      unit * num_classes + classes, kept, minlength=m * num_classes
    )
    return flat.reshape(m, num_classes).astype(np.float64)

  counts = np.stack(
    [
      by_unit(labels),
      *(by_unit(labels, classes == labels) for classes in predicted),
      *(by_unit(classes) for classes in predicted),
    ],
    axis=1,
  )
  rng = np.random.default_rng(seed)
  sums = resampled_sums(counts.reshape(m, -1), n_boot=n_boot, rng=rng)
  sums = sums.reshape(n_boot, 1 + 2 * systems, num_classes)
  return figures_of_counts(
    hits=sums[:, 1 : 1 + systems],
    support=sums[:, :1],
    predicted=sums[:, 1 + systems :],
  )


def resampled_sums(
  counts: np.ndarray, *, n_boot: int, rng: np.random.Generator
) -> np.ndarray:
  """(n_boot, C): sums of the rows that each resample of (m, C) rows draws.

  Rows of the same counts are one cell of a multinomial, whose draws are the
  resamples.
  """
  cells, frequency = np.unique(counts, axis=0, return_counts=True)
  m = len(counts)
  return np.concatenate(
    [
      rng.multinomial(m, frequency / m, size=size) @ cells
      for size in _chunks(n_boot, len(cells))
    ]
  )


def figures_of_counts(
  hits: np.ndarray, support: np.ndarray, predicted: np.ndarray
) -> dict[str, np.ndarray]:
  """What counts by class determine, over any leading axes.

  Args:
    hits: (..., K) right predictions of each class.
    support: (..., K) how often each class is true.
    predicted: (..., K) how often each class is predicted.

  Returns:
    (...) `accuracy`, `balanced_accuracy` and `macro_f1`; the means are over
    the classes that occur.
  """
  present = support > 0
  classes = present.sum(axis=-1)
  recall = hits / np.maximum(support, 1)
  # F1 = 2 TP / (2 TP + FP + FN), and its denominator is true + predicted.
  f1 = 2 * hits / np.maximum(support + predicted, 1)
  return {
    'accuracy': hits.sum(axis=-1) / support.sum(axis=-1),
    'balanced_accuracy': (recall * present).sum(axis=-1) / classes,
    'macro_f1': (f1 * present).sum(axis=-1) / classes,
  }


def roc_curves(
  probs: np.ndarray, labels: np.ndarray, class_names: Sequence[str]
) -> list[dict[str, Any] | None]:
  """One-vs-rest ROC curve of each class.

  Args:
    probs: (n, K) scores, higher for likelier.
    labels: (n,).
    class_names: K names.

  Returns:
    For each class {`name`, `false_positive_rate`, `true_positive_rate`,
    `auc`}, or None where the class, or everything but it, does not occur.
  """
  curves = []
  for k, name in enumerate(class_names):
    positive = labels == k
    if not positive.any() or positive.all():
      curves.append(None)
      continue
    false_rate, true_rate, _ = sklearn.metrics.roc_curve(positive, probs[:, k])
    curves.append(
      {
        'name': name,
        'false_positive_rate': false_rate,
        'true_positive_rate': true_rate,
        'auc': float(sklearn.metrics.auc(false_rate, true_rate)),
      }
    )
  return curves


def calibration_bins(
  probs: np.ndarray, labels: np.ndarray, num_bins: int = CALIBRATION_BINS
) -> list[dict[str, Any]]:
  """Reliability diagram: accuracy against confidence in equal-width bins.

  Args:
    probs: (n, K) probabilities.
    labels: (n,).
    num_bins: bins of (lower, upper] over (0, 1].

  Returns:
    For each bin `lower`, `upper`, `count`, and `accuracy` and `confidence`
    (mean largest probability), None in an empty bin.
  """
  confidence = probs.max(axis=-1)
  right = probs.argmax(axis=-1) == labels
  edges = np.linspace(0, 1, num_bins + 1)
  # side='left' puts a confidence equal to an upper edge below that edge.
  bin_of = np.clip(np.searchsorted(edges, confidence) - 1, 0, num_bins - 1)
  bins = []
  for index in range(num_bins):
    inside = bin_of == index
    count = int(inside.sum())
    bins.append(
      {
        'lower': float(edges[index]),
        'upper': float(edges[index + 1]),
        'count': count,
        'accuracy': float(right[inside].mean()) if count else None,
        'confidence': float(confidence[inside].mean()) if count else None,
      }
    )
  return bins


def expected_calibration_error(bins: list[dict[str, Any]]) -> float:
  """Mean |accuracy - confidence| over the examples of `calibration_bins`."""
  total = sum(part['count'] for part in bins)
  gaps = (
    part['count'] * abs(part['accuracy'] - part['confidence'])
    for part in bins
    if part['count']
  )
  return float(sum(gaps) / total)


def _check(logits: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
  """Refuses what no figure can be computed of."""
  if logits.ndim != 2 or logits.shape[1] != num_classes:
    raise ValueError(
      f'logits have shape {logits.shape}, expected (n, {num_classes})'
    )
  if labels.shape != logits.shape[:1]:
    raise ValueError(f'{logits.shape[0]} logits but {labels.shape} labels')
  if not len(labels):
    raise ValueError('no example to score')
  if labels.min() < 0 or labels.max() >= num_classes:
    raise ValueError(
      f'labels run from {labels.min()} to {labels.max()}, expected '
      f'0 to {num_classes - 1}'
    )
  bad = int(np.sum(~np.isfinite(logits).all(axis=1)))
  if bad:
    raise ValueError(
      f'logits of {bad} of {len(labels)} examples are not finite'
    )
