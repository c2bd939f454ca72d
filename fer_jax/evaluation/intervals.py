"""Intervals of figures, by resampling what is independent of each other.

n examples, K classes. Units are people, recordings or examples; one is drawn
with all its positions.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from fer_jax.evaluation import counts as counts_lib

BOOTSTRAP_DRAWS = 10_000
CONFIDENCE_LEVEL = 0.95
# A deviation below it is rounding: one wrong of a million units makes 1e-6.
_LEAST_SPREAD = 1e-12
# Resamples at a time, and numbers that they take: memory stays flat on splits
# of any size.
_DRAWS_AT_ONCE = 500
_NUMBERS_AT_ONCE = 1 << 22


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
  confusion = counts_lib.confusion_counts(labels, predicted, num_classes)
  estimates = counts_lib.figures_of_confusion(confusion)
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
    parts.append(counts_lib.figures_of_confusion(drawn))
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
    figure -> [low, high]; None as of `share_interval`, and of macro F1 where
    there is none of balanced accuracy.
  """
  unit = np.unique(units, return_inverse=True)[1]
  count = int(unit.max()) + 1
  # One unit wrong may be all that there is of a class.
  rarest = min(len(np.unique(unit[labels == k])) for k in np.unique(labels))
  unseen = _unseen_variances(labels, predicted, unit)
  found = {
    name: share_interval(
      float(estimates[name]),
      values,
      count,
      at_bounds=count if name == 'accuracy' else rarest,
      unseen=unseen.get(name, 0.0),
    )
    for name, values in draws.items()
  }
  if found['balanced_accuracy'] is None:
    # Its spread would be that of where the mistakes went, not of the recalls.
    found['macro_f1'] = None
  return found


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
  return counts_lib.figures_of_counts(
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


def _chunks(n_boot: int, cells: int) -> list[int]:
  """How many resamples of so many cells are drawn, time after time."""
  at_once = max(min(_DRAWS_AT_ONCE, _NUMBERS_AT_ONCE // cells), 1)
  return [min(at_once, n_boot - start) for start in range(0, n_boot, at_once)]
