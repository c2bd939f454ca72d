"""A data set in memory, in a module that worker processes can import."""

import dataclasses
import pathlib

import numpy as np


@dataclasses.dataclass(eq=False)
class MemorySet:
  """A data set whose images are a list."""

  images: list[np.ndarray]
  table: dict[str, np.ndarray]
  root: pathlib.Path
  name: str = 'fer2013'
  version: str = '1.0.0'
  checksum: str = 'c0ffee'
  class_names: tuple[str, ...] = ('angry', 'happy', 'sad')
  options: dict = dataclasses.field(default_factory=dict)
  rows: None = None

  def __len__(self):
    return len(self.images)

  def read(self, index):
    return [self.images[i] for i in index]

  def each(self, index=None):
    return iter(self.images if index is None else self.read(index))
