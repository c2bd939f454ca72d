"""Depthwise and separable convolution against Keras' and XLA's own."""

import functools

import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
from flax import nnx

from fer_jax.nn import chunks
from fer_jax.nn.separable import (
  DepthwiseConv,
  SeparableConv,
  depthwise_conv2d,
)


def normal(seed, *shape):
  rng = np.random.default_rng(seed)
  return rng.normal(size=shape).astype(np.float32)


def close(found, expected, tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(
      a, b, rtol=0, atol=tolerance * max(1, np.abs(b).max())
    ),
    found,
    expected,
  )


def keras_separable(layer, variables, x):
  with jax.numpy_rank_promotion('allow'):
    return layer.stateless_call(variables, [], x)[0]


@pytest.mark.parametrize(
  ('size', 'strides', 'padding'),
  [((7, 6), 1, 'same'), ((7, 6), 1, 'valid'), ((8, 8), 2, 'same')],
)
def test_separable_convolution_and_gradients(size, strides, padding):
  """Reference: keras.layers.SeparableConv2D; 2e-6 of the largest element."""
  layer = keras.layers.SeparableConv2D(
    5,
    3,
    strides=strides,
    padding=padding,
    use_bias=False,
    depthwise_initializer='zeros',
    pointwise_initializer='zeros',
  )
  layer.build((None, *size, 4))
  depthwise, pointwise = normal(1, 3, 3, 4, 1), normal(2, 1, 1, 4, 5)

  def build():
    return SeparableConv(
      4, 5, strides=strides, padding=padding.upper(), rngs=nnx.Rngs(0)
    )

  graphdef, _ = nnx.split(nnx.eval_shape(build))

  def reference(x, depthwise, pointwise):
    return keras_separable(layer, [depthwise, pointwise], x)

  def forward(x, depthwise, pointwise):
    state = {
      'depthwise': {'kernel': depthwise.transpose(0, 1, 3, 2)},
      'pointwise': {'kernel': pointwise},
    }
    return nnx.merge(graphdef, state)(x)

  def both(function):
    def run(*inputs):
      y, transpose = jax.vjp(function, *inputs)
      return y, transpose(jnp.cos(jnp.arange(y.size)).reshape(y.shape))

    return jax.jit(run)(normal(0, 2, *size, 4), depthwise, pointwise)

  close(both(forward), both(reference), 2e-6)


@pytest.mark.parametrize('batch', [2, 5])
@pytest.mark.parametrize(
  ('window', 'strides', 'padding'),
  [
    ((3, 3), 1, 'SAME'),
    ((3, 3), 1, 'VALID'),
    ((3, 3), 2, 'SAME'),
    ((2, 5), (1, 2), ((0, 3), (2, 1))),
    ((2, 3), (3, 4), ((0, 0), (4, 0))),  # more than the window; pixels left out
    ((1, 1), 2, 0),
  ],
)
def test_forms_agree(window, strides, padding, batch, monkeypatch):
  """`lax` against `shifts`, values and gradients; 2e-6.

  Five images are two chunks, and a last one that is padded.
  """
  x, kernel = normal(0, batch, 7, 8, 3), normal(1, *window, 1, 3)
  monkeypatch.setattr(chunks, 'size', lambda *_: 2)

  def run(form):
    def function(x, kernel):
      return depthwise_conv2d(
        x, kernel, strides=strides, padding=padding, form=form
      )

    y, transpose = jax.vjp(function, x, kernel)
    return y, transpose(jnp.sin(y))

  found, expected = (
    jax.jit(functools.partial(run, form))() for form in ('shifts', 'lax')
  )
  close(found, expected, 2e-6)


@pytest.mark.parametrize('chunk', [1, 8])
def test_members_and_steps(chunk, monkeypatch):
  """Under vmap over kernels, and in a scan over images; 1e-6 of each alone."""
  monkeypatch.setattr(chunks, 'size', lambda *_: chunk)
  x, kernels = normal(0, 3, 2, 5, 5, 4), normal(1, 3, 3, 3, 1, 4)
  convolve = jax.jit(depthwise_conv2d)
  expected = [convolve(x[n], kernels[n]) for n in range(3)]
  members = jax.jit(jax.vmap(depthwise_conv2d))(x, kernels)
  close(members, jnp.stack(expected), 1e-6)

  def step(carry, xs):
    return carry, depthwise_conv2d(*xs)

  _, steps = jax.jit(lambda xs: jax.lax.scan(step, 0, xs))((x, kernels))
  close(steps, jnp.stack(expected), 1e-6)


def test_no_image_gives_none():
  x, kernel = jnp.zeros((0, 7, 6, 4)), jnp.ones((3, 3, 1, 4))
  y, transpose = jax.vjp(depthwise_conv2d, x, kernel)
  assert y.shape == (0, 7, 6, 4)
  dx, dkernel = transpose(y)
  assert dx.shape == x.shape
  assert not dkernel.any()


def test_bfloat16_adds_up_in_float32():
  """Against float32 of the same values: a rounding, 2^-8 of the largest."""
  x = jnp.asarray(normal(0, 1, 6, 6, 8), jnp.bfloat16)
  layer = DepthwiseConv(8, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  y = layer(x)
  assert y.dtype == jnp.bfloat16
  kernel = layer.kernel[...].astype(jnp.bfloat16).astype(jnp.float32)
  expected = depthwise_conv2d(x.astype(jnp.float32), kernel)
  scale = np.abs(expected).max()
  close(y.astype(jnp.float32) / scale, expected / scale, 2**-8)


@pytest.mark.parametrize(
  ('x', 'kernel', 'options', 'message'),
  [
    ((1, 4, 4, 2), (3, 3, 2, 2), {}, r'kernel \(kh, kw, 1, C\), got \(3'),
    ((1, 4, 4, 2), (3, 3, 1, 3), {}, 'have 2 channels, the kernel has 3'),
    ((1, 2, 2, 2), (3, 3, 1, 2), {'padding': 'VALID'}, 'leaves no output'),
    ((1, 4, 4, 2), (3, 3, 1, 2), {'form': 'fft'}, "form must be .* got 'fft'"),
  ],
)
def test_wrong_inputs_are_named(x, kernel, options, message):
  with pytest.raises(ValueError, match=message):
    depthwise_conv2d(jnp.zeros(x), jnp.zeros(kernel), **options)
  with pytest.raises(ValueError, match='images are float32, the kernel is'):
    depthwise_conv2d(
      jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 1, 2), jnp.bfloat16)
    )
  with pytest.raises(ValueError, match="got 'fft'"):
    DepthwiseConv(2, form='fft', rngs=nnx.Rngs(0))
