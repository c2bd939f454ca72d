"""Convolution, normalisation and pooling against Keras' layers.

LSTM and GRU have a file of their own.
"""

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx

from fer_jax.nn import BatchNorm, Conv, avg_pool, max_pool


def normal(seed, *shape):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32)


def close(found, expected, tolerance):
  """To `tolerance` of the largest element, or of 1 where that is more."""
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max())
    ),
    found,
    expected,
  )


def with_gradients(function, *inputs):
  """The value and the gradients of a fixed weighing of it."""

  def run(*inputs):
    with jax.numpy_rank_promotion('allow'):
      y, transpose = jax.vjp(function, *inputs)
      return y, transpose(jnp.cos(jnp.arange(y.size)).reshape(y.shape))

  return jax.jit(run)(*inputs)


@pytest.mark.parametrize(
  ('channels', 'kernel_size', 'strides', 'padding'),
  [
    # Two Winograd forms, then patches: strided, unpadded, projections, stems.
    ((8, 16), 3, 1, 'same'),
    ((8, 16), 3, 2, 'same'),
    ((3, 4), 3, 2, 'valid'),
    ((5, 4), 1, 2, 'same'),
    ((3, 4), 7, 2, 'valid'),
    ((1, 4), (5, 3), (1, 2), 'same'),
  ],
)
def test_convolution(channels, kernel_size, strides, padding):
  """Reference: keras.layers.Conv2D, odd and even sizes; 1e-5."""
  c, o = channels
  layer = keras.layers.Conv2D(
    o, kernel_size, strides, padding, kernel_initializer='zeros'
  )
  layer.build((None, 11, 8, c))

  def build():
    return Conv(
      c,
      o,
      kernel_size,
      strides=strides,
      padding=padding.upper(),
      rngs=nnx.Rngs(0),
    )

  graphdef, _ = nnx.split(nnx.eval_shape(build))
  kernel = normal(1, *layer.kernel.shape)
  inputs = normal(0, 2, 11, 8, c), kernel, normal(2, o)

  def forward(x, kernel, bias):
    return nnx.merge(graphdef, {'kernel': kernel, 'bias': bias})(x)

  def reference(x, kernel, bias):
    return layer.stateless_call([kernel, bias], [], x)[0]

  found = with_gradients(forward, *inputs)
  close(found, with_gradients(reference, *inputs), 1e-5)


@pytest.mark.parametrize('train', [True, False])
@pytest.mark.parametrize('shape', [(3, 5, 4, 6), (7, 6)])
def test_normalisation(train, shape):
  """Reference: keras.layers.BatchNormalization, its defaults; output and
  gradients 1e-5, running statistics 1e-6."""
  layer = keras.layers.BatchNormalization()
  layer.build((None, *shape[1:]))
  ours = BatchNorm(6, momentum=0.99, epsilon=1e-3)
  graphdef, _ = nnx.split(ours)
  running = 0.3 * normal(3, 6), 0.5 + np.square(normal(4, 6))
  inputs = 2 * normal(0, *shape) + 0.5, 1 + normal(1, 6), normal(2, 6)

  def ours_with_statistics(x, scale, bias):
    state = {'mean': jnp.asarray(running[0]), 'var': jnp.asarray(running[1])}
    module = nnx.merge(graphdef, {'scale': scale, 'bias': bias, **state})
    y = module(x, not train)
    return y, (module.mean[...], module.var[...])

  def keras_with_statistics(x, scale, bias):
    y, statistics = layer.stateless_call(
      [scale, bias], list(running), x, training=train
    )
    return y, tuple(statistics)

  outputs = []
  for function in (ours_with_statistics, keras_with_statistics):
    with jax.numpy_rank_promotion('allow'):
      statistics = jax.jit(function)(*inputs)[1]
    gradients = with_gradients(lambda *a, f=function: f(*a)[0], *inputs)
    outputs.append((gradients, statistics))
  close(outputs[0][0], outputs[1][0], 1e-5)
  close(outputs[0][1], outputs[1][1], 1e-6)
  moved = np.abs(outputs[0][1][0] - running[0]).max()
  assert (moved > 1e-3) == train


@pytest.mark.parametrize(
  ('window', 'strides', 'padding'),
  [(2, 2, 'valid'), (3, 2, 'same'), (3, 2, 'valid'), (2, 1, 'same')],
)
def test_maximum_pooling(window, strides, padding):
  """Reference: keras.layers.MaxPooling2D, odd and even sizes; 1e-6, as the
  gradients of overlapping windows add up in another order."""
  layer = keras.layers.MaxPooling2D(window, strides, padding)
  x = normal(0, 2, 9, 8, 3)
  found = with_gradients(
    lambda x: max_pool(x, window, strides, padding.upper()), x
  )
  close(found, with_gradients(layer, x), 1e-6)


def test_average_pooling():
  """References: keras.layers.AveragePooling2D and GlobalAveragePooling2D, the
  latter the mean that models take over their maps; 1e-6."""
  x = normal(0, 2, 9, 8, 3)
  found = with_gradients(lambda x: avg_pool(x, 2), x)
  layer = keras.layers.AveragePooling2D(2)
  close(found, with_gradients(layer, x), 1e-6)
  layer = keras.layers.GlobalAveragePooling2D()
  found = with_gradients(lambda x: x.mean((1, 2)), x)
  close(found, with_gradients(layer, x), 1e-6)
