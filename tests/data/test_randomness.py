"""Streams and shuffles, against what they promise."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax.data import randomness

KEY = jax.random.key(3)


def _bits(key):
  return tuple(np.asarray(jax.random.key_data(key)))


def test_streams_and_numbers_give_different_keys():
  streams = [
    randomness.INIT,
    randomness.SHUFFLE,
    randomness.AUGMENT,
    randomness.DROPOUT,
  ]
  keys = {
    _bits(randomness.stream_key(KEY, s, n)) for s in streams for n in range(5)
  }
  assert len(keys) == 20


def test_stream_key_is_fold_in_of_fold_in():
  expected = jax.random.fold_in(jax.random.fold_in(KEY, 2), 7)
  assert _bits(randomness.stream_key(KEY, 2, 7)) == _bits(expected)


@pytest.mark.parametrize('count', [1, 7, 10])
def test_order_is_a_permutation_with_padding_last(count):
  order = np.asarray(randomness.epoch_order(KEY, 0, count, 10))
  assert order.dtype == np.int32
  assert sorted(order) == list(range(10))
  assert set(order[:count]) == set(range(count))
  np.testing.assert_array_equal(order[count:], np.arange(count, 10))


def test_order_does_not_depend_on_the_padding():
  # jax.random.permutation fails this from 1,700 on.
  count = 2000
  short = randomness.epoch_order(KEY, 4, count, count)
  long = randomness.epoch_order(KEY, 4, count, count + 777)
  np.testing.assert_array_equal(short, long[:count])


def test_epochs_and_keys_differ_and_repeat():
  draw = functools.partial(randomness.epoch_order, count=100, padded=100)
  first = np.asarray(draw(KEY, 0))
  np.testing.assert_array_equal(first, draw(KEY, 0))
  assert not np.array_equal(first, draw(KEY, 1))
  assert not np.array_equal(first, draw(jax.random.key(4), 0))


def test_traced_epoch_and_count_under_vmap():
  orders = jax.jit(
    jax.vmap(lambda e, c: randomness.epoch_order(KEY, e, c, 12))
  )(jnp.asarray([0, 5]), jnp.asarray([12, 9]))
  for row, (epoch, count) in zip(orders, [(0, 12), (5, 9)], strict=True):
    expected = randomness.epoch_order(KEY, epoch, count, 12)
    np.testing.assert_array_equal(row, expected)


def test_every_position_comes_first_equally_often():
  draws = jax.vmap(lambda e: randomness.epoch_order(KEY, e, 5, 5)[0])(
    jnp.arange(5000)
  )
  counts = np.bincount(np.asarray(draws), minlength=5)
  # Standard deviation 28; 5 of them.
  np.testing.assert_allclose(counts, 1000, atol=141)
