"""Figures by group of people or photographs: who is recognised less well.

A data set may know something of its examples beside the label, such as
gender, race or age. Each such attribute divides the examples into groups; a
model that is fair in this sense is as accurate on each of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fer_jax.evaluation import intervals, scores

LEAST_IN_GAP = 20
"""Units; smaller groups are shown, but are too noisy to make a gap."""

DEFINITIONS = {
  'group': (
    'the examples that share one value of an attribute that the data set '
    'gives; macro F1 is over the classes that occur in the group'
  ),
  'gap': (
    'accuracy of the best group less that of the worst, of those with at '
    f'least {LEAST_IN_GAP} units (see interval: people or recordings, where '
    'these are known); the interval resamples those of the two groups, each '
    'at its size, and does not account for their having been picked as the '
    'extremes: with many groups some gap is chance'
  ),
}
"""What each figure means, in words that a report can print."""


def group_scores(
  logits: np.ndarray,
  labels: np.ndarray,
  attributes: Mapping[str, np.ndarray],
  class_names: Sequence[str],
  *,
  units: np.ndarray | None = None,
  n_boot: int = intervals.BOOTSTRAP_DRAWS,
  seed: int = 0,
) -> dict[str, dict[str, Any]]:
  """Figures of every group of every attribute, and the gap between them.

  Args:
    logits: (n, K) finite.
    labels: (n,) integers below K.
    attributes: name -> (n,) text.
    class_names: K names.
    units: as for `scores.all_scores`.
    n_boot: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    JSON-able: attribute -> {`groups`: value -> as `scores.slice_scores`,
    `gap`: as `accuracy_gap`}.
  """
  units = np.arange(len(labels)) if units is None else np.asarray(units)
  right = scores.log_softmax(logits).argmax(axis=-1) == labels
  figures = {}
  for name, values in attributes.items():
    values = np.asarray(values)
    parts = {str(value): values == value for value in np.unique(values)}
    counts = {
      value: _counts_by_unit(units[mask], right[mask])
      for value, mask in parts.items()
    }
    figures[name] = {
      'groups': scores.slice_scores(
        logits,
        labels,
        parts,
        class_names,
        units=units,
        n_boot=n_boot,
        seed=seed,
      ),
      'gap': accuracy_gap(counts, n_boot=n_boot, seed=seed),
    }
  return figures


def _counts_by_unit(units: np.ndarray, right: np.ndarray) -> np.ndarray:
  """(m, 2): how often each of m distinct units occurs, and how often right."""
  unit = np.unique(units, return_inverse=True)[1]
  return np.stack([np.bincount(unit), np.bincount(unit, right)], axis=1)


def accuracy_gap(
  counts: Mapping[str, np.ndarray],
  *,
  n_boot: int = intervals.BOOTSTRAP_DRAWS,
  seed: int = 0,
) -> dict[str, Any] | None:
  """The largest difference in accuracy between two groups.

  Args:
    counts: value -> (m, 2), how often each of m units occurs and how often it
      is right.
    n_boot: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    {`best`, `worst`, `accuracy` (their difference), `interval` ([low, high],
    below 0 where the order may be the other one; None where the units of each
    are all alike)}, or None where fewer than two groups have `LEAST_IN_GAP`
    units.
  """
  accuracy = {
    name: float(of_group[:, 1].sum() / of_group[:, 0].sum())
    for name, of_group in counts.items()
    if len(of_group) >= LEAST_IN_GAP
  }
  if len(accuracy) < 2:
    return None
  best = max(accuracy, key=lambda name: accuracy[name])
  # Of equals another group than the best one.
  worst = min(
    (name for name in accuracy if name != best),
    key=lambda name: accuracy[name],
  )
  rng = np.random.default_rng(seed)
  drawn = [
    _resampled_accuracy(counts[name], n_boot, rng) for name in (best, worst)
  ]
  gap = accuracy[best] - accuracy[worst]
  return {
    'best': best,
    'worst': worst,
    'accuracy': gap,
    'interval': intervals.difference_interval(
      gap, drawn[0] - drawn[1], min(len(counts[best]), len(counts[worst]))
    ),
  }


def _resampled_accuracy(
  counts: np.ndarray, n_boot: int, rng: np.random.Generator
) -> np.ndarray:
  """(n_boot,) accuracies of a group's resamples."""
  n = len(counts)
  if counts[:, 0].max() == 1:
    # How many of n resampled examples are right is binomial.
    return rng.binomial(n, counts[:, 1].sum() / n, n_boot) / n
  sums = intervals.resampled_sums(counts, n_boot=n_boot, rng=rng)
  return sums[:, 1] / sums[:, 0]
