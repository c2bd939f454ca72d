"""Mesh axes along which an array varies from device to device.

Inside `jax.shard_map` they are part of an array's type, and JAX checks them: a
loop's carry keeps those that it starts with, and a custom backward rule gives
each gradient those of its operand. So operands that meet in either are made to
vary alike before. The transpose of that sums a gradient along the axes that
were added, so no rule needs to.
"""

from typing import Any

import jax
from jax import lax


def alike(*trees: Any) -> Any:
  """The trees, every array of which varies along the axes that any does.

  Outside `jax.shard_map` nothing varies, and they come back as they are.
  """
  axes = frozenset().union(*map(_axes, jax.tree.leaves(trees)))
  if not axes:
    return trees

  def vary(x):
    return lax.pcast(x, tuple(sorted(axes - _axes(x), key=str)), to='varying')

  return jax.tree.map(vary, trees)


def _axes(x) -> frozenset[Any]:
  array_type: Any = jax.typeof(x)
  return array_type.manual_axis_type.varying
