"""Pictures of single examples: a face, and where attention lies on it."""

import io

import matplotlib
import numpy as np
from PIL import Image

SIDE = 144
"""Least side in pixels at which a face is drawn, before the page scales it."""

COLOURMAP = 'viridis'


def rgb(image: np.ndarray) -> np.ndarray:
  """uint8 (h, w, 3) of a stored image (h, w, 1) or (h, w, 3), enlarged.

  Enlarged by a whole number without smoothing, so that what the model saw is
  what is shown.
  """
  image = np.broadcast_to(image, (*image.shape[:2], 3))
  factor = max(1, -(-SIDE // max(image.shape[:2])))
  return image.repeat(factor, axis=0).repeat(factor, axis=1)


def last_frame(clip: np.ndarray, frame_mask: np.ndarray | None) -> np.ndarray:
  """(h, w, c): the last frame that counts of a clip (T, h, w, c)."""
  if frame_mask is None or not frame_mask.any():
    return clip[-1]
  return clip[int(np.flatnonzero(frame_mask)[-1])]


def still(image: np.ndarray, frame_mask: np.ndarray | None) -> np.ndarray:
  """uint8 (h, w, 3) standing for an image or a clip."""
  return rgb(image if image.ndim == 3 else last_frame(image, frame_mask))


def attention_on_image(
  image: np.ndarray, weights: np.ndarray, token_grid: tuple[int, int]
) -> np.ndarray:
  """The face beside itself under its attention.

  Args:
    image: uint8 (h, w, c).
    weights: (T,) attention, T = rows * columns.
    token_grid: (rows, columns), tokens in reading order.

  Returns:
    uint8 (H, 2 W + gap, 3). The right half is tinted from dark (no attention)
    to bright (this image's largest weight), smoothed between tokens.

  Raises:
    ValueError: the weights do not fill the grid.
  """
  rows, columns = token_grid
  if weights.size != rows * columns:
    raise ValueError(
      f'{weights.size} attention weights do not fill a grid of {rows} x '
      f'{columns} tokens'
    )
  face = rgb(image)
  height, width = face.shape[:2]
  tokens = Image.fromarray(
    np.asarray(weights, np.float32).reshape(rows, columns)
  )
  smooth = np.asarray(
    tokens.resize((width, height), Image.Resampling.BILINEAR), np.float32
  )
  tint = _colours(smooth / max(float(weights.max()), 1e-12))
  grey = face.astype(np.float32).mean(axis=-1, keepdims=True)
  tinted = (0.45 * grey + 0.55 * tint).astype(np.uint8)
  gap = np.full((height, 4, 3), 255, np.uint8)
  return np.concatenate([face, gap, tinted], axis=1)


def attention_on_frames(
  clip: np.ndarray, weights: np.ndarray, frame_mask: np.ndarray | None
) -> np.ndarray:
  """A clip's frames in a strip over bars of their attention.

  Args:
    clip: uint8 (T, h, w, c).
    weights: (T,) attention.
    frame_mask: (T,) bool; frames that do not count are left out.

  Returns:
    uint8 (H, W, 3).
  """
  kept = np.arange(len(clip))
  if frame_mask is not None and frame_mask.any():
    kept = np.flatnonzero(frame_mask)
  frames = [rgb(clip[t]) for t in kept]
  height, width = frames[0].shape[:2]
  bar_height = height // 3
  top = max(float(weights[kept].max()), 1e-12)
  cells = []
  for t, frame in zip(kept, frames, strict=True):
    share = float(weights[t]) / top
    bar = np.full((bar_height, width, 3), 255, np.uint8)
    filled = round(share * (bar_height - 4))
    if filled:
      bar[bar_height - filled :, width // 8 : -(width // 8)] = _colours(
        np.array([[share]])
      )[0, 0]
    cell = np.concatenate([frame, bar])
    cells += [cell, np.full((len(cell), 2, 3), 255, np.uint8)]
  return np.concatenate(cells[:-1], axis=1)


def png(image: np.ndarray) -> bytes:
  """PNG of a uint8 (h, w, 3) image."""
  buffer = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(image)).save(
    buffer, format='PNG', optimize=True
  )
  return buffer.getvalue()


def _colours(shares: np.ndarray) -> np.ndarray:
  """float32 (..., 3) in [0, 255] of shares in [0, 1]."""
  colours = matplotlib.colormaps[COLOURMAP](np.clip(shares, 0, 1))
  return 255 * np.asarray(colours, np.float32)[..., :3]
