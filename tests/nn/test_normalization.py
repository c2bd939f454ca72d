"""BatchNorm against numpy and flax.nnx.BatchNorm."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fer_jax.models.backbones.xception import Xception
from fer_jax.nn import BatchNorm, ResidualBlock

B, C = 6, 3
MASK = jnp.array([True, False, True, True, False, True])


def layers(seed=0):
  """Ours and Flax's, of the same random parameters and statistics."""
  ours = BatchNorm(C)
  theirs = nnx.BatchNorm(C, momentum=0.9, epsilon=1e-5, rngs=nnx.Rngs(0))
  keys = jax.random.split(jax.random.key(seed), 4)
  for name, key in zip(('scale', 'bias', 'mean', 'var'), keys, strict=True):
    value = jax.random.uniform(key, (C,), minval=0.5, maxval=2)
    for layer in (ours, theirs):
      getattr(layer, name)[...] = value
  return ours, theirs


def images(seed=1, shape=(B, 4, 5, C)):
  draw = np.random.default_rng(seed)
  return jnp.asarray(draw.normal(3, 2, shape), jnp.float32)


def test_state_has_the_names_of_flax():
  ours, theirs = layers()
  shapes = [
    {
      path[0]: (type(v), v.shape, v.dtype)
      for path, v in nnx.to_flat_state(nnx.state(m))
    }
    for m in (ours, theirs)
  ]
  assert shapes[0] == shapes[1]


@pytest.mark.parametrize('shape', [(B, 4, 5, C), (B, C)])
@pytest.mark.parametrize('masked', [False, True])
def test_training_equals_flax(shape, masked):
  """Outputs, statistics and gradients: 2e-5 on values of size 5."""
  mask = MASK if masked else None
  x = images(shape=shape)
  # Padding stays out of the loss too.
  kept = jnp.ones(B) if mask is None else mask.astype(jnp.float32)

  def loss(params, rest, graphdef, x, broadcast):
    layer = nnx.merge(graphdef, params, rest, copy=True)
    m = mask
    if mask is not None and broadcast:
      m = mask.reshape(-1, *(1,) * (x.ndim - 1))
    y = layer(x, use_running_average=False, mask=m)
    weight = kept.reshape(-1, *(1,) * (x.ndim - 1))
    value = jnp.sum(y * weight * jnp.sin(jnp.arange(y.size).reshape(y.shape)))
    return value, (y, layer.mean[...], layer.var[...])

  found = []
  for layer, broadcast in zip(layers(), (False, True), strict=True):
    graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
    gradient, aux = jax.grad(loss, (0, 3), has_aux=True)(
      params, rest, graphdef, x, broadcast
    )
    found.append((nnx.to_pure_dict(gradient[0]), gradient[1], aux))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), *found
  )


@pytest.mark.parametrize('nothing', [1e4, np.nan])
def test_statistics_are_those_of_the_kept_images(nothing):
  """Reference: numpy over the subset; 1e-5."""
  ours, _ = layers()
  before = np.asarray(ours.mean[...]), np.asarray(ours.var[...])
  x = images()
  poisoned = jnp.where(MASK[:, None, None, None], x, nothing)
  y = ours(poisoned, use_running_average=False, mask=MASK)
  kept = np.asarray(x, np.float64)[np.asarray(MASK)]
  mean, var = kept.mean((0, 1, 2)), kept.var((0, 1, 2))
  np.testing.assert_allclose(
    ours.mean[...], 0.9 * before[0] + 0.1 * mean, rtol=1e-5
  )
  np.testing.assert_allclose(
    ours.var[...], 0.9 * before[1] + 0.1 * var, rtol=1e-5
  )
  expected = (kept - mean) / np.sqrt(var + 1e-5)
  expected = expected * np.asarray(ours.scale[...]) + np.asarray(ours.bias[...])
  np.testing.assert_allclose(y[MASK], expected, atol=1e-5)


