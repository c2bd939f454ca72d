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


def _balanced(labels):
  order = functools.partial(
    randomness.balanced_order, labels=labels, num_classes=5
  )
  return jax.jit(order, static_argnums=3)


# Three classes, and multiples of three: one draw used for both shows.
LABELS = np.repeat([0, 2, 3], [1, 6, 15])
BALANCED = _balanced(LABELS)


def test_balanced_draws_are_of_the_list_and_padding_comes_last():
  labels = np.pad(LABELS, (0, 4), constant_values=1)
  order = np.asarray(_balanced(labels)(KEY, 0, 22, 26))
  assert order.dtype == np.int32
  assert set(order[:22]) <= set(range(22))
  np.testing.assert_array_equal(order[22:], np.arange(22, 26))
  # Bits do not depend on the padding, nor on what its labels say.
  np.testing.assert_array_equal(order[:22], BALANCED(KEY, 0, 22, 22))


def test_balanced_draws_show_present_classes_and_their_rows_equally_often():
  draws = np.asarray(
    jax.vmap(lambda e: BALANCED(KEY, e, 22, 22))(jnp.arange(300))
  )
  counts = np.bincount(draws.ravel(), minlength=22)
  # 6,600 draws, 2,200 a class with a standard deviation of 38; 5 of them.
  by_class = np.bincount(LABELS, counts, minlength=5)
  np.testing.assert_allclose(by_class, [2200, 0, 2200, 2200, 0], atol=191)
  # 367 and 147 a row, with deviations of 19 and 12.
  np.testing.assert_allclose(counts[1:7], 2200 / 6, atol=95)
  np.testing.assert_allclose(counts[7:], 2200 / 15, atol=60)
  # Neighbours are drawn apart from each other: of 6,300 pairs a third are of
  # one class, with a deviation of 37.
  classes = LABELS[draws]
  same = (classes[:, 1:] == classes[:, :-1]).sum()
  np.testing.assert_allclose(same, 2100, atol=187)


def test_balanced_draws_repeat_and_differ_between_epochs_and_keys():
  first = np.asarray(BALANCED(KEY, 3, 22, 22))
  np.testing.assert_array_equal(first, BALANCED(KEY, 3, 22, 22))
  assert not np.array_equal(first, BALANCED(KEY, 4, 22, 22))
  assert not np.array_equal(first, BALANCED(jax.random.key(9), 3, 22, 22))


def test_balanced_members_of_a_population_draw_as_they_would_alone():
  labels = np.stack([LABELS, np.where(np.arange(22) < 7, 4, LABELS)])
  counts = jnp.asarray([22, 7])
  orders = jax.jit(
    jax.vmap(
      lambda count, labels: randomness.balanced_order(
        KEY, 2, count, 22, labels=labels, num_classes=5
      )
    )
  )(counts, jnp.asarray(labels))
  np.testing.assert_array_equal(orders[0], BALANCED(KEY, 2, 22, 22))
  alone = _balanced(np.full(7, 4))(KEY, 2, 7, 7)
  np.testing.assert_array_equal(orders[1][:7], alone)
  np.testing.assert_array_equal(orders[1][7:], np.arange(7, 22))


def test_every_position_comes_first_equally_often():
  draws = jax.vmap(lambda e: randomness.epoch_order(KEY, e, 5, 5)[0])(
    jnp.arange(5000)
  )
  counts = np.bincount(np.asarray(draws), minlength=5)
  # Standard deviation 28; 5 of them.
  np.testing.assert_allclose(counts, 1000, atol=141)
