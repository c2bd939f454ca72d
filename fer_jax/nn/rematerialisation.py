"""Computing again in the backward pass what would have to be kept for it."""

from typing import Any

import jax
from flax import nnx


def call(
  module: nnx.Module, x: jax.Array, *args: Any, remat: bool, **options: Any
) -> Any:
  """`module(x, *args, **options)`; what it changes of itself, it changes once.

  Args:
    module: whose insides are concerned, BatchNorm's statistics included.
    x: what it gets; kept, where the insides are not.
    *args, **options: likewise, with nothing to be differentiated.
    remat: whether the backward pass computes the insides again.
  """
  if not remat:
    return module(x, *args, **options)
  return nnx.remat(lambda module, x: module(x, *args, **options))(module, x)
