"""Conversion against Pillow and against the luma written out."""

import numpy as np
import pytest
from PIL import Image

from fer_jax.data import resize
from fer_jax.errors import UserError


def _random(*shape):
  return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def test_image_that_fits_is_returned_as_it_is():
  image = _random(12, 10, 1)
  assert resize.convert(image, size=(12, 10), channels=1) is image


@pytest.mark.parametrize('size', [(24, 20), (96, 64)])
def test_resizing_is_pillows_bilinear_filter(size):
  image = _random(48, 40, 3)
  expected = Image.fromarray(image).resize(
    (size[1], size[0]), Image.Resampling.BILINEAR
  )
  result = resize.convert(image, size=size, channels=3)
  np.testing.assert_array_equal(result, np.asarray(expected))


def test_shrinking_does_not_alias():
  stripes = np.zeros((48, 48, 1), np.uint8)
  stripes[:, ::2] = 255
  result = resize.convert(stripes, size=(12, 12), channels=1)
  # Point sampling would give 0 or 255.
  assert abs(result.astype(int) - 128).max() < 20


def test_grey_to_colour_copies_the_channel():
  image = _random(6, 5, 1)
  result = resize.convert(image, size=(6, 5), channels=3)
  np.testing.assert_array_equal(result, np.repeat(image, 3, -1))


def test_colour_to_grey_is_the_luma_of_bt_601():
  image = _random(6, 5, 3)
  expected = image @ np.array([0.299, 0.587, 0.114])
  result = resize.convert(image, size=(6, 5), channels=1)
  assert result.shape == (6, 5, 1)
  np.testing.assert_allclose(result[..., 0], expected, atol=0.51)


def test_clip_is_converted_frame_by_frame():
  clip = _random(3, 12, 12, 3)
  result = resize.convert(clip, size=(6, 8), channels=1)
  assert result.shape == (3, 6, 8, 1)
  for frame, expected in zip(result, clip, strict=True):
    np.testing.assert_array_equal(
      frame, resize.convert(expected, size=(6, 8), channels=1)
    )


def test_channels_other_than_one_or_three_are_refused():
  with pytest.raises(UserError, match='channels is 2'):
    resize.convert(_random(4, 4, 1), size=(4, 4), channels=2)
  with pytest.raises(UserError, match='has 4 channels'):
    resize.convert(_random(4, 4, 4), size=(4, 4), channels=3)
