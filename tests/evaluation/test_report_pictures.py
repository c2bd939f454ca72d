"""Pictures of examples: where pixels and tints land."""

import io

import numpy as np
import pytest
from PIL import Image

from fer_jax.evaluation import pictures


def test_enlarging_repeats_pixels():
  image = np.arange(48 * 48, dtype=np.uint32).astype(np.uint8)
  image = image.reshape(48, 48, 1)
  big = pictures.rgb(image)
  assert big.shape == (144, 144, 3)
  np.testing.assert_array_equal(big[1::3, 1::3, 2], image[..., 0])


def test_attention_lies_where_the_token_is():
  weights = np.zeros(9, np.float32)
  weights[5] = 1.0  # Row 1, column 2 of a 3 x 3 grid.
  face = np.full((48, 48, 1), 100, np.uint8)
  picture = pictures.attention_on_image(face, weights, (3, 3))
  assert picture.shape == (144, 2 * 144 + 4, 3)
  np.testing.assert_array_equal(picture[:, :144], 100)
  tint = picture[:, 148:].astype(int).sum(-1)
  row, column = np.unravel_index(tint.argmax(), tint.shape)
  assert 48 <= row < 96
  assert column >= 96
  # The other side of the face has no attention at all: one even, dark tint.
  assert np.ptp(tint[:, :40]) == 0


def test_weights_that_do_not_fill_the_grid_are_refused():
  with pytest.raises(ValueError, match='4 attention weights'):
    pictures.attention_on_image(
      np.zeros((8, 8, 1), np.uint8), np.ones(4), (3, 3)
    )


def test_a_clip_shows_the_frames_that_count():
  clip = np.zeros((4, 48, 48, 1), np.uint8)
  clip[2] = 200
  mask = np.array([True, True, True, False])
  strip = pictures.attention_on_frames(
    clip, np.array([0.1, 0.2, 0.7, 0.0]), mask
  )
  assert strip.shape == (144 + 48, 3 * 144 + 2 * 2, 3)
  bars = strip[144:, 72 :: 144 + 2].astype(int)
  # A bar is the taller the larger the weight; white is no bar.
  heights = (bars.sum(-1) < 765).sum(axis=0)
  assert heights[0] < heights[1] < heights[2]
  np.testing.assert_array_equal(pictures.last_frame(clip, mask), clip[2])


def test_png_is_lossless():
  image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
  decoded = np.asarray(Image.open(io.BytesIO(pictures.png(image))))
  np.testing.assert_array_equal(decoded, image)
