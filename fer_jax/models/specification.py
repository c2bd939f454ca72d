"""What a model is made of, as plain values.

A model is a backbone, a body and a head, each an ordered list of stages. A
stage is one of the dataclasses below; a system of a paper is a list of them.
`fer_jax.models.stages` has the module that each stands for.
"""

import dataclasses
from typing import Any

import numpy as np

CELLS = ('lstm', 'gru')
RETURNS = ('sequence', 'last')
DTYPES = ('float32', 'bfloat16')
INITIALIZERS = ('he_normal', 'glorot_uniform')
PIXELS = ('standardised', 'unit', 'raw')
CLIPS = ('frames', 'tokens')
ACTIVATIONS = ('relu', 'linear')


@dataclasses.dataclass(frozen=True)
class Convolution:
  """k x k convolution, batch normalisation, ReLU: map to map.

  `momentum` and `epsilon` are those of the batch normalisation.
  """

  filters: int
  kernel_size: int = 3
  strides: int = 1
  padding: str | int = 'SAME'
  use_bias: bool = True
  normalise: bool = True
  relu: bool = True
  initializer: str = 'he_normal'
  momentum: float = 0.9
  epsilon: float = 1e-5


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
class Backbone:
  """An ImageNet network without its top: pixels [0, 255] to a map.

  The network's own preprocessing comes first; a grey image is repeated to
  three channels. `family` is whose weights it can take, 'keras' or 'torch':
  they differ in preprocessing, padding and batch normalisation.
  """

  name: str
  family: str = 'keras'


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
class Steps:
  """Anything to a sequence of steps of `features` values, in row-major order.

  With None all values are one step.
  """

  features: int | None = None


@dataclasses.dataclass(frozen=True)
class Shuffle:
  """Sequence to the same steps in another order, one for all of a length.

  Masked steps do not count for the length and come last.
  """

  seed: int = 0


@dataclasses.dataclass(frozen=True)
class Recurrent:
  """Recurrent layers: sequence to sequence, or to the last hidden state.

  `dropout` acts between layers. `backend` is what computes them, see
  `fer_jax.nn.recurrent.choose_backend`.
  """

  cell: str
  units: int
  layers: int = 1
  bidirectional: bool = False
  returns: str = 'sequence'
  reset_after: bool = True
  dropout: float = 0.0
  backend: str = 'auto'


@dataclasses.dataclass(frozen=True)
class Pointwise:
  """What `matches` is compared with: as wide and as large, no recurrence.

  Two dense layers at each step by itself, a ReLU after the first, which has
  the width that brings the number of parameters nearest to that of `matches`.
  Where that returns the last hidden state, the mean over steps.
  """

  matches: Recurrent


@dataclasses.dataclass(frozen=True)
class Attention:
  """Additive attention: sequence (T, D) to a vector (D,)."""

  units: int


@dataclasses.dataclass(frozen=True)
class Mean:
  """Sequence (T, D) to its mean over steps (D,)."""


@dataclasses.dataclass(frozen=True)
class Dense:
  """Dense layer, rectified unless it is to be linear: vector to vector."""

  width: int
  activation: str = 'relu'


Stage = (
  Convolution
  | MaxPool
  | Residual
  | Backbone
  | Drop
  | Reshape
  | Flatten
  | GlobalAveragePool
  | Rows
  | Grid
  | Steps
  | Shuffle
  | Recurrent
  | Pointwise
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
    body: stages from the map to a vector.
    head: stages from the vector to what the final dense layer of logits takes.
    dtype: what to compute in, one of `DTYPES` or what JAX takes for it;
      parameters and logits are float32.
    pixels: what images the model takes: 'standardised', each of zero mean and
      unit variance; 'unit', in [0, 1]; 'raw', in [0, 255].
    clip: how a clip becomes steps. 'frames': each frame's map is averaged to
      one step (D,), and the stages of the body up to the first over a
      sequence are left out. 'tokens': the steps of all frames, one frame's
      after the other's, as those stages make them.
    remat: whether the backward pass computes each stage of the backbone again
      instead of keeping what is inside it.
  """

  input_shape: tuple[int, int, int]
  backbone: tuple[Stage, ...]
  body: tuple[Stage, ...]
  head: tuple[Stage, ...]
  dtype: str = 'float32'
  pixels: str = 'standardised'
  clip: str = 'frames'
  remat: bool = False

  def __post_init__(self):
    # As plain values they can be compared, hashed and written down.
    object.__setattr__(self, 'dtype', dtype_name(self.dtype))
    for name in ('input_shape', 'backbone', 'body', 'head'):
      value = getattr(self, name)
      if isinstance(value, list):
        object.__setattr__(self, name, tuple(value))


def dtype_name(value: Any) -> Any:
  """Its name, of a dtype such as `jnp.bfloat16`; anything else as it is."""
  is_type = isinstance(value, type) and hasattr(value, 'dtype')
  if is_type or isinstance(value, np.dtype):
    return np.dtype(value).name
  return value
