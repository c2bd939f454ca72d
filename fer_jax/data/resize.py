"""Stored images to the size and the number of channels a model asks for.

Done once on the host, in uint8, before anything is put on a device.
"""

import numpy as np
from PIL import Image

from fer_jax.errors import UserError


def convert(
  image: np.ndarray, *, size: tuple[int, int], channels: int
) -> np.ndarray:
  """One image or one clip in another size and colour.

  Args:
    image: uint8 (H, W, C) or (T, H, W, C), C 1 (grey) or 3 (RGB).
    size: (height, width) in pixels.
    channels: 1 or 3. Grey to RGB copies the channel; RGB to grey is the luma
      of ITU-R BT.601, 0.299 R + 0.587 G + 0.114 B, as Pillow rounds it.

  Returns:
    uint8 (h, w, channels) or (T, h, w, channels). Resizing is Pillow's
    bilinear filter, widened when shrinking so that nothing aliases. An image
    that already fits comes back as it is.

  Raises:
    UserError: `channels` or the image's own channels are neither 1 nor 3.
  """
  if image.dtype != np.uint8:
    raise TypeError(f'images are stored as uint8, not {image.dtype}')
  if channels not in (1, 3):
    raise UserError(f'channels is {channels}; expected 1 (grey) or 3 (RGB)')
  if image.shape[-1] not in (1, 3):
    raise UserError(
      f'an image of shape {image.shape} has {image.shape[-1]} channels; '
      'expected 1 (grey) or 3 (RGB)'
    )
  if image.ndim == 4:
    frames = [convert(f, size=size, channels=channels) for f in image]
    return np.stack(frames) if frames else np.zeros((0, *size, channels), 'u1')
  if image.shape == (*size, channels):
    return image
  return _convert_still(image, size, channels)


def _convert_still(
  image: np.ndarray, size: tuple[int, int], channels: int
) -> np.ndarray:
  grey = image.shape[-1] == 1
  picture = Image.fromarray(np.squeeze(image, -1) if grey else image)
  # To grey before resizing, to colour after it: one plane to resize.
  if channels == 1 and not grey:
    picture = picture.convert('L')
  if (picture.height, picture.width) != tuple(size):
    picture = picture.resize(
      (size[1], size[0]), resample=Image.Resampling.BILINEAR
    )
  if channels == 3 and grey:
    picture = picture.convert('RGB')
  return np.asarray(picture).reshape(*size, channels)
