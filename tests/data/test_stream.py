"""Streamed batches against those of the resident set."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import datasets
from fer_jax.data import randomness, resident, stream
from fer_jax.errors import UserError

KEY = jax.random.key(11)


def _images(count):
  shape = (count, 10, 10, 1)
  return np.random.default_rng(4).integers(0, 256, shape, np.uint8)


def _assert_same(got, expected):
  assert got.keys() == expected.keys()
  for name in expected:
    assert got[name].dtype == expected[name].dtype, name
    np.testing.assert_array_equal(got[name], expected[name])


@pytest.mark.parametrize('clips', [False, True])
def test_batches_are_those_of_the_resident_set(memory_set, clips):
  if clips:
    count = [1, 3, 2, 3, 1, 2, 5, 3, 1, 2, 3]  # row 6 is not in it
    data = memory_set([_images(t) for t in count], frame_count=count)
  else:
    data = memory_set(_images(11))
  index = np.array([10, 2, 3, 5, 7, 8, 0, 1, 4])
  size = {'image_size': (8, 8), 'channels': 3}
  held = resident.load_resident(data, index, **size)
  read = stream.Stream(data, index, batch_size=4, key=KEY, **size)
  assert read.steps_per_epoch == 3
  for epoch in (0, 1):
    order = randomness.epoch_order(KEY, epoch, 9, 12)
    batches = list(read.epoch(epoch))
    assert len(batches) == 3
    for n, batch in enumerate(batches):
      weight = (n * 4 + jnp.arange(4) < 9).astype(jnp.float32)
      positions = order[n * 4 : n * 4 + 4]
      _assert_same(batch, resident.gather(held, positions, weight))


def test_batches_follow_the_order_that_is_given(memory_set):
  data = memory_set(_images(11))
  index = np.array([10, 2, 3, 5, 7, 8, 0, 1, 4])
  size = {'image_size': (10, 10), 'channels': 1}
  order = functools.partial(
    randomness.balanced_order,
    labels=np.pad(data.table['label'][index], (0, 3)),
    num_classes=3,
  )
  held = resident.load_resident(data, index, **size)
  read = stream.Stream(data, index, batch_size=4, key=KEY, order=order, **size)
  positions = order(KEY, 1, 9, 12)
  weight = (jnp.arange(12) < 9).astype(jnp.float32)
  for n, batch in enumerate(read.epoch(1)):
    here = slice(n * 4, n * 4 + 4)
    _assert_same(batch, resident.gather(held, positions[here], weight[here]))


def test_each_host_reads_its_part_of_every_batch(memory_set):
  read_rows = []
  data = memory_set(_images(11))
  whole = stream.Stream(
    data, np.arange(11), batch_size=4, image_size=(10, 10), channels=1, key=KEY
  )

  class Watched(type(data)):
    def read(self, index):
      read_rows.extend(map(int, index))
      return super().read(index)

  watched = Watched(**vars(data))
  parts = [
    list(
      stream.Stream(
        watched,
        np.arange(11),
        batch_size=4,
        image_size=(10, 10),
        channels=1,
        key=KEY,
        threads=1,
        part=(part, 2),
      ).epoch(1)
    )
    for part in (0, 1)
  ]
  for batch, first, second in zip(whole.epoch(1), *parts, strict=True):
    _assert_same(
      {name: np.concatenate([first[name], second[name]]) for name in batch},
      batch,
    )
  # Three batches of four: every row once, and the padding.
  assert len(read_rows) == 12
  assert set(read_rows) == set(range(11))


def test_pictures_of_a_batch_are_read_one_after_the_other(memory_set):
  data = memory_set(_images(5))

  class OneByOne(type(data)):
    def read(self, index):
      raise AssertionError('large photographs would all be in memory')

    def each(self, index):
      return (self.images[row] for row in index)

  given = {'batch_size': 4, 'image_size': (10, 10), 'channels': 1}
  streams = (
    stream.Stream(one, np.arange(5), **given)
    for one in (data, OneByOne(**vars(data)))
  )
  for batch, same in zip(*(read.epoch(0) for read in streams), strict=True):
    _assert_same(same, batch)


def test_without_a_key_rows_keep_their_order(memory_set):
  images = _images(5)
  read = stream.Stream(
    memory_set(images),
    np.arange(5),
    batch_size=2,
    image_size=(10, 10),
    channels=1,
  )
  batches = list(read.epoch(0))
  got = np.concatenate([b['image'][b['weight'] > 0] for b in batches])
  np.testing.assert_array_equal(got, images)


def test_resumes_at_a_batch_and_from_grains_state(memory_set):
  data = memory_set(_images(20))
  read = stream.Stream(
    data,
    np.arange(20),
    batch_size=3,
    image_size=(10, 10),
    channels=1,
    key=KEY,
  )
  whole = list(read.epoch(2))
  for got, expected in zip(read.epoch(2, start=4), whole[4:], strict=True):
    _assert_same(got, expected)
  begun = read.epoch(2)
  list(itertools.islice(begun, 3))
  restored = read.epoch(2)
  restored.set_state(begun.get_state())
  for got, expected in zip(restored, whole[3:], strict=True):
    _assert_same(got, expected)


def test_no_rows_are_refused(memory_set):
  with pytest.raises(UserError, match='no rows'):
    stream.Stream(
      memory_set([]),
      np.arange(0),
      batch_size=2,
      image_size=(8, 8),
      channels=1,
    )


def test_workers_give_the_same_batches(tmp_path):
  # A set on disk, which worker processes open for themselves.
  data = datasets.load('synthetic_faces', data_dir=tmp_path, images=64)
  options = {
    'batch_size': 16,
    'image_size': (24, 24),
    'channels': 1,
    'key': KEY,
  }
  index = np.arange(len(data))
  alone = stream.Stream(data, index, **options)
  many = stream.Stream(data, index, workers=2, **options)
  data.read([0])  # Open, which must not travel to the workers.
  for got, expected in zip(many.epoch(0), alone.epoch(0), strict=True):
    _assert_same(got, expected)
