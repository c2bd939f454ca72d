"""A whole data set in device memory as uint8, and batches gathered from it."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.data import resize
from fer_jax.data.randomness import epoch_order
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError

__all__ = ['epoch_order', 'gather', 'load_resident', 'resident_bytes']

# Decoding this many images at a time bounds the host memory beside the result.
_ROWS_A_READ = 1024


def resident_bytes(
  count: int,
  *,
  image_size: tuple[int, int],
  channels: int,
  num_classes: int,
  frames: int = 0,
) -> int:
  """Bytes that `count` examples take in memory; `frames` 0 means stills."""
  pixels = image_size[0] * image_size[1] * channels * max(frames, 1)
  return count * (pixels + frames + 4 * num_classes + 4)


def soft_targets(dataset: Dataset, index: np.ndarray) -> np.ndarray:
  """Label distributions float32 (N, K): one-hot, or shares of the votes."""
  num_classes = len(dataset.class_names)
  votes = dataset.table.get('votes')
  label = dataset.table['label'][index]
  if votes is not None and votes.shape[-1] == num_classes:
    counts = np.asarray(votes[index], np.float32)
    total = counts.sum(-1, keepdims=True)
    shares = counts / np.maximum(total, 1.0)
    # An image nobody voted on keeps its label.
    return np.where(total > 0, shares, _one_hot(label, num_classes))
  return _one_hot(label, num_classes)


def load_resident(
  dataset: Dataset,
  index: np.ndarray,
  *,
  image_size: tuple[int, int],
  channels: int,
  limit_bytes: int | None = None,
) -> dict[str, np.ndarray]:
  """Reads the rows of `index` into host arrays, ready for `jax.device_put`.

  Args:
    dataset: A built data set.
    index: int (N,), rows of its table; the result keeps their order.
    image_size: (height, width) in pixels; other sizes are resized.
    channels: 1 or 3.
    limit_bytes: Refuses before reading when the arrays would be larger.

  Returns:
    'image' uint8 (N, H, W, C), or (N, T, H, W, C) with 'frame_mask' bool
    (N, T) for clips, T the longest of them; 'label' int32 (N,); 'target'
    float32 (N, K).

  Raises:
    UserError: The arrays would exceed `limit_bytes`; says by how much.
  """
  index = np.asarray(index, np.int64)
  if not index.size:
    raise UserError(f'no rows of {dataset.name} to load')
  clips = dataset.read(index[:1])[0].ndim == 4
  frames = _longest_clip(dataset, index) if clips else 0
  num_classes = len(dataset.class_names)
  needed = resident_bytes(
    len(index),
    image_size=image_size,
    channels=channels,
    num_classes=num_classes,
    frames=frames,
  )
  if limit_bytes is not None and needed > limit_bytes:
    raise UserError(
      f'{len(index)} examples of {dataset.name} at {image_size[0]}x'
      f'{image_size[1]}x{channels} need {needed / 2**20:,.0f} MiB, more than '
      f'the {limit_bytes / 2**20:,.0f} MiB allowed; choose a smaller image '
      'size, raise the limit or stream the data'
    )
  one_image = (*image_size, channels)
  shape = (frames, *one_image) if clips else one_image
  image = np.zeros((len(index), *shape), np.uint8)
  resident = {
    'image': image,
    'label': np.asarray(dataset.table['label'][index], np.int32),
    'target': soft_targets(dataset, index),
  }
  if clips:
    resident['frame_mask'] = np.zeros((len(index), frames), bool)
  for start in range(0, len(index), _ROWS_A_READ):
    rows = dataset.read(index[start : start + _ROWS_A_READ])
    for n, stored in enumerate(rows, start):
      fitted = resize.convert(stored, size=image_size, channels=channels)
      if clips:
        image[n, : len(fitted)] = fitted
        resident['frame_mask'][n, : len(fitted)] = True
      else:
        image[n] = fitted
  return resident


def gather(
  resident: Mapping[str, Any], positions: jax.Array, weight: jax.Array
) -> dict[str, jax.Array]:
  """Assembles a batch on the device.

  Args:
    resident: What `load_resident` gave, on the device.
    positions: int (B,), places in the resident arrays. Those of padding may
      lie beyond the end: they are clipped, and weigh nothing.
    weight: float32 (B,), 0 on padding.

  Returns:
    The batch: 'image' uint8 (B, H, W, C) or (B, T, H, W, C) with
    'frame_mask' bool (B, T); 'target' float32 (B, K); 'weight'.
  """
  batch = {
    name: jnp.take(resident[name], positions, axis=0, mode='clip')
    for name in ('image', 'target', 'frame_mask')
    if name in resident
  }
  return {**batch, 'weight': weight}


def _one_hot(label: np.ndarray, num_classes: int) -> np.ndarray:
  return np.eye(num_classes, dtype=np.float32)[label]


def _longest_clip(dataset: Dataset, index: np.ndarray) -> int:
  if 'frames' in dataset.table:
    return int(dataset.table['frames'][index].max())
  return max(
    len(clip)
    for start in range(0, len(index), _ROWS_A_READ)
    for clip in dataset.read(index[start : start + _ROWS_A_READ])
  )
