"""Initialisers against those of JAX."""

import jax
import numpy as np

from fer_jax.nn.initializers import he_normal


def test_he_normal_draws_the_values_of_jax():
  """Reference: jax.nn.initializers.he_normal; relative 1e-6."""
  key, shape = jax.random.key(0), (3, 3, 20, 30)
  expected = jax.nn.initializers.he_normal()(key, shape)
  np.testing.assert_allclose(he_normal(key, shape), expected, rtol=1e-6)
  np.testing.assert_allclose(expected.std(), np.sqrt(2 / 180), rtol=0.05)
