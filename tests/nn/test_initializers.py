"""Initialisers against those of JAX."""

import jax
import numpy as np
import pytest

from fer_jax.nn.initializers import (
  glorot_uniform,
  he_normal,
  kaiming_normal,
)


def test_he_normal_draws_the_values_of_jax():
  """Reference: jax.nn.initializers.he_normal; relative 1e-6."""
  key, shape = jax.random.key(0), (3, 3, 20, 30)
  expected = jax.nn.initializers.he_normal()(key, shape)
  np.testing.assert_allclose(he_normal(key, shape), expected, rtol=1e-6)
  np.testing.assert_allclose(expected.std(), np.sqrt(2 / 180), rtol=0.05)


@pytest.mark.parametrize('shape', [(3, 3, 20, 30), (3, 3, 1, 30), (20, 30)])
def test_glorot_uniform_draws_the_values_of_jax(shape):
  """Reference: jax.nn.initializers.glorot_uniform; relative 1e-6."""
  key = jax.random.key(0)
  expected = jax.nn.initializers.glorot_uniform()(key, shape)
  np.testing.assert_allclose(glorot_uniform(key, shape), expected, rtol=1e-6)


@pytest.mark.parametrize('fan', ['in', 'out'])
def test_kaiming_normal_draws_the_values_of_jax(fan):
  """Reference: jax.nn.initializers.variance_scaling, uncut; relative 1e-6."""
  key, shape = jax.random.key(0), (3, 3, 20, 30)
  scaling = jax.nn.initializers.variance_scaling(2.0, f'fan_{fan}', 'normal')
  np.testing.assert_allclose(
    kaiming_normal(key, shape, fan=fan), scaling(key, shape), rtol=1e-6
  )
  with pytest.raises(ValueError, match="got 'avg'"):
    kaiming_normal(key, shape, fan='avg')
