"""Picture files: decoding, encoding and what is refused."""

import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image

# A face data set has no use for more; a hostile header claims far more.
MAX_PIXELS = 1 << 25
# Formats that are stored as they came; others are stored anew, as PNG.
STORED_FORMATS = ('PNG', 'JPEG')
_FORMATS = (*STORED_FORMATS, 'BMP', 'TIFF', 'WEBP', 'PPM')
# What Pillow calls a JPEG that carries others, such as the depth or brightness
# that a telephone adds; other programs show the first, which is the picture.
_WITH_OTHERS = 'MPO'
# What stands a picture upright, by the orientation that its camera noted (Exif
# 2.32, tag 274).
_ORIENTATION = 274
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


def _chunk(kind: bytes, content: bytes) -> bytes:
  checksum = zlib.crc32(kind + content)
  return (
    struct.pack('>I', len(content))
    + kind
    + content
    + struct.pack('>I', checksum)
  )


def encode_png(image: np.ndarray) -> bytes:
  """PNG file of a uint8 (H, W, C) array, C 1 or 3.

  Five times faster than Pillow, which tries every filter on every row; here
  all rows take the filter Sub (PNG, third edition, section 9.2).
  """
  height, width, channels = image.shape
  flat = np.ascontiguousarray(image).reshape(height, width * channels)
  rows = np.empty((height, 1 + flat.shape[1]), np.uint8)
  rows[:, 0] = 1
  rows[:, 1 : 1 + channels] = flat[:, :channels]
  # Differences wrap around modulo 256, as the filter does.
  np.subtract(
    flat[:, channels:], flat[:, :-channels], out=rows[:, 1 + channels :]
  )
  colour = {1: 0, 3: 2}[channels]
  header = struct.pack('>IIBBBBB', width, height, 8, colour, 0, 0, 0)
  return (
    b'\x89PNG\r\n\x1a\n'
    + _chunk(b'IHDR', header)
    + _chunk(b'IDAT', zlib.compress(rows.tobytes(), 1))
    + _chunk(b'IEND', b'')
  )


def decode(encoded: bytes) -> np.ndarray:
  """uint8 (H, W, C) of a picture file as stored; C is 1 for grey, else 3.

  Raises:
    ValueError: not a picture, damaged, of absurd size, animated, or one that
      can be seen through: what lies behind it, no file says.
  """
  return decode_with_format(encoded)[0]


def decode_upright(encoded: bytes) -> tuple[np.ndarray, str]:
  """As `decode_with_format`, turned as the camera says it was held.

  The format is '' where that turned it.
  """
  array, form = decode_with_format(encoded)
  with warnings.catch_warnings(), contextlib.suppress(Exception):
    # Metadata may be damaged in any way, and turn nothing then.
    warnings.simplefilter('ignore')
    file = Image.open(io.BytesIO(encoded), formats=(form,))
    if _ORIENTATION in file.getexif():
      file.load()  # which turns a TIFF itself, and forgets that
    turn = _TURNS.get(file.getexif().get(_ORIENTATION, 1))
    if turn is not None:
      grey = array.shape[-1] == 1
      image = Image.fromarray(array[..., 0] if grey else array)
      array, form = np.asarray(image.transpose(turn)), ''
  return (array[..., None] if array.ndim == 2 else array), form


def decode_with_format(encoded: bytes) -> tuple[np.ndarray, str]:
  """As `decode`, with the format's name, e.g. 'JPEG'."""
  if not encoded:
    raise ValueError('an empty file')
  try:
    with warnings.catch_warnings():
      # Pillow warns of absurd sizes and odd metadata; the size is ours to
      # judge, before anything is decoded.
      warnings.simplefilter('ignore')
      image = Image.open(io.BytesIO(encoded), formats=_FORMATS)
      width, height = image.size
      if width * height > MAX_PIXELS:
        raise Image.DecompressionBombError
      if getattr(image, 'n_frames', 1) > 1 and image.format != _WITH_OTHERS:
        raise ValueError('several pictures in one file')
      if image.mode.startswith(('I', 'F')):
        raise ValueError(f'{image.mode} pixels; 8 bits a channel expected')
      if image.has_transparency_data and np.any(
        np.asarray(image.convert('RGBA'))[..., 3] < 255
      ):
        raise ValueError(
          'transparent pixels, which show what lies behind; put the picture '
          'on a background first, as Image.alpha_composite of Pillow does'
        )
      if image.mode not in ('L', 'RGB'):
        image = image.convert('L' if image.mode in ('1', 'LA') else 'RGB')
      array = np.asarray(image)
  except Image.DecompressionBombError:
    raise ValueError(
      f'a picture of absurd size (over {MAX_PIXELS:,} pixels)'
    ) from None
  except Image.UnidentifiedImageError:
    raise ValueError('not a picture file') from None
  except ValueError:
    raise
  # Decoders raise OSError, SyntaxError, struct.error and others by format.
  except Exception as error:
    raise ValueError(f'a damaged picture file ({error})') from None
  form = image.format or ''
  form = 'JPEG' if form == _WITH_OTHERS else form
  return (array[..., None] if array.ndim == 2 else array), form


def to_grey(image: np.ndarray) -> np.ndarray:
  """uint8 (H, W, 1) luma (ITU-R BT.601) of an RGB picture (H, W, 3)."""
  return np.asarray(Image.fromarray(image).convert('L'))[..., None]