def test_evaluation_uses_and_keeps_the_running_statistics():
  ours, theirs = layers()
  before = nnx.to_pure_dict(nnx.state(ours))
  x = images()
  np.testing.assert_allclose(
    ours(x, use_running_average=True),
    theirs(x, use_running_average=True),
    atol=1e-5,
  )
  jax.tree.map(
    np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(ours)), before
  )


def test_a_batch_of_padding_alone_changes_nothing():
  ours, _ = layers()
  before = nnx.to_pure_dict(nnx.state(ours))
  y = ours(images(), use_running_average=False, mask=jnp.zeros(B, bool))
  assert np.all(np.isfinite(y))
  jax.tree.map(
    np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(ours)), before
  )


def test_bfloat16_images_have_float32_statistics():
  """Statistics against float32 of the rounded images: 1e-5."""
  half, full = layers()[0], layers()[0]
  x = images().astype(jnp.bfloat16)
  y = half(x, use_running_average=False)
  assert y.dtype == jnp.bfloat16
  exact = full(x.astype(jnp.float32), use_running_average=False)
  np.testing.assert_allclose(half.mean[...], full.mean[...], rtol=1e-5)
  np.testing.assert_allclose(half.var[...], full.var[...], rtol=1e-5)
  np.testing.assert_array_equal(y, exact.astype(jnp.bfloat16))


def test_statistics_keep_their_dtype_under_float64_images():
  """A loop carries them; values against float32 images: 1e-6."""
  wide, single = layers()[0], layers()[0]
  single(images(), use_running_average=False)
  with jax.enable_x64(True):
    x = images().astype(jnp.float64)
    assert wide(x, use_running_average=False).dtype == jnp.float64
  for name in ('mean', 'var'):
    found, expected = getattr(wide, name)[...], getattr(single, name)[...]
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_no_image_changes_nothing():
  ours, _ = layers()
  before = nnx.to_pure_dict(nnx.state(ours))
  y = ours(images()[:0], use_running_average=False)
  assert y.shape == (0, 4, 5, C)
  jax.tree.map(
    np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(ours)), before
  )


def test_wrong_shapes_are_named():
  ours, _ = layers()
  with pytest.raises(ValueError, match=r'\(B, ..., 3\), got \(2, 4\)'):
    ours(jnp.zeros((2, 4)), use_running_average=True)
  with pytest.raises(ValueError, match=r'must be \(6,\), got \(2,\)'):
    ours(images(), use_running_average=False, mask=jnp.ones(2, bool))


def test_a_sequential_takes_it_and_train_and_eval_switch_it():
  network = nnx.Sequential(BatchNorm(C), jax.nn.relu)
  x = images()
  with_batch = network(x)
  network.eval()
  norm = BatchNorm(C)
  np.testing.assert_array_equal(with_batch, jax.nn.relu(norm(x, False)))
  np.testing.assert_array_equal(network(x), jax.nn.relu(norm(x, True)))
  network.train()
  np.testing.assert_array_equal(network(x), with_batch)


@pytest.mark.parametrize(
  'make', [Xception, lambda **k: ResidualBlock(3, 4, **k)]
)
def test_blocks_and_networks_follow_train_and_eval(make):
  def stay(how, **given):
    """Whether each statistic is returned as it came in."""
    module = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    module = how(module) or module
    graphdef, params, statistics = nnx.split(module, nnx.Param, ...)

    def call(params, statistics, x):
      module = nnx.merge(graphdef, params, statistics, copy=True)
      module(x, **given)
      return nnx.state(module, nnx.BatchStat)

    x = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    jaxpr = jax.make_jaxpr(call)(params, statistics, x).jaxpr
    return [out in jaxpr.invars for out in jaxpr.outvars]

  assert not any(stay(nnx.Module.train))
  assert all(stay(nnx.Module.eval))
  assert all(stay(nnx.Module.train, train=False))
  assert not any(stay(lambda m: nnx.view(m, use_running_average=False)))
  assert all(stay(lambda m: nnx.view(m, use_running_average=True)))
