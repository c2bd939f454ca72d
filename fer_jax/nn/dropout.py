"""Dropout whose rate may be a traced scalar and that holds no random state."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from fer_jax.nn import arguments


class Dropout(nnx.Module):
  """Zeroes each element with probability `rate`, scaling up the others.

  The key is the caller's, so that a resumed run draws what the uninterrupted
  one would have drawn; the rate of a call may be traced, so that trials that
  differ in it share one compilation.

  Args:
    rate: probability of zero, in [0, 1).

  Attributes:
    axis_name: set to the name of a mapped axis (of `jax.shard_map`) along which
      the first axis of what it is called with is divided, it drops what it
      would drop of the whole.

  Raises:
    ValueError: for a rate outside [0, 1).

  Source: Srivastava et al., Dropout, JMLR 15 (2014).
  """

  def __init__(self, rate: float):
    self.rate = arguments.share('rate of dropout', rate)
    self.axis_name: str | None = None

  def __call__(
    self,
    x: jax.Array,
    *,
    key: jax.Array | None = None,
    rate: jax.Array | float | None = None,
  ) -> jax.Array:
    """Returns `x` of the same shape and dtype.

    Args:
      x: any shape.
      key: PRNG key; None leaves `x` as it is.
      rate: scalar in the place of the module's rate; may be traced.
    """
    if key is None:
      return x
    if rate is None:
      if self.rate == 0:
        return x
      rate = self.rate
    if not isinstance(rate, jax.Array | np.ndarray):
      rate = arguments.share('rate of dropout', rate)
    arguments.check_key(key)
    arguments.check_floating('dropout takes an array', x)
    kept = 1 - jnp.asarray(rate, jnp.float32)
    keep = self._draw(key, kept, x.shape)
    return jnp.where(keep, x / kept.astype(x.dtype), jnp.zeros((), x.dtype))

  def _draw(self, key, kept, shape):
    if self.axis_name is None:
      return jax.random.bernoulli(key, kept, shape)
    whole = (shape[0] * lax.axis_size(self.axis_name), *shape[1:])
    first = shape[0] * lax.axis_index(self.axis_name)
    draws = jax.random.bernoulli(key, kept, whole)
    return lax.dynamic_slice_in_dim(draws, first, shape[0])
