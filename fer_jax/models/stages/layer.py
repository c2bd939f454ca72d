"""What all stages have in common."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
from flax import nnx

from fer_jax.nn import arguments

Grid = tuple[int, int] | None
"""(rows, columns) of the map whose cells are the steps, row-major."""

RANKS = {1: 'a vector (D,)', 2: 'a sequence (T, D)', 3: 'a map (h, w, D)'}


@dataclasses.dataclass
class Run:
  """What the stages of one call share.

  Attributes:
    train: whether BatchNorm normalises by this batch's statistics.
    mask: bool (B,), or (B T,) before a clip's frames are steps: which examples
      enter those statistics; None for all.
    key: of dropout, None for none; each stage that draws takes `next_key`.
    rate: in the place of that of every `Drop`, None to keep those.
    remat: whether the backward pass computes the backbone's stages again.
    frame_mask: bool (B, T) of the steps there are, None for all; a stage that
      gives steps of another kind sets it.
    steps_a_frame: of a clip, which are there or not together.
    features: outputs by name, to which a stage may add.
  """

  train: bool
  mask: jax.Array | None
  key: jax.Array | None
  rate: jax.Array | float | None
  remat: bool = False
  frame_mask: jax.Array | None = None
  steps_a_frame: int = 1
  features: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
  _keys: Iterator[jax.Array | None] | None = None

  def next_key(self) -> jax.Array | None:
    """A key for the stage that asks, another one each time."""
    if self._keys is None:
      self._keys = _folded(self.key)
    return next(self._keys)


def _folded(key):
  n = 0
  while True:
    yield None if key is None else jax.random.fold_in(key, n)
    n += 1


def check_plain(stage: Any) -> None:
  """Raises ValueError where a field of a stage is not of its type."""
  for field in dataclasses.fields(stage):
    name, value = f'{stage}: {field.name}', getattr(stage, field.name)
    if field.type is bool:
      arguments.flag(name, value)
    elif field.type is int and field.name != 'seed':
      arguments.positive(name, value)


def check_among(stage: Any, field: str, allowed: tuple[str, ...]) -> None:
  """Raises ValueError where a field of a stage is none of `allowed`."""
  if getattr(stage, field) not in allowed:
    raise ValueError(f'{stage}: {field} must be one of {allowed}')


class Layer(nnx.Module):
  """A stage as a module: called with what the stage before gives, and the run.

  Attributes:
    kind: its name in a model, to which a number is added.
    takes: rank of the shapes it takes (see `RANKS`), 0 for any.
    over_sequence: whether it works on the steps of a sequence.
    output_shape: of what it gives, without the batch axis.

  Args:
    stage: what it stands for.
    shape: of what it gets, without the batch axis.
    dtype: what to compute in.
    rngs: the stream `params` draws its parameters.

  Raises:
    ValueError: where it does not take that shape.
  """

  kind: ClassVar[str]
  takes: ClassVar[int] = 0
  over_sequence: ClassVar[bool] = False

  def __init__(
    self, stage: Any, shape: tuple[int, ...], *, dtype: Any, rngs: nnx.Rngs
  ):
    if self.takes and len(shape) != self.takes:
      raise ValueError(f'{stage} takes {RANKS[self.takes]}, got {shape}')
    self.stage = stage
    self.output_shape: tuple[int, ...] = shape
    self.build(stage, shape, dtype=dtype, rngs=rngs)

  def build(
    self, stage: Any, shape: tuple[int, ...], *, dtype: Any, rngs: nnx.Rngs
  ) -> None:
    """Makes parameters and sets `output_shape` where it is not `shape`."""
    del stage, shape, dtype, rngs

  def grid_after(self, grid: Grid) -> Grid:
    """The grid of its steps, where the steps it gets have `grid`."""
    return grid

  def __call__(self, x: jax.Array, run: Run) -> jax.Array:
    """(B, *shape) to (B, *output_shape)."""
    raise NotImplementedError

  def require_room(self, shape: tuple[int, ...]) -> None:
    """Raises ValueError where the map that comes out has no cell."""
    if min(self.output_shape[:2]) < 1:
      raise ValueError(f'{self.stage} leaves nothing of a map {shape}')

  def require_among(self, field: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError where a field of the stage is none of `allowed`."""
    check_among(self.stage, field, allowed)
