"""Figures that counts by class determine, over any leading axes."""

import numpy as np
import sklearn.metrics


def confusion_counts(
  labels: np.ndarray, predicted: np.ndarray, num_classes: int
) -> np.ndarray:
  """(K, K) counts: rows true, columns predicted."""
  return sklearn.metrics.confusion_matrix(
    labels, predicted, labels=np.arange(num_classes)
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


def figures_of_confusion(counts: np.ndarray) -> dict[str, np.ndarray]:
  """`figures_of_counts` of (..., K, K) counts, rows true."""
  return figures_of_counts(
    hits=np.diagonal(counts, axis1=-2, axis2=-1),
    support=counts.sum(axis=-1),
    predicted=counts.sum(axis=-2),
  )
