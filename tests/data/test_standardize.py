"""Standardisation against NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.data import standardize


@pytest.mark.parametrize('shape', [(3, 8, 6, 1), (2, 4, 8, 6, 3)])
def test_equals_numpy(shape):
  images = np.random.default_rng(0).random(shape).astype(np.float32)
  axes = (-3, -2, -1)
  wide = images.astype(np.float64)
  expected = wide - wide.mean(axes, keepdims=True)
  expected /= wide.std(axes, keepdims=True)
  result = standardize.per_image(jnp.asarray(images))
  assert result.dtype == jnp.float32
  np.testing.assert_allclose(result, expected, atol=2e-5)


@pytest.mark.parametrize('value', [0.0, 0.1, 1.0])
def test_constant_image_becomes_zeros(value):
  result = standardize.per_image(jnp.full((1, 48, 48, 1), value))
  np.testing.assert_allclose(result, 0.0, atol=1e-3)


def test_one_grey_level_of_contrast_is_kept():
  images = np.zeros((1, 4, 4, 1), np.float32)
  images[0, :2] = 1 / 255
  result = np.asarray(standardize.per_image(jnp.asarray(images)))
  np.testing.assert_allclose(result.std(), 1.0, rtol=1e-4)
