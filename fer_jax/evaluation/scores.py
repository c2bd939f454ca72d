"""Figures of a classifier from its logits and the true labels.

n examples, K classes. Plain NumPy and scikit-learn: no accelerator and no
import of JAX. Everything returned goes into JSON as it is: a figure that is
not defined on these examples (the AUC of a class that does not occur) is None,
and `absent_classes` says why.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn.metrics

from fer_jax.evaluation import counts, intervals

CALIBRATION_BINS = 15

DEFINITIONS = {
  'interval': (
    f"95 % interval on the logit scale by Student's t, with as many degrees "
    'of freedom as there are units but one, and the standard error of '
    f'{intervals.BOOTSTRAP_DRAWS:,} bootstrap resamples (seeded) of whole '
    'units: of people, each drawn with all its pictures, where the data set '
    'says who is in them; else of recordings, where it says that; else of '
    'examples, one that occurs several times drawn with all its copies '
    '(`unit` says which). '
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
  n_boot: int = intervals.BOOTSTRAP_DRAWS,
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
  confusion = counts.confusion_counts(labels, predicted, num_classes)
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
    'intervals': intervals.bootstrap_intervals(
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
    'bootstrap': {
      'draws': n_boot,
      'seed': seed,
      'level': intervals.CONFIDENCE_LEVEL,
    },
  }


def slice_scores(
  logits: np.ndarray,
  labels: np.ndarray,
  slices: dict[str, np.ndarray],
  class_names: Sequence[str],
  *,
  units: np.ndarray | None = None,
  n_boot: int = intervals.BOOTSTRAP_DRAWS,
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
