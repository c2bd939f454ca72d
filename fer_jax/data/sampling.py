"""Lists of rows with as many of every class: more of them, or fewer.

A list may name a row several times; that is all that random oversampling is.
Draws are hashes of a seed and ids, as in `folds`.
"""

import hashlib

import numpy as np

from fer_jax.data import folds

BALANCES = ('none', 'oversample', 'downsample')


def oversample(
  rows: np.ndarray, ids: np.ndarray, label: np.ndarray, *, seed: int
) -> np.ndarray:
  """Every row, then random copies until each class has as many as the largest.

  Random oversampling with replacement, as imbalanced-learn's
  RandomOverSampler.

  Args:
    rows: int64 (n,), of a data set.
    ids: str (n,), theirs.
    label: int (n,), theirs.
    seed: any whole number.

  Returns:
    int64 (K * largest,): `rows`, then the copies class by class.
  """
  copies = [rows]
  classes, counts = np.unique(label, return_counts=True)
  for k, count in zip(classes, counts, strict=True):
    of_class = np.flatnonzero(label == k)
    of_class = of_class[np.argsort(ids[of_class], kind='stable')]
    # Named by an id, not by the class's number, which depends on the classes.
    name = f'{seed} {ids[of_class[0]]}'
    copies.append(rows[of_class[_draws(counts.max() - count, count, name)]])
  return np.concatenate(copies)


def _draws(number: int, count: int, name: str) -> np.ndarray:
  """int64 (number,) draws of 0 to count - 1, with replacement."""
  # 64 bits over fewer than 2**32 rows: the bias is below 2**-32.
  bits = [
    int.from_bytes(hashlib.sha256(f'{name} {n}'.encode()).digest()[:8], 'big')
    for n in range(number)
  ]
  return np.array([value % int(count) for value in bits], np.int64)


def downsample(
  rows: np.ndarray, ids: np.ndarray, label: np.ndarray, *, seed: int
) -> np.ndarray:
  """As many rows of every class as the smallest has, drawn without replacement.

  Args:
    rows: int64 (n,), of a data set.
    ids: str (n,), theirs.
    label: int (n,), theirs.
    seed: any whole number.

  Returns:
    int64 (K * smallest,), in the order of `rows`.
  """
  classes, counts = np.unique(label, return_counts=True)
  kept = np.zeros(len(rows), bool)
  order = folds.draw_order(ids, seed)
  for k in classes:
    of_class = order[label[order] == k]
    kept[of_class[: counts.min()]] = True
  return rows[kept]


def balance(
  how: str, rows: np.ndarray, ids: np.ndarray, label: np.ndarray, *, seed: int
) -> np.ndarray:
  """A list of rows balanced in one of the ways of `BALANCES`."""
  if how == 'oversample':
    return oversample(rows, ids, label, seed=seed)
  if how == 'downsample':
    return downsample(rows, ids, label, seed=seed)
  return rows
