"""Small data sets in memory with the interface of `datasets.Dataset`."""

from collections.abc import Callable

import numpy as np
import pytest
from memory_sets import MemorySet


@pytest.fixture
def memory_set(tmp_path) -> Callable[..., MemorySet]:
  """Makes a MemorySet of images and the columns that the test cares for."""

  def make(images, *, label=None, official_split=None, **columns):
    others = {
      k: columns.pop(k)
      for k in ('name', 'checksum', 'class_names')
      if k in columns
    }
    count = len(images)
    label = np.arange(count) % 3 if label is None else label
    split = ['train'] * count if official_split is None else official_split
    table = {
      'id': np.array([f'set/{n:05d}' for n in range(count)]),
      'label': np.asarray(label, np.int32),
      'official_split': np.array(split),
      **{k: np.asarray(v) for k, v in columns.items()},
    }
    root = tmp_path / 'set' / 'build'
    root.mkdir(parents=True, exist_ok=True)
    return MemorySet(images=list(images), table=table, root=root, **others)

  return make
