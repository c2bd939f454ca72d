"""What a population takes of a device's memory, told before it is made."""

import contextlib
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fer_jax.errors import UserError, exhaustion
from fer_jax.training import feed
from fer_jax.training import step as step_lib
from fer_jax.training.state import TrainState

USABLE = 0.8
"""Share of a device's memory that is planned with: programs, fragments and
other processes take some."""

HELPS = 'a smaller train.batch_size, data.image_size or model helps'


class ExhaustedError(UserError):
  """A device holds less than what it was given to do."""

  def __init__(self, message: str, fits: int | None = None):
    """Takes how many runs fit; None where that is not known."""
    super().__init__(message)
    self._fits = fits

  def fewer(self, tried: int) -> int:
    """How many runs to try after so many were too many; 0 for none."""
    half = math.ceil(tried / 2) if tried > 1 else 0
    return half if self._fits is None else self._fits


@contextlib.contextmanager
def exhaustion_told() -> Iterator[None]:
  """Tells in a line where JAX finds that a device's memory is full.

  Raises:
    ExhaustedError: in the place of JAX's error.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    told = exhaustion(error, HELPS)
    if told is None:
      raise
    raise ExhaustedError(told) from error


@dataclasses.dataclass(frozen=True)
class Need:
  """Bytes on a device.

  Attributes:
    shared: the data set.
    member: what a member holds all the time: state, averages, lists.
    working: what one takes while it trains: activations, gradients, and the
      state that a step writes beside the one it reads.
  """

  shared: int
  member: int
  working: int


def need(
  images: dict[str, Any],
  state: TrainState,
  plan: step_lib.Plan,
  room: tuple[int, int],
  *,
  graphdef: nnx.GraphDef,
  settings: step_lib.StepSettings,
) -> Need:
  """Compiles the block of one member, runs nothing, and asks what it takes.

  Args:
    images: the resident set; arrays, or shapes and dtypes.
    state: of one member, likewise.
    plan: of one member, likewise.
    room: rows of the longest training and validation lists.
    graphdef: of the model.
    settings: of the step where most of it trains.
  """
  train, validation = (
    feed.padded_length(rows, settings.batch_size) for rows in room
  )
  order = jax.ShapeDtypeStruct((train,), jnp.int32)
  compiled = (
    step_lib.make_block(graphdef, settings)
    .lower(state, step_lib.zero_sums(), images, order, 0, 0, 1, plan)
    .compile()
  )
  own = bytes_of(state)
  return Need(
    shared=bytes_of(images),
    member=own + 4 * (2 * train + validation),  # rows, and the epoch's order
    working=own + compiled.memory_analysis().temp_size_in_bytes,
  )


def predicted_bytes(
  need: Need, members: int, mapping: str, parts: int = 1
) -> int:
  """What members take that have one memory, and one data set in it.

  Args:
    need: of one.
    members: how many.
    mapping: 'vmap', where all of a device train at once, or 'in_turn'.
    parts: devices of that memory, among which they are divided.
  """
  parts = max(1, min(parts, members))
  each = math.ceil(members / parts)
  at_once = each if mapping == 'vmap' else min(each, 1)
  return need.shared + parts * (each * need.member + at_once * need.working)


def require(
  limit: int, need: Need, members: int, mapping: str, parts: int = 1
) -> None:
  """Checks that members fit into a memory.

  Args:
    limit: bytes, as `limit_bytes` gives them.
    need: of one member.
    members: how many; also `mapping` and `parts` as for `predicted_bytes`.

  Raises:
    ExhaustedError: they do not; it knows how many do.
  """

  def taken(count: int) -> int:
    return predicted_bytes(need, count, mapping, parts)

  fits = sum(taken(count) <= limit for count in range(1, members + 1))
  if fits == members:
    return
  tried = members if fits else 1
  runs = f'{tried} runs need' if fits else 'one run needs'
  raise ExhaustedError(
    f'{runs} {taken(tried) / 2**20:,.0f} MiB of memory, '
    f'{need.shared / 2**20:,.0f} of them for the data set; allowed is at '
    f'most {limit / 2**20:,.0f}: {HELPS}',
    fits,
  )


def waves(
  count: int,
  limit: int,
  need: Need,
  mapping: str,
  *,
  devices: int = 1,
  parts: int = 1,
) -> list[range]:
  """Divides members into as few waves as memory allows, even ones.

  Args:
    count: of all members.
    limit: bytes of each memory, as `limit_bytes` gives them.
    need: of one member.
    mapping: as for `predicted_bytes`.
    devices: with a memory of their own, among which members are divided.
    parts: of each of these, as for `predicted_bytes`.

  Returns:
    Numbers of the members of each wave, the largest wave first.

  Raises:
    ExhaustedError: not even one member fits.
  """
  places = math.ceil(count / devices)
  try:
    require(limit, need, places, mapping, parts)
  except ExhaustedError as error:
    places = error.fewer(places)
    if not places:
      raise
  return split(range(count), places * devices)


def split(members: range, most: int) -> list[range]:
  """Divides members evenly into as few waves of at most so many."""
  parts = np.array_split(members, math.ceil(len(members) / most))
  return [range(part[0], part[-1] + 1) for part in parts]


def limit_bytes(device: Any) -> int:
  """The memory of a device that may be planned with.

  On CPU it is the machine's, or the container's, which JAX's devices have in
  common.
  """
  limit = (device.memory_stats() or {}).get('bytes_limit')
  if limit is None:
    limit = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    group = pathlib.Path('/sys/fs/cgroup/memory.max')
    text = group.read_text().strip() if group.exists() else 'max'
    if text != 'max':
      limit = min(limit, int(text))
  return int(USABLE * limit)


def bytes_of(tree: Any) -> int:
  """Of arrays, or of shapes and dtypes."""
  return sum(
    math.prod(x.shape) * jnp.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )
