"""Where arrays lie on several devices, and what a program says to others.

Every device runs the program of a single one, on its part of each batch
(`jax.shard_map`), and what is of the whole batch is summed along the axis
`data` of the mesh: gradients, BatchNorm's statistics, the sums of loss and
accuracy. It is not left to XLA's partitioner: a loop over images, such as the
convolutions on CPU have, would run over the whole batch on every device, and
cuDNN's recurrent layers are nothing that it can divide.

State, plan and a resident set are copied to every device; the devices of a CPU
read one copy of the set. A streamed batch is divided among hosts, then devices.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from fer_jax import hosts
from fer_jax.data import resident
from fer_jax.errors import UserError
from fer_jax.training.mapping import AXIS as MEMBER

DATA = 'data'
"""Axis of the mesh along which a batch is divided."""

EVERYWHERE = PartitionSpec()
DIVIDED = PartitionSpec(DATA)

T = TypeVar('T')


def make_mesh(devices: Sequence[Any], members: int = 1) -> Mesh:
  """A mesh of the axes `member` and `data`, the second taking what is left.

  Args:
    devices: as many as `members` times the parts of a batch.
    members: parts of a population.
  """
  # By host, so that a host's part of a batch is one piece of it.
  in_order = sorted(devices, key=lambda d: (d.process_index, d.id))
  return Mesh(
    np.array(in_order).reshape(members, -1),
    (MEMBER, DATA),
    axis_types=(AxisType.Auto,) * 2,
  )


def data_mesh(
  batch_size: int, devices: Sequence[Any] | None = None
) -> Mesh | None:
  """The mesh that one run divides its batches over; None for one device.

  Args:
    batch_size: of the whole batch.
    devices: all of all hosts by default.

  Raises:
    UserError: the batch does not divide evenly.
  """
  devices = jax.devices() if devices is None else devices
  if len(devices) == 1:
    return None
  if batch_size % len(devices):
    raise UserError(
      f'train.batch_size is {batch_size}; allowed is a multiple of '
      f'{len(devices)}, the number of devices'
    )
  return make_mesh(devices)


def parts(mesh: Mesh | None) -> int:
  """How many parts a batch is divided into."""
  return 1 if mesh is None else mesh.shape[DATA]


def replicated(tree: T, mesh: Mesh | None) -> T:
  """A copy of each array on every device; as they are without a mesh.

  Args:
    tree: of arrays, of the same values on all hosts.
    mesh: of all hosts.
  """
  if mesh is None:
    return tree
  everywhere = NamedSharding(mesh, EVERYWHERE)
  on_cpu = mesh.devices.flat[0].platform == 'cpu'
  alone = hosts.count() == 1

  def place(x):
    if not isinstance(x, jax.Array | np.ndarray):
      return x  # a Python number, which goes everywhere of itself
    if on_cpu and isinstance(x, np.ndarray):
      x = _aligned(x)
    if alone:
      return jax.device_put(x, everywhere)
    if isinstance(x, jax.Array):
      if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = place(jax.random.key_data(x))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
      if x.sharding.is_equivalent_to(everywhere, x.ndim):
        return x
    # Not `device_put`, which sends all of it round to compare the hosts'.
    on_host = np.asarray(x)
    return jax.make_array_from_callback(
      on_host.shape, everywhere, lambda index: on_host[index]
    )

  return jax.tree.map(place, tree)


def _aligned(x: np.ndarray) -> np.ndarray:
  """An array that JAX's CPU devices read in its place; itself if it is one."""
  if x.flags.c_contiguous and x.ctypes.data % resident.ALIGNMENT == 0:
    return x
  placed = resident.aligned_zeros(x.shape, x.dtype)
  placed[...] = x
  return placed


def divided(batch: dict[str, np.ndarray], mesh: Mesh | None) -> dict[str, Any]:
  """A batch on the devices of all hosts, of which this one has its part.

  Args:
    batch: arrays (B / hosts, ...); a whole batch where there is no mesh.
    mesh: of all hosts.

  Returns:
    Arrays (B, ...).
  """
  if mesh is None:
    return batch
  along = NamedSharding(mesh, DIVIDED)
  return {
    name: jax.make_array_from_process_local_data(along, x)
    for name, x in batch.items()
  }


def over_devices(
  function: Callable[..., Any],
  mesh: Mesh | None,
  in_specs: Any = EVERYWHERE,
  out_specs: Any = EVERYWHERE,
) -> Callable[..., Any]:
  """Runs a function on every device of a mesh; itself without one.

  Args:
    function: sees each device's part, and sums along `DATA` what it returns
      as of the whole.
    mesh: of all hosts.
    in_specs, out_specs: as of `jax.shard_map`.
  """
  if mesh is None:
    return function
  return jax.shard_map(
    function,
    mesh=mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=False,
  )


def axis_size(axis: str | None) -> int:
  """Devices along an axis; 1 without one."""
  return 1 if axis is None else lax.axis_size(axis)


def total(tree: T, axis: str | None) -> T:
  """Sums over the devices along an axis; as it is without one."""
  return tree if axis is None else lax.psum(tree, axis)
