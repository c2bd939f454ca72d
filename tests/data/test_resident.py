"""Resident arrays and batches, against the rows they come from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.data import resident
from fer_jax.errors import UserError


def _images(count, *shape):
  return np.random.default_rng(2).integers(0, 256, (count, *shape), np.uint8)


def test_rows_keep_the_order_of_the_index(memory_set):
  images = _images(9, 8, 8, 1)
  data = memory_set(images)
  index = np.array([7, 0, 4, 4])
  held = resident.load_resident(data, index, image_size=(8, 8), channels=1)
  np.testing.assert_array_equal(held['image'], images[index])
  np.testing.assert_array_equal(held['label'], index % 3)
  np.testing.assert_array_equal(held['target'], np.eye(3)[index % 3])
  assert held['image'].dtype == np.uint8
  assert held['label'].dtype == np.int32
  assert held['target'].dtype == np.float32


def test_images_of_many_sizes_are_fitted(memory_set):
  rng = np.random.default_rng(0)
  images = [
    rng.integers(0, 256, (s, s + 1, c), np.uint8)
    for s, c in [(8, 1), (20, 3), (5, 1)]
  ]
  held = resident.load_resident(
    memory_set(images), np.arange(3), image_size=(8, 6), channels=3
  )
  assert held['image'].shape == (3, 8, 6, 3)


def test_clips_are_padded_and_masked(memory_set):
  clips = [_images(t, 6, 6, 1) for t in (2, 5, 3)]
  data = memory_set(clips, frame_count=[2, 5, 3])
  held = resident.load_resident(
    data, np.array([0, 2]), image_size=(6, 6), channels=1
  )
  # As long as the longest of the whole set, not of these rows.
  assert held['image'].shape == (2, 5, 6, 6, 1)
  np.testing.assert_array_equal(
    held['frame_mask'], [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]
  )
  np.testing.assert_array_equal(held['image'][0, :2], clips[0])
  assert not held['image'][0, 2:].any()


def test_votes_become_shares(memory_set):
  votes = [[1, 3, 0], [0, 0, 0], [0, 0, 5], [0.25, 0.25, 0]]
  held = resident.load_resident(
    memory_set(_images(4, 8, 8, 1), votes=np.array(votes, np.float32)),
    np.arange(4),
    image_size=(8, 8),
    channels=1,
  )
  expected = [[0.25, 0.75, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.5, 0]]
  np.testing.assert_allclose(held['target'], expected)


def test_bytes_are_those_of_the_arrays(memory_set):
  held = resident.load_resident(
    memory_set([_images(4, 8, 8, 1)] * 5, frame_count=[4] * 5),
    np.arange(5),
    image_size=(8, 8),
    channels=3,
  )
  estimate = resident.resident_bytes(
    5, image_size=(8, 8), channels=3, num_classes=3, frames=4
  )
  assert sum(a.nbytes for a in held.values()) == estimate


def test_too_large_a_set_is_refused_before_reading(memory_set):
  data = memory_set(_images(100, 8, 8, 1))
  data.read = None
  with pytest.raises(UserError, match=r'100 examples .* need 1 MiB'):
    resident.load_resident(
      data, np.arange(100), image_size=(64, 64), channels=3, limit_bytes=1000
    )


def test_gather_takes_rows_and_clips_padding(memory_set):
  images = _images(5, 8, 8, 1)
  held = resident.load_resident(
    memory_set(images), np.arange(5), image_size=(8, 8), channels=1
  )
  positions = jnp.asarray([3, 0, 7])
  weight = jnp.asarray([1.0, 1.0, 0.0])
  batch = jax.jit(resident.gather)(jax.device_put(held), positions, weight)
  assert set(batch) == {'image', 'target', 'weight'}
  np.testing.assert_array_equal(batch['image'], images[[3, 0, 4]])
  np.testing.assert_array_equal(batch['target'], np.eye(3)[[0, 0, 1]])
  np.testing.assert_array_equal(batch['weight'], weight)
