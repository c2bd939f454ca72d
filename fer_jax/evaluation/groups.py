"""Figures by group of people or photographs: who is recognised less well.

A data set may know something of its examples beside the label, such as
gender, race or age. Each such attribute divides the examples into groups; a
model that is fair in this sense is as accurate on each of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fer_jax.evaluation import scores

LEAST_IN_GAP = 20
"""Smaller groups are shown, but their accuracy is too noisy to make a gap."""

DEFINITIONS = {
  'group': (
    'the examples that share one value of an attribute that the data set '
    'gives; macro F1 is over the classes that occur in the group'
  ),
  'gap': (
    'accuracy of the best group less that of the worst, of those with at '
    f'least {LEAST_IN_GAP} examples; the interval resamples the examples of '
    'those two groups, each at its size, and does not account for their '
    'having been picked as the extremes: with many groups some gap is chance'
  ),
}
"""What each figure means, in words that a report can print."""


def group_scores(
  logits: np.ndarray,
  labels: np.ndarray,
  attributes: Mapping[str, np.ndarray],
  class_names: Sequence[str],
  *,
  n_boot: int = scores.BOOTSTRAP_DRAWS,
  seed: int = 0,
) -> dict[str, dict[str, Any]]:
  """Figures of every group of every attribute, and the gap between them.

  Args:
    logits: (n, K) finite.
    labels: (n,) integers below K.
    attributes: name -> (n,) text.
    class_names: K names.
    n_boot: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    JSON-able: attribute -> {`groups`: value -> as `scores.slice_scores`,
    `gap`: as `accuracy_gap`}.
  """
  figures = {}
  for name, values in attributes.items():
    values = np.asarray(values)
    parts = {str(value): values == value for value in np.unique(values)}
    groups = scores.slice_scores(
      logits, labels, parts, class_names, n_boot=n_boot, seed=seed
    )
    figures[name] = {
      'groups': groups,
      'gap': accuracy_gap(groups, n_boot=n_boot, seed=seed),
    }
  return figures


def accuracy_gap(
  groups: Mapping[str, Mapping[str, Any]],
  *,
  n_boot: int = scores.BOOTSTRAP_DRAWS,
  seed: int = 0,
) -> dict[str, Any] | None:
  """The largest difference in accuracy between two groups.

  Args:
    groups: value -> {`n`, `accuracy`}.
    n_boot: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    {`best`, `worst`, `accuracy` (their difference), `interval` ([low, high],
    below 0 where resampling turns the order round)}, or None where fewer than
    two groups have `LEAST_IN_GAP` examples.
  """
  counted = {
    name: (int(group['n']), float(group['accuracy']))
    for name, group in groups.items()
    if group['n'] >= LEAST_IN_GAP
  }
  if len(counted) < 2:
    return None
  best = max(counted, key=lambda name: counted[name][1])
  # Of equals another group than the best one.
  worst = min(
    (name for name in counted if name != best),
    key=lambda name: counted[name][1],
  )
  rng = np.random.default_rng(seed)
  # How many of n resampled examples are right is binomial.
  drawn = [
    rng.binomial(n, accuracy, n_boot) / n
    for n, accuracy in (counted[best], counted[worst])
  ]
  tail = (1 - scores.CONFIDENCE_LEVEL) / 2
  bounds = np.quantile(drawn[0] - drawn[1], [tail, 1 - tail])
  return {
    'best': best,
    'worst': worst,
    'accuracy': counted[best][1] - counted[worst][1],
    'interval': [float(bound) for bound in bounds],
  }
