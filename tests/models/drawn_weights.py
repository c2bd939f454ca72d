"""Weights of models, drawn by NumPy.

JAX draws each by a program for its shape, and a hundred shapes take it a minute
to compile.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import nnx


def drawn(model, seed=0):
  """An abstract model as one whose activations keep their size, and whose
  normalisation is far from the identity."""
  draw = np.random.default_rng(seed)
  graphdef, state = nnx.split(model)
  flat = []
  for path, variable in nnx.to_flat_state(state):
    shape = variable.shape
    if path[-1] in ('scale', 'var'):
      value = draw.uniform(0.7, 1.4, shape)
    elif len(shape) > 1:
      value = draw.standard_normal(shape) * math.sqrt(2 / np.prod(shape[:-1]))
    else:
      value = 0.1 * draw.standard_normal(shape)
    flat.append((path, variable.replace(jnp.asarray(value, jnp.float32))))
  return nnx.merge(graphdef, nnx.from_flat_state(flat))
