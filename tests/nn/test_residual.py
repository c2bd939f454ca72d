"""Residual block against its composition from lax and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fer_jax.nn import ResidualBlock

B = 5


def images(shape):
  draw = np.random.default_rng(0)
  return jnp.asarray(draw.standard_normal(shape), jnp.float32)


def conv(x, kernel, stride=1):
  return lax.conv_general_dilated(
    x,
    kernel[...],
    (stride, stride),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=lax.Precision.HIGHEST,
  )


def normalise(x, norm, kept):
  """By the statistics of the kept images; None takes the running ones."""
  x = np.asarray(x, np.float64)
  mean, var = np.asarray(norm.mean[...]), np.asarray(norm.var[...])
  if kept is not None:
    mean, var = x[kept].mean((0, 1, 2)), x[kept].var((0, 1, 2))
  y = (x - mean) / np.sqrt(var + 1e-5)
  y = y * np.asarray(norm.scale[...]) + np.asarray(norm.bias[...])
  return y.astype(np.float32)


def composed(block, x, stride, kept=None):
  y = np.maximum(
    normalise(conv(x, block.conv1.kernel, stride), block.norm1, kept), 0
  )
  y = normalise(conv(y, block.conv2.kernel), block.norm2, kept)
  skip = x
  if block.projection is not None:
    skip = normalise(
      conv(x, block.projection.kernel, stride), block.projection_norm, kept
    )
  return np.maximum(y + skip, 0)


def randomise(block):
  """Norms away from their start, where scale and bias do nothing."""
  norms = [block.norm1, block.norm2, block.projection_norm]
  for n, norm in enumerate(norm for norm in norms if norm is not None):
    for m, name in enumerate(('scale', 'bias', 'mean', 'var')):
      key = jax.random.key(4 * n + m)
      value = jax.random.uniform(key, norm.scale.shape, minval=0.5, maxval=1.5)
      getattr(norm, name)[...] = value


@pytest.mark.parametrize(
  ('features', 'out', 'kernel_size', 'strides'),
  [(4, 4, 3, 1), (4, 6, 3, 1), (4, 4, 5, 2)],
)
def test_block_equals_its_composition(features, out, kernel_size, strides):
  """Evaluation and training; 2e-5 on values of size 1."""
  block = ResidualBlock(
    features, out, kernel_size=kernel_size, strides=strides, rngs=nnx.Rngs(0)
  )
  randomise(block)
  assert (block.projection is None) == (features == out and strides == 1)
  x = images((B, 9, 10, features))
  y = nnx.jit(lambda block, x: block(x))(block, x)
  assert y.shape == (B, -(-9 // strides), -(-10 // strides), out)
  np.testing.assert_allclose(y, composed(block, x, strides), atol=2e-5)

  mask = np.array([True, True, False, True, False])
  expected = composed(block, x, strides, mask)
  y = nnx.jit(lambda block, x, m: block(x, train=True, mask=m))(
    block, x, jnp.asarray(mask)
  )
  np.testing.assert_allclose(y, expected, atol=2e-5)


def test_kernels_start_he_normal_and_have_no_bias():
  """Standard deviation sqrt(2 / fan in), within 5 %."""
  block = ResidualBlock(64, 64, rngs=nnx.Rngs(0))
  kernel = np.asarray(block.conv2.kernel[...])
  np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 64)), rtol=0.05)
  assert block.conv1.bias is None


def test_bfloat16():
  """Against float32: 0.1 on values of size 3."""
  full = ResidualBlock(4, 6, rngs=nnx.Rngs(0))
  half = ResidualBlock(4, 6, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  x = images((B, 8, 8, 4))
  y = half(x.astype(jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(y, np.float32), full(x), atol=0.1)
