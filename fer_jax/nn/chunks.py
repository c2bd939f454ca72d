"""Images worked on in chunks that stay in a CPU's cache.

What a convolution makes on its way (tiles, padded images, products) is several
times as large as its images. Made for a few of them at a time, in a loop, it is
still in the cache when it is read.

A device that has several cores wants larger chunks, to divide among them, than
one of a single core with its own cache.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_BYTES = 8 * 2**20
_BYTES_OF_CORE = 2**20


def cache_bytes() -> int:
  """How large what a chunk makes should be, where it is traced for."""
  if hasattr(os, 'sched_getaffinity'):
    cores = len(os.sched_getaffinity(0))
  else:
    cores = os.cpu_count() or 1
  # Devices beside those of the mesh do nothing meanwhile.
  mesh = jax.sharding.get_abstract_mesh()
  devices = 1 if mesh.empty else mesh.size // jax.process_count()
  return _BYTES_OF_CORE if devices >= cores else _BYTES


def size(wanted: int, image_bytes: int) -> int:
  """Images of a chunk of about `wanted` bytes.

  A power of two, which divides most batches without a padded last chunk.
  """
  return 2 ** max(0, int(math.log2(wanted / max(1, image_bytes))))


def split(x: jax.Array, chunk: int) -> tuple[jax.Array, Any]:
  """Images as chunks of even size, zeros at the end.

  Args:
    x: (B, ...).
    chunk: images of one at most.

  Returns:
    (chunks, images, ...), and B for `join`. One chunk where B is open, as
    `jax.export` can leave it, or 0.
  """
  count = x.shape[0]
  if not isinstance(count, int) or not count:
    return x[None], count
  chunks = -(-count // chunk)
  images = -(-count // chunks)
  more = chunks * images - count
  if more:
    x = jnp.pad(x, ((0, more), *[(0, 0)] * (x.ndim - 1)))
  return x.reshape(chunks, images, *x.shape[1:]), count


def join(chunks: jax.Array, count: Any) -> jax.Array:
  """What `split` was given."""
  return chunks.reshape(-1, *chunks.shape[2:])[:count]


def scan(
  function: Callable[[Any, Any], tuple[Any, Any]], carry: Any, chunks: Any
) -> tuple[Any, Any]:
  """`lax.scan` over chunks, without a loop for one.

  Chunks of one image lie in the loop without the axis of images: XLA may order
  an axis of one otherwise than its neighbour, and copies whole maps to do so.
  """
  first = jax.tree.leaves(chunks)[0]
  if first.shape[0] == 1:
    carry, y = function(carry, jax.tree.map(lambda c: c[0], chunks))
    return carry, jax.tree.map(lambda c: c[None], y)
  if first.shape[1] > 1:
    return lax.scan(function, carry, chunks)

  def image(carry, chunk):
    carry, y = function(carry, jax.tree.map(lambda c: c[None], chunk))
    return carry, jax.tree.map(lambda c: c[0], y)

  carry, y = lax.scan(image, carry, jax.tree.map(lambda c: c[:, 0], chunks))
  return carry, jax.tree.map(lambda c: c[:, None], y)
