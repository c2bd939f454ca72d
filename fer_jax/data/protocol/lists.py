"""What a protocol gives: rows that train, select and are reported."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from fer_jax.data.protocol.settings import Settings
from fer_jax.datasets.dataset import Dataset


@dataclasses.dataclass(frozen=True, eq=False)
class Lists:
  """The rows of all three sides, and what the protocol says of itself.

  Attributes:
    train: int64 (n,).
    validation: int64 (m,).
    test: int64 (k,).
    leaks: as in Partition.
    reason: as in Partition.
  """

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray
  leaks: bool | None
  reason: str


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
  """What training may know of a protocol: no test rows are in it.

  Attributes:
    protocol: its name.
    leaks: whether the protocol reports what it trained or selected on; None
      where it cannot be told.
    reason: why, or why not, and what to know of its figures; a sentence.
    train: int64 (n,), rows that train; under oversampling some more than once.
    validation: int64 (m,), rows that select; may be empty.
    test_count: how many rows are reported.
    digest: SHA-256 of the protocol's name and all its id lists, test too.
    train_ids: str (n,).
    validation_ids: str (m,).
    settings: all options.
  """

  protocol: str
  leaks: bool | None
  reason: str
  train: np.ndarray
  validation: np.ndarray
  test_count: int
  digest: str
  train_ids: np.ndarray
  validation_ids: np.ndarray
  settings: Settings

  def facts(self) -> dict[str, Any]:
    """What travels with every figure."""
    return {
      'name': self.protocol,
      'seed': self.settings.seed,
      'options': self.settings.chosen(),
      'leaks': self.leaks,
      'reason': self.reason,
      'digest': self.digest,
    }


@dataclasses.dataclass(frozen=True, eq=False)
class TestSplit:
  """The rows that are reported.

  Attributes:
    index: int64 (n,), rows of the data set.
    ids: str (n,).
    slices: bool (n,) masks by name: 'all', and for photographs
      'without_exact_twins', without images that are pixel by pixel in train
      or validation, and 'without_twins', without near twins of those either.
    digest: as in Partition.
    run: who looks.
  """

  index: np.ndarray
  ids: np.ndarray
  slices: dict[str, np.ndarray]
  digest: str
  run: str


def digest_of(name: str, dataset: Dataset, lists: Lists) -> str:
  """SHA-256 of a protocol's name and all its id lists."""
  digest = hashlib.sha256(f'{dataset.name}\0{name}\0'.encode())
  for part in ('train', 'validation', 'test'):
    ids = dataset.table['id'][getattr(lists, part)]
    digest.update(f'{part}\0{len(ids)}\0'.encode())
    digest.update('\n'.join(ids.tolist()).encode() + b'\0')
  return digest.hexdigest()
