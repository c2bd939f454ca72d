"""Batches read from disk while training, for sets that no memory holds.

The batches are those that the resident set gives, in the same order and with
the same padding; which of the two feeds a run changes none of its results.
Augmentation stays on the device. Of several hosts each reads its part of every
batch, and nothing else.

Grain reads ahead in threads or processes. Batch n of an epoch can be asked
for by its number, so a run resumes at (epoch, batch), with any number of
workers; Grain's own iterator state, which `epoch` also supports, cannot be
restored with another number of workers.
"""

import dataclasses
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from fer_jax.data import randomness, resident
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Batches:
  """Random access to the batches of one epoch, for Grain."""

  dataset: Dataset
  rows: np.ndarray
  weight: np.ndarray
  batch_size: int
  first: int
  part: int
  parts: int
  image_size: tuple[int, int]
  channels: int
  frames: int

  def __len__(self) -> int:
    return len(self.rows) // self.batch_size - self.first

  def __getitem__(self, index: Any) -> dict[str, np.ndarray]:
    size = self.batch_size // self.parts
    start = (int(index) + self.first) * self.batch_size + self.part * size
    here = slice(start, start + size)
    rows = self.rows[here]
    batch = resident.empty_images(
      len(rows), self.image_size, self.channels, self.frames
    )
    resident.fill_images(batch, self.dataset.each(rows))
    return {
      **batch,
      'target': resident.soft_targets(self.dataset, rows),
      'weight': self.weight[here],
    }


class Stream:
  """The rows of one list as batches, epoch by epoch."""

  def __init__(
    self,
    dataset: Dataset,
    index: np.ndarray,
    *,
    batch_size: int,
    image_size: tuple[int, int],
    channels: int,
    key: jax.Array | None = None,
    order: randomness.Order = randomness.epoch_order,
    workers: int = 0,
    threads: int = 2,
    ahead: int = 4,
    part: tuple[int, int] = (0, 1),
  ):
    """Reads nothing yet.

    Args:
      dataset: a built data set.
      index: int (N,), rows of its table.
      batch_size: examples a batch; the last one is padded with weight 0.
      image_size: (height, width) in pixels.
      channels: 1 or 3.
      key: of the run, whose shuffle stream orders each epoch; None keeps
        the order of `index`.
      order: of the positions of `index` in an epoch, drawn from that key.
      workers: processes that read and resize; 0 reads in this one.
      threads: reading threads in each process.
      ahead: batches read ahead in each process.
      part: which part of each batch is read, from 0, and of how many; they
        divide the batch size.
    """
    self._index = np.asarray(index, np.int64)
    if not len(self._index):
      raise UserError(f'no rows of {dataset.name} to stream')
    # A copy without what the data set has opened, so that workers open it.
    self._dataset = dataclasses.replace(dataset)
    self._batch_size = batch_size
    self._image_size = image_size
    self._channels = channels
    self._key = key
    self._order = order
    self._part, self._parts = part
    self._workers = workers
    self._read_options = grain.ReadOptions(
      num_threads=threads, prefetch_buffer_size=ahead
    )
    self.steps_per_epoch = -(-len(self._index) // batch_size)

  def epoch(self, epoch: int, start: int = 0) -> grain.DatasetIterator:
    """Batches of one epoch, from batch `start` on, or this host's part of each.

    Each is a dict of numpy arrays: 'image' uint8 (B, H, W, C), or (B, T, H,
    W, C) with 'frame_mask' bool (B, T); 'target' float32 (B, K); 'weight'
    float32 (B,).
    """
    count = len(self._index)
    padded = self.steps_per_epoch * self._batch_size
    position = np.arange(padded)
    if self._key is not None:
      position = np.asarray(self._order(self._key, epoch, count, padded))
    batches = _Batches(
      dataset=self._dataset,
      rows=self._index[np.minimum(position, count - 1)],
      weight=(np.arange(padded) < count).astype(np.float32),
      batch_size=self._batch_size,
      first=start,
      part=self._part,
      parts=self._parts,
      image_size=self._image_size,
      channels=self._channels,
      frames=resident.longest_clip(self._dataset),
    )
    read = grain.MapDataset.source(batches).to_iter_dataset(self._read_options)
    if self._workers:
      if not flags.FLAGS.is_parsed():
        # Grain reads flags of its own, which a library user never parsed.
        flags.FLAGS.mark_as_parsed()
      read = read.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self._workers)
      )
    return iter(read)
