"""How members of a population share a dispatch: all at once, or in turn.

What is mapped is written for one member, as a single run has it:
`function(own, given, shared) -> own`, where `own` is what it changes, `given`
what it reads, and `shared` what all members read. Mapped, `own` and `given`
have a leading axis M.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.sharding import PartitionSpec

AXIS = 'member'
"""Of the mesh of devices among which members are divided."""

Function = Callable[[Any, Any, Any], Any]


def choose(mapping: str, platform: str) -> str:
  """A name of `MAPPINGS` for one, or for 'auto'.

  Raises:
    ValueError: for another name.
  """
  if mapping not in ('auto', *MAPPINGS):
    raise ValueError(
      f"mapping is {mapping!r}; allowed is 'auto' or one of {list(MAPPINGS)}"
    )
  if mapping != 'auto':
    return mapping
  # On CPU members in turn cost what as many single runs do, and all at once up
  # to twice that, likely since their tiles overflow the cache. Accelerators are
  # not measured: there one small step leaves most of the device idle.
  return 'in_turn' if platform == 'cpu' else 'vmap'


def over_members(
  function: Function, mapping: str, mesh: jax.sharding.Mesh | None = None
) -> Function:
  """Maps a function over members, and members over devices.

  Args:
    function: of one member.
    mapping: a name of `MAPPINGS`.
    mesh: of the axis `member`, whose size divides M; None is one device.
  """
  mapped = functools.partial(MAPPINGS[mapping], function)
  if mesh is None:
    return mapped
  # Not left to the partitioner: members have nothing to tell each other, so
  # each device runs its own loop to its own end.
  members, everywhere = PartitionSpec(AXIS), PartitionSpec()
  return jax.shard_map(
    mapped,
    mesh=mesh,
    in_specs=(members, members, everywhere),
    out_specs=members,
    check_vma=False,
  )


def _at_once(function: Function, own: Any, given: Any, shared: Any) -> Any:
  return jax.vmap(function, in_axes=(0, 0, None))(own, given, shared)


def _in_turn(function: Function, own: Any, given: Any, shared: Any) -> Any:
  """One member after another, each written over in place."""

  def body(m, own):
    before, its = jax.tree.map(
      lambda x: lax.dynamic_index_in_dim(x, m, keepdims=False), (own, given)
    )
    return jax.tree.map(
      lambda x, new: lax.dynamic_update_index_in_dim(x, new, m, 0),
      own,
      function(before, its, shared),
    )

  return lax.fori_loop(0, jax.tree.leaves(own)[0].shape[0], body, own)


MAPPINGS = {'vmap': _at_once, 'in_turn': _in_turn}
