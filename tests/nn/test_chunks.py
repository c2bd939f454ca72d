"""Images in chunks: their size, and the loop over them."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.nn import chunks


def test_cache_is_of_the_devices_at_work(monkeypatch):
  """Those of a program over a mesh, whatever others the process has."""
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 1}, raising=False)
  monkeypatch.setattr(jax, 'local_device_count', lambda: 2)
  of_a_core, of_both = 2**20, 2**23
  assert chunks.cache_bytes() == of_both
  for devices, expected in ((1, of_both), (2, of_a_core)):
    mesh = jax.sharding.AbstractMesh((1, devices), ('member', 'data'))
    with jax.sharding.use_abstract_mesh(mesh):
      assert chunks.cache_bytes() == expected


@pytest.mark.parametrize(
  ('wanted', 'image_bytes', 'images'),
  [(100, 25, 4), (100, 13, 4), (100, 12, 8), (100, 101, 1), (64, 0, 64)],
)
def test_sizes(wanted, image_bytes, images):
  assert chunks.size(wanted, image_bytes) == images


@pytest.mark.parametrize(
  ('count', 'chunk', 'shape'),
  [
    (8, 4, (2, 4)),
    (7, 4, (2, 4)),
    (5, 4, (2, 3)),  # evenly, rather than 4 and 1
    (3, 4, (1, 3)),
    (3, 1, (3, 1)),
    (0, 4, (1, 0)),
  ],
)
def test_every_image_goes_through_once(count, chunk, shape):
  x = np.arange(1, count * 6 + 1, dtype=np.float32).reshape(count, 2, 3)
  x_chunks, whole = chunks.split(jnp.asarray(x), chunk)
  assert x_chunks.shape == (*shape, 2, 3)

  def images(total, pair):
    a, b = pair
    return total + a.sum(), {'difference': a - 2 * b}

  total, y = chunks.scan(images, jnp.zeros(()), (x_chunks, x_chunks))
  assert total == x.sum()  # zeros are what is padded with
  np.testing.assert_array_equal(chunks.join(y['difference'], whole), -x)
