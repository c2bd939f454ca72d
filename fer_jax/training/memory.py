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

from fer_jax.errors import UserError
from fer_jax.training import feed
from fer_jax.training import step as step_lib
from fer_jax.training.state import TrainState

USABLE = 0.8
"""Share of a device's memory that is planned with: programs, fragments and
other processes take some."""

HELPS = 'a smaller train.batch_size, data.image_size or model helps'


class ExhaustedError(UserError):
  """A device holds less than what it was given to do."""


@contextlib.contextmanager
def exhaustion_told() -> Iterator[None]:
  """Tells in a line where JAX finds that a device's memory is full.

  Raises:
    ExhaustedError: in the place of JAX's error.
  """
  try:
    yield
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    said = str(error).strip().splitlines()[0]
    raise ExhaustedError(
      f'the device has too little memory ({said}); {HELPS}'
    ) from error


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


def predicted_bytes(need: Need, members: int, mapping: str) -> int:
  """What members on one device take.

  Args:
    need: of one.
    members: how many.
    mapping: 'vmap', where all of them train at once, or 'in_turn'.
  """
  at_once = members if mapping == 'vmap' else min(members, 1)
  return need.shared + members * need.member + at_once * need.working


def waves(
  count: int, limit: int, need: Need, mapping: str, *, devices: int = 1
) -> list[range]:
  """Divides members into as few waves as memory allows, even ones.

  Args:
    count: of all members.
    limit: bytes on each device, as `limit_bytes` gives them.
    need: of one member.
    mapping: as for `predicted_bytes`.
    devices: among which members are divided.

  Returns:
    Numbers of the members of each wave, the largest wave first.

  Raises:
    UserError: not even one member fits.
  """
  least = predicted_bytes(need, 1, mapping)
  if least > limit:
    raise UserError(
      f'one run needs {least / 2**20:,.0f} MiB of memory, '
      f'{need.shared / 2**20:,.0f} of them for the data set; allowed is at '
      f'most {limit / 2**20:,.0f}: {HELPS}'
    )
  each = predicted_bytes(need, 2, mapping) - least
  places = (1 + (limit - least) // each) * devices
  parts = np.array_split(np.arange(count), math.ceil(count / places))
  return [range(part[0], part[-1] + 1) for part in parts]


def limit_bytes(device: Any, shares: int | None = None) -> int:
  """The memory of a device that may be planned with.

  On CPU it is the machine's, or the container's, shared among JAX's devices.

  Args:
    device: of this process.
    shares: in the place of their number; 1 for what they have in common.
  """
  limit = (device.memory_stats() or {}).get('bytes_limit')
  if limit is None:
    limit = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    group = pathlib.Path('/sys/fs/cgroup/memory.max')
    text = group.read_text().strip() if group.exists() else 'max'
    if text != 'max':
      limit = min(limit, int(text))
    limit //= shares or jax.local_device_count()
  return int(USABLE * limit)


def bytes_of(tree: Any) -> int:
  """Of arrays, or of shapes and dtypes."""
  return sum(
    math.prod(x.shape) * jnp.dtype(x.dtype).itemsize
    for x in jax.tree.leaves(tree)
  )
