"""Recurrent layers against Keras 3 on JAX, weights carried over as they are.

Kernel, recurrent kernel and bias of both have one layout and one order of
gates, so nothing is permuted. Keras gives the outputs of `go_backwards` in the
order of the steps taken, ours stay at the place of their inputs; where a mask
hides a step, Keras repeats the output before it, ours is 0.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

with warnings.catch_warnings():
  warnings.simplefilter('ignore')
  import keras

from fer_jax.nn import GRU, LSTM, Bidirectional

B, T, D, H = 3, 5, 4, 6
# Gaps and padding; Keras cannot be compared where a row is empty.
MASK = np.array([[1, 1, 0, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 1]], bool)
KINDS = ('lstm', 'gru', 'gru_reset_before')

pytestmark = pytest.mark.filterwarnings('ignore')


def theirs(kind, **options):
  """A built Keras layer whose weights, biases too, are random."""
  if kind == 'lstm':
    return keras.layers.LSTM(H, **options)
  return keras.layers.GRU(H, reset_after=kind == 'gru', **options)


def randomise(layer):
  draw = np.random.default_rng(0)
  with jax.numpy_rank_promotion('allow'):
    layer.build((B, T, D))
  layer.set_weights(
    [0.5 * draw.standard_normal(w.shape, np.float32) for w in layer.weights]
  )
  return layer


def ours(kind, weights, **options):
  """Our layer with Keras' weights."""
  if kind == 'lstm':
    layer = LSTM(D, H, rngs=nnx.Rngs(0), **options)
  else:
    layer = GRU(D, H, reset_after=kind == 'gru', rngs=nnx.Rngs(0), **options)
  for name, value in zip(
    ('kernel', 'recurrent_kernel', 'bias'), weights, strict=True
  ):
    parameter = getattr(layer, name)
    assert parameter.shape == value.shape
    parameter[...] = jnp.asarray(value)
  return layer


def compare(ours, theirs, layer, keras_layer, mask):
  """Outputs to 1e-4, gradients of input and all weights to 1e-3.

  Args:
    ours: maps layer and x (B, T, D) to outputs.
    theirs: maps Keras' outputs to what ours should be.
    layer, keras_layer: with the same weights in the same order.
    mask: for Keras' call.
  """
  x = jnp.asarray(
    np.random.default_rng(1).standard_normal((B, T, D), np.float32)
  )
  graphdef, params = nnx.split(layer)

  def our_loss(params, x):
    y = ours(nnx.merge(graphdef, params), x)
    return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

  def their_loss(weights, x):
    # A seed generator may stand among what is not trained.
    rest = [v.value for v in keras_layer.non_trainable_variables]
    y, _ = keras_layer.stateless_call(weights, rest, x, mask=mask)
    y = theirs(y)
    return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

  def differentiate(loss, *arguments):
    function = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    with jax.numpy_rank_promotion('allow'):
      return function(*arguments)

  (_, y), (slopes, dx) = differentiate(our_loss, params, x)
  weights = [v.value for v in keras_layer.trainable_variables]
  (_, expected), (expected_slopes, expected_dx) = differentiate(
    their_loss, weights, x
  )
  np.testing.assert_allclose(y, expected, atol=1e-4)
  np.testing.assert_allclose(dx, expected_dx, atol=1e-3)
  slopes = nnx.to_pure_dict(slopes)
  parts = [slopes[d] for d in ('forward', 'backward') if d in slopes]
  found = [
    part[name]
    for part in parts or [slopes]
    for name in ('kernel', 'recurrent_kernel', 'bias')
  ]
  for a, b in zip(found, expected_slopes, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-3)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('backend', ['scan', 'fused'])
def test_sequence(kind, backend):
  keras_layer = randomise(theirs(kind, return_sequences=True))
  layer = ours(kind, keras_layer.get_weights(), backend=backend)
  compare(lambda layer, x: layer(x)[0], lambda y: y, layer, keras_layer, None)


@pytest.mark.parametrize('kind', KINDS)
def test_masked_backwards_last(kind):
  """`go_backwards`, a mask, and the last hidden state alone."""
  keras_layer = randomise(theirs(kind, go_backwards=True))
  layer = ours(kind, keras_layer.get_weights())
  mask = jnp.asarray(MASK)
  # Keras' JAX back end turns the mask with the sequence.
  compare(
    lambda layer, x: layer.final_hidden(layer(x, mask, reverse=True)[1]),
    lambda y: y,
    layer,
    keras_layer,
    mask,
  )


@pytest.mark.parametrize('kind', ['lstm', 'gru'])
def test_backwards_sequence(kind):
  keras_layer = randomise(
    theirs(kind, go_backwards=True, return_sequences=True)
  )
  layer = ours(kind, keras_layer.get_weights())
  compare(
    lambda layer, x: layer(x, reverse=True)[0],
    lambda y: y[:, ::-1],
    layer,
    keras_layer,
    None,
  )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('masked', [False, True])
def test_bidirectional(kind, masked):
  keras_layer = randomise(
    keras.layers.Bidirectional(theirs(kind, return_sequences=True))
  )
  weights = keras_layer.get_weights()
  layer = Bidirectional(ours(kind, weights[:3]), ours(kind, weights[3:]))
  mask = jnp.asarray(MASK) if masked else None
  compare(
    lambda layer, x: layer(x, mask)[0],
    lambda y: jnp.where(mask[..., None], y, 0) if masked else y,
    layer,
    keras_layer,
    mask,
  )
