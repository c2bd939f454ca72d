"""The algorithms against correlation by definition, in float64 to 1e-12.

Whole convolutions by them are tested in test_conv.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fer_jax.nn import winograd

PADS = ((1, 1), (1, 1))


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('tile', [2, 3, 4])
def test_algorithm_is_the_correlation(tile, stride):
  rng = np.random.default_rng(0)
  algorithm = winograd._algorithm(tile, stride)
  taps = rng.normal(size=3)
  inputs = rng.normal(size=algorithm.input.shape[1])
  got = algorithm.output @ (
    (algorithm.kernel @ taps) * (algorithm.input @ inputs)
  )
  want = np.correlate(inputs, taps, 'valid')[::stride]
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_tiles_save_the_products_of_the_paper():
  # Section 4: 2.25 times fewer for tiles of 2, 4 times for tiles of 4.
  direct = 9 * 12 * 12
  assert direct / winograd.products((12, 12), 1, 2) == 2.25
  assert direct / winograd.products((12, 12), 1, 4) == 4


def test_rounding_of_the_largest_tile_at_real_width():
  """float32 tiles of 4 at 128 channels: within 1e-5 of float64."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=(4, 12, 12, 128))
  kernel = rng.normal(size=(3, 3, 128, 128))
  got = jax.jit(
    lambda x, k: winograd.winograd_conv(x, k, None, PADS, stride=1, tile=4)
  )(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32))
  padded = np.pad(x, ((0, 0), *PADS, (0, 0)))
  want = sum(
    padded[:, i : i + 12, j : j + 12] @ kernel[i, j]
    for i in range(3)
    for j in range(3)
  )
  assert np.abs(got - want).max() / np.abs(want).max() < 1e-5


def test_no_image_gives_none():
  kernel = jnp.zeros((3, 3, 4, 5))
  y = winograd.winograd_conv(
    jnp.zeros((0, 7, 6, 4)), kernel, None, PADS, stride=2, tile=2
  )
  assert y.shape == (0, 4, 3, 5)


@pytest.mark.parametrize('chunk', [1, 2, 8])
def test_chunks_do_not_change_the_result(chunk):
  """Seven images whole, one by one, and with a padded last chunk; 1e-5."""
  x_key, kernel_key = jax.random.split(jax.random.key(0))
  x = jax.random.normal(x_key, (7, 6, 6, 4))
  kernel = jax.random.normal(kernel_key, (3, 3, 4, 5))
  bias = jnp.arange(5.0)

  def run(convolve):
    y, transpose = jax.vjp(convolve, x, kernel, bias)
    return y, *transpose(jnp.cos(y))

  got = jax.jit(
    lambda: run(
      lambda x, k, b: winograd.winograd_conv(
        x, k, b, PADS, stride=1, tile=2, chunk=chunk
      )
    )
  )()
  want = jax.jit(
    lambda: run(
      lambda x, k, b: (
        lax.conv_general_dilated(
          x, k, (1, 1), PADS, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )
        + b[None, None, None]
      )
    )
  )()
  for a, b in zip(got, want, strict=True):
    assert jnp.abs(a - b).max() < 1e-5 * jnp.abs(b).max()
