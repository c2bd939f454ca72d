"""Dropout: counts, scaling, traced rates, and no state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fer_jax.nn import Dropout

KEY = jax.random.key(0)


def test_without_a_key_nothing_happens():
  x = jnp.arange(6.0).reshape(2, 3)
  np.testing.assert_array_equal(Dropout(0.9)(x), x)
  np.testing.assert_array_equal(Dropout(0.9)(x, rate=0.5), x)


@pytest.mark.parametrize('rate', [0.0, 0.2, 0.5, 0.8])
def test_share_and_scale(rate):
  """Of 40,000 elements; the share within 5 standard deviations."""
  x = jnp.full((200, 200), 3.0)
  y = np.asarray(Dropout(rate)(x, key=KEY))
  deviation = np.sqrt(rate * (1 - rate) / x.size)
  assert abs(np.mean(y == 0) - rate) <= 5 * deviation
  np.testing.assert_allclose(y[y != 0], 3 / (1 - rate), rtol=1e-6)


def test_traced_rate_equals_static_one_and_shares_a_compilation():
  x = jax.random.normal(jax.random.key(1), (40, 50))
  layer = Dropout(0.1)
  traces = []

  @jax.jit
  def call(x, key, rate):
    traces.append(rate)
    return layer(x, key=key, rate=rate)

  for rate in (0.0, 0.3, 0.7):
    expected = Dropout(rate)(x, key=KEY)
    np.testing.assert_allclose(call(x, KEY, rate), expected, rtol=1e-6)
  assert len(traces) == 1
  np.testing.assert_array_equal(call(x, KEY, 0.0), x)


def test_traced_rate_under_vmap_and_gradient():
  x = jax.random.normal(jax.random.key(1), (3, 8))
  rates = jnp.array([0.0, 0.5])
  keys = jax.random.split(KEY, 2)
  y = jax.vmap(lambda k, r: Dropout(0.1)(x, key=k, rate=r))(keys, rates)
  np.testing.assert_array_equal(y[0], x)
  gradient = jax.grad(
    lambda x: Dropout(0.1)(x, key=keys[1], rate=rates[1]).sum()
  )(x)
  np.testing.assert_array_equal(gradient, np.where(y[1] == 0, 0.0, 2.0))


def test_dtype_stays_and_there_is_no_state():
  layer = Dropout(0.5)
  x = jnp.ones((4, 4), jnp.bfloat16)
  assert layer(x, key=KEY).dtype == jnp.bfloat16
  assert layer(x, key=KEY, rate=jnp.float32(0.5)).dtype == jnp.bfloat16
  assert not jax.tree.leaves(nnx.state(layer))


@pytest.mark.parametrize('rate', [-0.1, 1.0, 1.5])
def test_a_rate_out_of_range_is_refused(rate):
  with pytest.raises(ValueError, match=r'\[0, 1\)'):
    Dropout(rate)
