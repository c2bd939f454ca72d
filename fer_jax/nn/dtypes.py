"""Dtypes that layers compute in, whatever promotion JAX is set to.

Under `jax_numpy_dtype_promotion='strict'` it promotes none, not even where it
is asked what it would promote to.
"""

from typing import Any

import jax
import jax.numpy as jnp


def sum_dtype(dtype: Any) -> Any:
  """What products of a floating dtype are summed in, and gates, carries and
  statistics kept in: float32, or itself where it is wider."""
  dtype = jnp.dtype(dtype)
  return dtype if dtype.itemsize >= 4 else jnp.dtype(jnp.float32)


def as_bool(mask: Any) -> jax.Array:
  """A mask of any dtype as bool: what is above 0 is True."""
  return mask if mask.dtype == bool else mask > 0
