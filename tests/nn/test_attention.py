"""Additive attention against its equations in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fer_jax.nn import AdditiveAttention

B, T, D, A = 3, 5, 4, 6
MASK = np.arange(T)[None] < np.array([5, 2, 4])[:, None]


@pytest.fixture
def layer():
  made = AdditiveAttention(D, A, rngs=nnx.Rngs(0))
  made.hidden.bias[...] = jnp.linspace(-1, 1, A)
  return made


def sequence(seed=1):
  draw = np.random.default_rng(seed)
  return jnp.asarray(2 * draw.standard_normal((B, T, D)), jnp.float32)


def equations(layer, h, mask):
  """Eqs. 8-10 in float64, sequence by sequence, over the steps there are."""
  w, b, v = (
    np.asarray(p[...], np.float64)
    for p in (layer.hidden.kernel, layer.hidden.bias, layer.score.kernel)
  )
  weights = np.zeros(h.shape[:2])
  context = np.zeros((len(h), h.shape[-1]))
  for n in range(len(h)):
    steps = np.asarray(h[n], np.float64)[mask[n]]
    e = (np.tanh(steps @ w + b) @ v)[:, 0]
    alpha = np.exp(e) / np.exp(e).sum()
    weights[n, mask[n]] = alpha
    context[n] = alpha @ steps
  return context, weights


@pytest.mark.parametrize('masked', [False, True])
def test_attention_equals_its_equations(layer, masked):
  """Reference: numpy in float64; 1e-6."""
  h = sequence()
  mask = MASK if masked else np.ones((B, T), bool)
  context, weights = jax.jit(layer)(h, jnp.asarray(mask) if masked else None)
  expected_context, expected_weights = equations(layer, h, mask)
  np.testing.assert_allclose(weights, expected_weights, atol=1e-6)
  np.testing.assert_allclose(context, expected_context, atol=1e-6)
  np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)


def test_no_step_at_all_gives_zeros_and_finite_gradients(layer):
  h, mask = sequence(), jnp.zeros((B, T), bool)
  context, weights = layer(h, mask)
  assert not np.any(context)
  assert not np.any(weights)
  gradient = jax.grad(lambda h: layer(h, mask)[0].sum())(h)
  assert not np.any(gradient)


def test_masked_steps_have_no_gradient(layer):
  gradient = jax.grad(lambda h: jnp.sum(layer(h, jnp.asarray(MASK))[0] ** 2))(
    sequence()
  )
  assert not np.any(np.asarray(gradient)[~MASK])
  assert np.all(np.any(np.asarray(gradient)[MASK], -1))


@pytest.mark.parametrize('hidden', [np.nan, np.inf])
def test_what_a_mask_hides_may_be_no_number(layer, hidden):
  """Values and gradients are those of zeros in its place; exact."""
  graphdef, params = nnx.split(layer)

  def loss(params, h):
    context, weights = nnx.merge(graphdef, params)(h, jnp.asarray(MASK))
    return jnp.sum(context**2) + jnp.sum(weights**2)

  found, expected = (
    jax.value_and_grad(loss, (0, 1))(
      params, jnp.where(MASK[..., None], sequence(), value)
    )
    for value in (hidden, 0.0)
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_bfloat16_weighs_in_float32(layer):
  """Against float32: 0.02 on weights, 0.05 on contexts of size 2."""
  half = AdditiveAttention(D, A, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  half.hidden.bias[...] = layer.hidden.bias[...]
  h = sequence()
  context, weights = half(h.astype(jnp.bfloat16))
  assert context.dtype == jnp.bfloat16
  assert weights.dtype == jnp.float32
  np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
  exact_context, exact_weights = layer(h)
  np.testing.assert_allclose(weights, exact_weights, atol=0.02)
  np.testing.assert_allclose(
    np.asarray(context, np.float32), exact_context, atol=0.05
  )


def test_wrong_shapes_are_named(layer):
  with pytest.raises(ValueError, match=r'\(B, T, 4\), got \(3, 4\)'):
    layer(sequence()[:, 0])
  with pytest.raises(ValueError, match=r'must be \(3, 5\), got \(5, 3\)'):
    layer(sequence(), jnp.ones((T, B), bool))
