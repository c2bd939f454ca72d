"""From pixels to the scale that a model takes."""

import jax
import jax.numpy as jnp

# A quarter of a grey level on the [0, 1] scale: what varies less than this
# is a constant image, and must not have its rounding blown up to noise.
_SMALLEST_DEVIATION = 0.25 / 255.0


def from_grey_levels(images: jax.Array) -> jax.Array:
  """Grey levels, 0 to 255, on the [0, 1] scale.

  Args:
    images: uint8 or float (...).

  Returns:
    Same shape, of JAX's default float: float32 unless JAX is set to 64 bits.
  """
  return images.astype(float) / 255.0


def per_image(images: jax.Array) -> jax.Array:
  """Zero mean and unit variance over the pixels and channels of each image.

  As P1 (deep residual BiLSTM fusion, 2025) prepares its images.

  Args:
    images: float (..., H, W, C) in [0, 1]; leading axes are images or frames.

  Returns:
    Same shape and dtype. A constant image becomes zeros (to rounding).
  """
  mean = jnp.mean(images, axis=(-3, -2, -1), keepdims=True)
  centred = images - mean
  variance = jnp.mean(jnp.square(centred), axis=(-3, -2, -1), keepdims=True)
  return centred / jnp.maximum(jnp.sqrt(variance), _SMALLEST_DEVIATION)


SCALES = {
  'standardised': per_image,
  'unit': lambda images: images,
  'raw': lambda images: images * 255.0,
}
"""By the name that a model's specification has for it, from [0, 1]."""
