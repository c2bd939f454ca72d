"""Weights of Keras' models, drawn by NumPy.

Keras draws each by a program for its shape, whose compilation is most of the
time that it takes to build a model.
"""

import contextlib

import jax.numpy as jnp
import keras
import numpy as np
import pytest


@contextlib.contextmanager
def undrawn():
  """Models built meanwhile hold zeros, until they are randomised."""

  def zeros(self, shape, dtype=None):
    del self, dtype
    return jnp.asarray(np.zeros(shape, np.float32))

  with pytest.MonkeyPatch.context() as patch:
    for name in ('GlorotUniform', 'Orthogonal', 'Zeros', 'Ones'):
      patch.setattr(getattr(keras.initializers, name), '__call__', zeros)
    yield


def randomise(model, seed=0):
  """Keeps activations of size 1, and normalisation far from the identity."""
  rng = np.random.default_rng(seed)
  for variable in model.weights:
    shape, part = variable.shape, variable.path.rpartition('/')[2]
    if part == 'depthwise_kernel':
      value = rng.normal(size=shape) / 3
    elif part.endswith('kernel'):
      value = rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[:-1]))
    elif part in ('gamma', 'moving_variance'):
      value = rng.uniform(0.5, 1.5, shape)
    else:
      value = 0.2 * rng.normal(size=shape)
    variable.assign(value.astype(np.float32))
