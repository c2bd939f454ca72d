"""Pooling against lax.reduce_window, which is Flax's; float32 to 1e-6."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fer_jax.nn import pooling

WINDOWS = [
  ((3, 8, 8, 4), (2, 2), (2, 2), 'VALID'),
  ((3, 9, 7, 4), (2, 2), (2, 2), 'VALID'),
  ((3, 9, 7, 4), (2, 2), (2, 2), 'SAME'),
  ((2, 9, 7, 4), (3, 3), (2, 2), 'SAME'),
  ((2, 9, 8, 4), (3, 2), (1, 3), ((1, 0), (0, 1))),
  ((2, 6, 6, 4), (6, 6), (1, 1), 'VALID'),
  ((2, 7, 7, 1), (2, 2), (3, 3), 'VALID'),
  ((1, 26, 13, 2), (12, 12), (12, 12), 'VALID'),  # more places than int8 counts
]


def reduce_window(x, initial, operation, window, strides, padding):
  return lax.reduce_window(
    x, initial, operation, (1, *window, 1), (1, *strides, 1),
    padding if isinstance(padding, str) else ((0, 0), *padding, (0, 0)),
  )  # fmt: skip


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(function, x):
  y, transpose = jax.vjp(function, x)
  return y, transpose(
    jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
  )[0]


@pytest.mark.parametrize(('shape', 'window', 'strides', 'padding'), WINDOWS)
def test_max_pool_matches_reduce_window(shape, window, strides, padding):
  # A permutation, so that no two elements tie.
  values = np.random.default_rng(0).permutation(int(np.prod(shape)))
  x = jnp.asarray(values.reshape(shape) - values.size / 2, jnp.float32)
  got = value_and_gradient(
    lambda x: pooling.max_pool(x, window, strides, padding), x
  )
  want = value_and_gradient(
    lambda x: reduce_window(x, -jnp.inf, lax.max, window, strides, padding), x
  )
  np.testing.assert_array_equal(got[0], want[0])
  np.testing.assert_allclose(got[1], want[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(('shape', 'window', 'strides', 'padding'), WINDOWS)
def test_avg_pool_matches_reduce_window(shape, window, strides, padding):
  x = jax.random.normal(jax.random.key(0), shape)
  got = value_and_gradient(
    lambda x: pooling.avg_pool(x, window, strides, padding), x
  )
  area = window[0] * window[1]
  want = value_and_gradient(
    lambda x: reduce_window(x, 0.0, lax.add, window, strides, padding) / area,
    x,
  )
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_windows_side_by_side_by_default():
  x = jax.random.normal(jax.random.key(0), (2, 6, 6, 3))
  np.testing.assert_array_equal(
    pooling.max_pool(x), pooling.max_pool(x, (2, 2), (2, 2), 'VALID')
  )


def test_first_of_ties_takes_the_gradient():
  """Few values, so most windows tie; XLA's select-and-scatter, as Keras has."""
  values = np.random.default_rng(0).integers(3, size=(2, 9, 7, 4))
  x = jnp.asarray(values, jnp.float32)
  got = value_and_gradient(pooling.max_pool, x)
  want = value_and_gradient(
    lambda x: reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), 'VALID'), x
  )
  for a, b in zip(got, want, strict=True):
    np.testing.assert_array_equal(a, b)


def test_windows_that_overlap_share_the_gradient_of_ties():
  x = jnp.zeros((1, 5, 5, 1))
  dx = jax.grad(lambda x: pooling.max_pool(x, 3, 2).sum())(x)
  assert dx.sum() == 4
  assert (dx > 0).all()


def test_nan_comes_through():
  x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0].set(jnp.nan)
  y = pooling.max_pool(x)
  assert jnp.isnan(y[0, 0, 0, 0])
  assert jnp.isfinite(y).sum() == 3


def test_bfloat16_stays():
  x = jnp.ones((1, 4, 4, 1), jnp.bfloat16)
  assert pooling.max_pool(x).dtype == jnp.bfloat16
  assert pooling.avg_pool(x).dtype == jnp.bfloat16


def test_mistakes_are_named():
  x = jnp.zeros((1, 4, 4, 1))
  with pytest.raises(ValueError, match='does not fit'):
    pooling.max_pool(x, 5)
  with pytest.raises(ValueError, match='window must be'):
    pooling.max_pool(x, 0)
  with pytest.raises(ValueError, match='whole windows'):
    pooling.max_pool(x, 2, padding=2)
  with pytest.raises(ValueError, match='takes images'):
    pooling.avg_pool(x[0])
