"""Pictures: our PNG against Pillow's reader, and what is refused."""

import io
import zlib

import numpy as np
import pytest
from PIL import Image

from fer_jax.datasets import pictures


@pytest.mark.parametrize(
  'shape', [(48, 48, 1), (5, 7, 3), (1, 1, 1), (3, 1, 3)]
)
def test_png_is_exact_by_pillow(shape):
  image = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
  encoded = pictures.encode_png(image)
  with Image.open(io.BytesIO(encoded)) as opened:
    opened.load()
    assert opened.format == 'PNG'
    np.testing.assert_array_equal(
      np.asarray(opened), image.squeeze(-1) if shape[-1] == 1 else image
    )
  np.testing.assert_array_equal(pictures.decode(encoded), image)


@pytest.mark.parametrize(
  ('mode', 'channels'),
  [('L', 1), ('RGB', 3), ('1', 1), ('LA', 1), ('P', 3), ('RGBA', 3)],
)
def test_modes_become_grey_or_colour(mode, channels):
  buffer = io.BytesIO()
  Image.new(mode, (6, 4), 'white').save(buffer, 'PNG')
  image = pictures.decode(buffer.getvalue())
  assert image.shape == (4, 6, channels)
  assert image.dtype == np.uint8


def _see_through(mode: str) -> Image.Image:
  """Opaque but for its first row."""
  alpha = Image.new('L', (6, 4), 255)
  alpha.paste(128, (0, 0, 6, 1))
  image = Image.new('RGBA', (6, 4), (200, 10, 10))
  image.putalpha(alpha)
  return image.quantize(4) if mode == 'P' else image.convert(mode)


@pytest.mark.parametrize(
  ('form', 'mode'),
  [('PNG', 'LA'), ('PNG', 'RGBA'), ('PNG', 'P'), ('WEBP', 'RGBA')],
)
def test_what_can_be_seen_through_is_refused(form, mode):
  buffer = io.BytesIO()
  _see_through(mode).save(buffer, form)
  with pytest.raises(ValueError, match='transparent pixels'):
    pictures.decode(buffer.getvalue())


@pytest.mark.parametrize(
  ('mode', 'colour', 'clear'), [('L', 7, 7), ('RGB', (1, 2, 3), (1, 2, 3))]
)
def test_a_colour_that_stands_for_none_is_refused_where_it_is_used(
  mode, colour, clear
):
  used, unused = io.BytesIO(), io.BytesIO()
  Image.new(mode, (6, 4), colour).save(used, 'PNG', transparency=clear)
  with pytest.raises(ValueError, match='transparent pixels'):
    pictures.decode(used.getvalue())
  Image.new(mode, (6, 4), 'white').save(unused, 'PNG', transparency=clear)
  assert (pictures.decode(unused.getvalue()) == 255).all()


def test_what_a_telephone_adds_to_its_picture_is_passed_over():
  noise = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3))
  shown, added = (Image.fromarray(n.astype(np.uint8)) for n in noise)
  exif = Image.Exif()
  exif[274] = 6  # held so that what is up lies to the right
  alone, both = io.BytesIO(), io.BytesIO()
  shown.save(alone, 'JPEG')
  shown.save(both, 'MPO', save_all=True, append_images=[added], exif=exif)
  expected = pictures.decode(alone.getvalue())
  image, form = pictures.decode_with_format(both.getvalue())
  assert form == 'JPEG'
  np.testing.assert_array_equal(image, expected)
  turned, _ = pictures.decode_upright(both.getvalue())
  np.testing.assert_array_equal(turned, np.rot90(expected, -1))


def test_a_claimed_size_is_refused_before_decoding():
  encoded = bytearray(pictures.encode_png(np.zeros((2, 2, 1), np.uint8)))
  for side in (40_000, 60_000):
    encoded[16:24] = side.to_bytes(4, 'big') * 2
    # A header with its own valid checksum, as a hostile file would have.
    encoded[29:33] = zlib.crc32(bytes(encoded[12:29])).to_bytes(4, 'big')
    with pytest.raises(ValueError, match='absurd size'):
      pictures.decode(bytes(encoded))


def test_what_is_no_picture():
  whole = io.BytesIO()
  noise = np.random.default_rng(0).integers(0, 256, (48, 48)).astype(np.uint8)
  Image.fromarray(noise).save(whole, 'JPEG')
  with pytest.raises(ValueError, match='damaged picture'):
    pictures.decode(whole.getvalue()[:900])
  with pytest.raises(ValueError, match='not a picture'):
    pictures.decode(b'hello, world')
  with pytest.raises(ValueError, match='empty file'):
    pictures.decode(b'')
  pages = io.BytesIO()
  page = Image.fromarray(noise)
  page.save(pages, 'TIFF', save_all=True, append_images=[page])
  with pytest.raises(ValueError, match='several pictures in one file'):
    pictures.decode(pages.getvalue())
