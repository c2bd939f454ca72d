"""A whole data set in device memory as uint8, and batches gathered from it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fer_jax.data import resize
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError

ALIGNMENT = 64
"""Bytes. A host array that begins at a multiple of it is read where it lies by
all CPU devices of a process; of another each makes a copy."""


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


def longest_clip(dataset: Dataset) -> int:
  """Frames of the longest clip of a whole set, 0 for stills.

  All lists of a set are padded to it: what dropout draws between recurrent
  layers depends on the number of steps, padding included.
  """
  counts = dataset.table.get('frame_count')
  return 0 if counts is None else int(counts.max())


def soft_targets(dataset: Dataset, index: np.ndarray) -> np.ndarray:
  """Label distributions float32 (N, K): one-hot, or shares of the votes."""
  num_classes = len(dataset.class_names)
  votes = dataset.table.get('votes')
  label = dataset.table['label'][index]
  if votes is not None and votes.shape[-1] == num_classes:
    counts = np.asarray(votes[index], np.float32)
    total = counts.sum(-1, keepdims=True)
    shares = counts / np.where(total > 0, total, 1.0)
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
    (N, T) for clips, T as `longest_clip`; 'label' int32 (N,); 'target'
    float32 (N, K).

  Raises:
    UserError: The arrays would exceed `limit_bytes`; says by how much.
  """
  index = np.asarray(index, np.int64)
  if not index.size:
    raise UserError(f'no rows of {dataset.name} to load')
  frames = longest_clip(dataset)
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
      f'the {limit_bytes / 2**20:,.0f} MiB allowed; choose a smaller '
      'data.image_size, or raise data.resident_gib'
    )
  resident = empty_images(len(index), image_size, channels, frames)
  fill_images(resident, dataset.each(index))
  return {
    **resident,
    'label': np.asarray(dataset.table['label'][index], np.int32),
    'target': soft_targets(dataset, index),
  }


def empty_images(
  count: int, image_size: tuple[int, int], channels: int, frames: int
) -> dict[str, np.ndarray]:
  """Zeroed 'image', and 'frame_mask' where `frames` is not 0."""
  still = (*image_size, channels)
  if not frames:
    return {'image': aligned_zeros((count, *still), np.uint8)}
  return {
    'image': aligned_zeros((count, frames, *still), np.uint8),
    'frame_mask': aligned_zeros((count, frames), bool),
  }


def aligned_zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """An array that JAX's CPU devices read in its place."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  room = np.zeros(size + ALIGNMENT, np.uint8)
  begin = -room.ctypes.data % ALIGNMENT
  return room[begin : begin + size].view(dtype).reshape(shape)


def fill_images(
  arrays: dict[str, np.ndarray], stored: Iterable[np.ndarray]
) -> None:
  """Fits images as stored into the arrays, from their first row on."""
  image = arrays['image']
  size, channels = image.shape[-3:-1], image.shape[-1]
  for n, one in enumerate(stored):
    fitted = resize.convert(one, size=size, channels=channels)
    if 'frame_mask' in arrays:
      image[n, : len(fitted)] = fitted
      arrays['frame_mask'][n, : len(fitted)] = True
    else:
      image[n] = fitted


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
