"""What a reader finds in a file, before it reads any of it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class FileTensor:
  """A tensor of a file.

  Attributes:
    name: in the file.
    family: 'keras' or 'torch', whose layout it has.
    shape: of it, before any of it is read.
    dtype: its name.
    read: reads it; raises UserError.
  """

  name: str
  family: str
  shape: tuple[int, ...]
  dtype: str
  read: Callable[[], np.ndarray]


class Match(NamedTuple):
  """Which of a file's tensors go where, as their names tell.

  Attributes:
    tensors: by variable.
    lacking: what of the backbone the file lacks, a sentence each.
    problems: other reasons not to load it, a sentence each.
    left_out: names of the head's tensors or layers.
  """

  tensors: dict[str, FileTensor]
  lacking: list[str]
  problems: list[str]
  left_out: list[str]


def listed(items: Sequence[str], most: int = 4) -> str:
  """The first few, and how many more."""
  text = '; '.join(items[:most])
  return text if len(items) <= most else f'{text}; and {len(items) - most} more'
