"""Initialisers of convolution kernels."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def he_normal(
  key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32
) -> jax.Array:
  """Normal, cut at two deviations, of variance 2 / fan-in.

  The values of `jax.nn.initializers.he_normal()`, drawn in one axis: XLA takes
  0.3 s on CPU to compile random bits of one axis and 0.9 to 1.6 s for four
  (jax 0.10.2), and a model has ten kernels and more.

  Args:
    key: PRNG key.
    shape: (..., inputs, outputs); all axes but the last make up the fan-in.
    dtype: of the result.

  Source: He et al., arXiv 1502.01852.
  """
  # Deviation of a standard normal that is cut at two deviations.
  cut_deviation = 0.87962566103423978
  deviation = math.sqrt(2 / math.prod(shape[:-1])) / cut_deviation
  flat = jax.random.truncated_normal(key, -2, 2, (math.prod(shape),), dtype)
  return (flat * jnp.asarray(deviation, dtype)).reshape(shape)
