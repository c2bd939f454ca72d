"""What a model is made of, as plain values.

A model is a backbone, a body and a head, each an ordered list of stages. A
stage is one of the dataclasses below; a system of a paper is a list of them.
`fusion.py` says what each builds.
"""

import dataclasses

CELLS = ('lstm', 'gru')
RETURNS = ('sequence', 'last')
DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Convolution:
  """k x k convolution, batch normalisation, ReLU: map to map."""

  filters: int
  kernel_size: int = 3
  strides: int = 1
  padding: str = 'SAME'
  use_bias: bool = True
  normalise: bool = True
  relu: bool = True


@dataclasses.dataclass(frozen=True)
class MaxPool:
  """Largest value of each window, windows side by side: map to map."""

  window: int = 2


@dataclasses.dataclass(frozen=True)
class Residual:
  """Residual block: map to map."""

  filters: int
  kernel_size: int = 3
  strides: int = 1


@dataclasses.dataclass(frozen=True)
class Drop:
  """Dropout: anything to the same shape."""

  rate: float


@dataclasses.dataclass(frozen=True)
class Reshape:
  """Anything to `shape` (without the batch axis), in row-major order."""

  shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Flatten:
  """Anything to a vector."""


@dataclasses.dataclass(frozen=True)
class GlobalAveragePool:
  """Map (h, w, D) to a vector (D,)."""


@dataclasses.dataclass(frozen=True)
class Rows:
  """Map (h, w, D) to a sequence (h, w D): each row of the map is a step."""


@dataclasses.dataclass(frozen=True)
class Grid:
  """Map (h, w, D) to a sequence (h w, D): each cell is a step, row-major."""


@dataclasses.dataclass(frozen=True)
class Recurrent:
  """Recurrent layers: sequence to sequence, or to the last hidden state.

  `dropout` acts between layers.
  """

  cell: str
  units: int
  layers: int = 1
  bidirectional: bool = False
  returns: str = 'sequence'
  reset_after: bool = True
  dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class Attention:
  """Additive attention: sequence (T, D) to a vector (D,)."""

  units: int


@dataclasses.dataclass(frozen=True)
class Mean:
  """Sequence (T, D) to its mean over steps (D,)."""


@dataclasses.dataclass(frozen=True)
class Dense:
  """Dense layer with ReLU: vector to vector."""

  width: int


Stage = (
  Convolution
  | MaxPool
  | Residual
  | Drop
  | Reshape
  | Flatten
  | GlobalAveragePool
  | Rows
  | Grid
  | Recurrent
  | Attention
  | Mean
  | Dense
)


@dataclasses.dataclass(frozen=True)
class Specification:
  """A model up to the number of classes.

  Attributes:
    input_shape: (H, W, C) of an image or of a frame of a clip.
    backbone: stages from images to a map (h, w, D), for each frame alone.
    body: stages from the map to a vector. Of a clip, each frame's map is
      averaged to one step (D,), and the stages up to the first that takes
      a sequence (Recurrent, Attention, Mean) are left out.
    head: stages from the vector to what the final dense layer of logits takes.
    dtype: what to compute in; parameters and logits are float32.
  """

  input_shape: tuple[int, int, int]
  backbone: tuple[Stage, ...]
  body: tuple[Stage, ...]
  head: tuple[Stage, ...]
  dtype: str = 'float32'
