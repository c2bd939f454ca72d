"""One key, several streams: what a run draws depends on names, not on history.

Every random number of a run comes from `stream_key(key, STREAM, n)`, where n
counts epochs (shuffling) or steps (augmentation, dropout). A resumed run
therefore draws exactly what the uninterrupted one would have drawn.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

INIT = 0
SHUFFLE = 1
AUGMENT = 2
DROPOUT = 3

Order = Callable[[jax.Array, int | jax.Array, int | jax.Array, int], jax.Array]
"""(key, epoch, count, padded) -> int32 (padded,), as `epoch_order`."""


def stream_key(
  key: jax.Array, stream: int, n: int | jax.Array = 0
) -> jax.Array:
  """Key of the n-th draw of one stream; `n` may be traced."""
  return jax.random.fold_in(jax.random.fold_in(key, stream), n)


def epoch_order(
  key: jax.Array,
  epoch: int | jax.Array,
  count: int | jax.Array,
  padded: int,
) -> jax.Array:
  """Order in which one epoch visits the positions of an id list.

  Argsort of random bits per position. The bits of position i depend on
  (key, epoch, i) alone, so members of a population whose lists are padded to
  one length visit their examples as they would by themselves, which
  `jax.random.permutation` does not grant: its draw depends on the length.

  Args:
    key: The run's key.
    epoch: Number of the epoch, may be traced.
    count: How many positions hold an example, may be traced.
    padded: Length of the result, static, at least `count`.

  Returns:
    int32 (padded,), a permutation of range(padded): the positions below
    `count` in random order, then the padding in rising order.
  """
  epoch_key = stream_key(key, SHUFFLE, epoch)
  position = jnp.arange(padded, dtype=jnp.int32)
  bits = jax.vmap(lambda i: jax.random.bits(jax.random.fold_in(epoch_key, i)))(
    position
  )
  padding = position >= count
  # A second sort key keeps all 32 random bits and padding last.
  *_, order = jax.lax.sort(
    (padding, jnp.where(padding, 0, bits), position), num_keys=2
  )
  return order


def balanced_order(
  key: jax.Array,
  epoch: int | jax.Array,
  count: int | jax.Array,
  padded: int,
  *,
  labels: jax.Array | np.ndarray,
  num_classes: int,
) -> jax.Array:
  """Draws of one epoch that show every class equally often on average.

  Each draw is a class, uniformly among those that occur, then a position of
  that class, uniformly with replacement. The bits of the i-th draw depend on
  (key, epoch, i) alone, as in `epoch_order`.

  Args:
    key: The run's key.
    epoch: Number of the epoch, may be traced.
    count: How many positions hold an example, and how many draws there are;
      may be traced.
    padded: Length of the result, static, at least `count`.
    labels: int (padded,), classes of the positions, anything on padding.
    num_classes: K, static.

  Returns:
    int32 (padded,): `count` draws of positions below `count`, then the
    padding in rising order.
  """
  epoch_key = stream_key(key, SHUFFLE, epoch)
  position = jnp.arange(padded, dtype=jnp.int32)
  padding = position >= count
  labels = jnp.where(padding, num_classes, labels)
  _, by_class = jax.lax.sort((labels, position), num_keys=1)
  counts = jnp.bincount(labels, length=num_classes)
  starts = jnp.cumsum(counts) - counts
  present_first = jnp.argsort(counts == 0, stable=True)
  present = jnp.sum(counts > 0)

  def draw(i):
    class_key, place_key = jax.random.split(jax.random.fold_in(epoch_key, i))
    k = present_first[jax.random.randint(class_key, (), 0, present)]
    place = jax.random.randint(place_key, (), 0, counts[k])
    return by_class[starts[k] + place]

  return jnp.where(padding, position, jax.vmap(draw)(position))
