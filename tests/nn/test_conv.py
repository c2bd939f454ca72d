"""conv2d against lax.conv_general_dilated, in value and both gradients.

The reference is computed in float64. Tolerances are relative to the largest
element of the result: float32 1e-5 (tiles of 4 with
64 to 256 channels measure 3e-6), bfloat16 2 % (8 bits of mantissa).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from fer_jax.nn import conv

TOLERANCE = {'float32': 1e-5, 'bfloat16': 2e-2}


@functools.partial(jax.jit, static_argnums=(3, 4))
def lax_value_and_gradients(x, kernel, dy, strides, padding):
  y, transpose = jax.vjp(
    lambda x, k: lax.conv_general_dilated(
      x, k, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    ),
    x,
    kernel,
  )
  return y, *transpose(dy)


def reference(x, kernel, dy, strides, padding):
  """Value and gradients of lax.conv in float64, as numpy."""
  with jax.enable_x64(True):
    x, kernel, dy = (np.asarray(a, np.float64) for a in (x, kernel, dy))
    want = lax_value_and_gradients(x, kernel, dy, strides, padding)
    return tuple(np.asarray(a) for a in want)


def output_shape(x, kernel, strides, padding):
  return jax.eval_shape(
    lambda x, k: lax.conv_general_dilated(
      x, k, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    ),
    x,
    kernel,
  ).shape


def draw(shape, kernel_shape, strides, padding, dtype='float32', seed=0):
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.normal(size=shape), dtype)
  kernel = jnp.asarray(rng.normal(size=kernel_shape) * 0.1, dtype)
  out = output_shape(x, kernel, strides, padding)
  return x, kernel, jnp.asarray(rng.normal(size=out), dtype)


def assert_close(got, want, dtype='float32'):
  for name, a, b in zip(('value', 'dx', 'dkernel'), got, want, strict=True):
    assert a.shape == b.shape, name
    assert str(a.dtype) == dtype, name
    error = np.abs(np.asarray(a, np.float64) - b).max() / np.abs(b).max()
    assert error <= TOLERANCE[dtype], f'{name}: {error:.2e}'


def value_and_gradients(x, kernel, dy, **options):
  y, transpose = jax.vjp(lambda x, k: conv.conv2d(x, k, **options), x, kernel)
  return (y, *transpose(dy))


@pytest.mark.parametrize(
  ('shape', 'features', 'strides', 'padding'),
  [
    ((5, 12, 12, 16), 24, 1, 'SAME'),
    ((3, 9, 6, 5), 3, 1, 'VALID'),
    ((1, 1, 1, 8), 9, 1, 'SAME'),
    ((2, 5, 8, 4), 6, 1, ((2, 0), (0, 3))),
    ((5, 12, 12, 8), 8, 2, 'SAME'),
    ((3, 9, 7, 4), 6, 2, 'SAME'),
    ((3, 10, 7, 4), 6, 2, 'VALID'),
    ((2, 6, 11, 4), 6, 2, ((1, 1), (0, 2))),
  ],
)
@pytest.mark.parametrize('form', ['winograd2', 'winograd3', 'winograd4'])
def test_winograd_matches_lax(form, shape, features, strides, padding):
  x, kernel, dy = draw(
    shape, (3, 3, shape[-1], features), (strides, strides), padding
  )
  got = jax.jit(
    lambda *a: value_and_gradients(
      *a, strides=strides, padding=padding, form=form
    )
  )(x, kernel, dy)
  assert_close(got, reference(x, kernel, dy, (strides, strides), padding))


@pytest.mark.parametrize(
  ('shape', 'kernel_shape', 'strides', 'padding'),
  [
    ((3, 12, 12, 8), (3, 3, 8, 12), (2, 2), 'SAME'),
    ((3, 9, 7, 8), (3, 3, 8, 12), (2, 2), 'SAME'),
    ((3, 9, 7, 8), (3, 3, 8, 12), (2, 1), ((1, 1), (0, 2))),
    ((9, 12, 11, 1), (3, 3, 1, 32), (1, 1), 'SAME'),
    ((9, 12, 11, 8), (3, 3, 8, 8), (3, 3), 'SAME'),
    ((2, 12, 11, 3), (5, 5, 3, 8), (1, 1), 'SAME'),
    ((2, 14, 14, 4), (7, 7, 4, 8), (2, 2), 'SAME'),
    ((2, 14, 14, 4), (5, 3, 4, 8), (1, 3), 'VALID'),
    ((5, 6, 6, 16), (1, 1, 16, 8), (1, 1), 'SAME'),
    ((5, 7, 6, 16), (1, 1, 16, 8), (2, 2), 'SAME'),
    ((2, 6, 6, 4), (2, 2, 4, 8), (2, 2), 'VALID'),
    ((2, 7, 7, 4), (2, 2, 4, 8), (3, 3), 'VALID'),
    ((2, 6, 6, 4), (3, 3, 4, 8), (1, 1), ((3, 0), (4, 5))),
  ],
)
def test_other_shapes_match_lax(shape, kernel_shape, strides, padding):
  x, kernel, dy = draw(shape, kernel_shape, strides, padding)
  got = jax.jit(
    lambda *a: value_and_gradients(*a, strides=strides, padding=padding)
  )(x, kernel, dy)
  assert_close(got, reference(x, kernel, dy, strides, padding))


@pytest.mark.parametrize(
  ('form', 'channels', 'strides', 'dtype'),
  [
    ('winograd2', 8, 1, 'float32'),
    ('winograd2', 8, 2, 'float32'),
    ('winograd2', 8, 1, 'bfloat16'),
    ('winograd3', 8, 1, 'float32'),
    ('winograd3', 8, 2, 'float32'),
    ('winograd4', 8, 1, 'float32'),
    ('patches', 8, 1, 'float32'),
    ('patches', 8, 1, 'bfloat16'),
    ('patches', 2, 2, 'float32'),
    ('patches', 2, 2, 'bfloat16'),
    ('lax', 8, 1, 'float32'),
  ],
)
def test_bias_is_added_to_every_pixel(form, channels, strides, dtype):
  """Value and gradients; that of the bias is the sum of the output's. Tiles
  reach beyond the output, which is 7 x 9 or 4 x 5."""
  x, kernel, dy = draw(
    (5, 9, 11, channels),
    (3, 3, channels, 6),
    (strides, strides),
    'VALID',
    dtype,
  )
  bias = jnp.arange(6, dtype=dtype)
  options = {'strides': strides, 'padding': 'VALID', 'form': form}

  @jax.jit
  def value_and_all_gradients(x, kernel, bias, dy):
    y, transpose = jax.vjp(
      lambda *a: conv.conv2d(*a, **options), x, kernel, bias
    )
    return y, *transpose(dy)

  y, dx, dkernel, dbias = value_and_all_gradients(x, kernel, bias, dy)
  want = reference(x, kernel, dy, (strides, strides), 'VALID')
  assert_close((y, dx, dkernel), (want[0] + np.arange(6), *want[1:]), dtype)
  dy = np.asarray(dy, np.float64)
  assert dbias.dtype == dtype
  np.testing.assert_allclose(
    np.asarray(dbias, np.float64),
    dy.sum((0, 1, 2)),
    rtol=0,
    atol=TOLERANCE[dtype] * np.abs(dy).sum((0, 1, 2)).max(),
  )


@pytest.mark.parametrize('form', ['winograd2', 'patches', 'lax', 'auto'])
def test_bfloat16_matches_float64(form):
  x, kernel, dy = draw((5, 9, 9, 16), (3, 3, 16, 8), (1, 1), 'SAME', 'bfloat16')
  got = jax.jit(lambda *a: value_and_gradients(*a, form=form))(x, kernel, dy)
  assert_close(got, reference(x, kernel, dy, (1, 1), 'SAME'), 'bfloat16')


@pytest.mark.parametrize('form', ['winograd2', 'winograd3', 'patches', 'auto'])
def test_vmap_over_kernels_matches_one_by_one(form):
  members = 3
  drawn = [
    draw((5, 8, 8, 8), (3, 3, 8, 8), (1, 1), 'SAME', seed=seed)
    for seed in range(members)
  ]
  x, kernel, dy = (jnp.stack(a) for a in zip(*drawn, strict=True))
  got = jax.jit(jax.vmap(lambda *a: value_and_gradients(*a, form=form)))(
    x, kernel, dy
  )
  for member, (x, kernel, dy) in enumerate(drawn):
    want = reference(x, kernel, dy, (1, 1), 'SAME')
    assert_close([a[member] for a in got], want)


@pytest.mark.parametrize('form', ['winograd2', 'patches', 'auto'])
@pytest.mark.parametrize('loop', ['scan', 'while'])
def test_inside_a_loop_is_the_same_as_outside(form, loop):
  x, kernel, dy = draw((5, 8, 8, 8), (3, 3, 8, 8), (1, 1), 'SAME')

  def body(kernel):
    y, dx, dkernel = value_and_gradients(x, kernel, dy, form=form)
    return kernel - 1e-3 * dkernel, (y, dx, dkernel)

  want = kernel
  for _ in range(3):
    last = reference(x, want, dy, (1, 1), 'SAME')
    want = want - 1e-3 * last[2].astype(np.float32)
  if loop == 'scan':
    got, outputs = jax.jit(
      lambda k: lax.scan(lambda k, _: body(k), k, None, length=3)
    )(kernel)
    assert_close([a[-1] for a in outputs], last)
  else:
    got = jax.jit(
      lambda k: lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, body(c[1])[0]), (0, k)
      )[1]
    )(kernel)
  np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)


def test_one_image_does_not_see_the_others():
  x, kernel, _ = draw((19, 12, 12, 8), (3, 3, 8, 8), (1, 1), 'SAME')
  batch = conv.conv2d(x, kernel)
  alone = conv.conv2d(x[7:8], kernel)
  np.testing.assert_allclose(batch[7:8], alone, rtol=0, atol=1e-5)


# The last stage of VGG16, and a batch that jax.export leaves open.
FEW = {
  'in_features': 512,
  'out_features': 512,
  'output_size': (6, 6),
  'batch': 4,
}
(OPEN,) = jax.export.symbolic_shape('b')


@pytest.mark.parametrize(
  ('platform', 'options', 'forms'),
  [
    ('gpu', {}, {'lax'}),
    ('tpu', {}, {'lax'}),
    ('cpu', {}, {'winograd2', 'winograd4'}),
    ('cpu', {'dtype': jnp.bfloat16}, {'winograd2', 'patches', 'lax'}),
    ('cpu', {'output_size': (6, 6)}, {'winograd3'}),
    ('cpu', {'strides': (2, 2)}, {'winograd2', 'winograd3'}),
    ('cpu', {'strides': (2, 1)}, {'patches'}),
    ('cpu', {'kernel_size': (1, 1)}, {'patches'}),
    ('cpu', {'kernel_size': (5, 5)}, {'patches'}),
    ('cpu', {'in_features': 1}, {'patches'}),
    ('cpu', FEW, {'patches'}),
    ('cpu', {**FEW, 'dtype': jnp.bfloat16}, {'patches'}),
    ('cpu', {**FEW, 'batch': 128}, {'winograd3'}),
    ('cpu', {**FEW, 'batch': OPEN}, {'winograd3'}),
  ],
)
def test_choice(platform, options, forms):
  shape = {
    'kernel_size': (3, 3),
    'strides': (1, 1),
    'in_features': 64,
    'out_features': 64,
    'output_size': (24, 24),
    'batch': 64,
    'dtype': jnp.float32,
  }
  assert conv.choose_form(platform, **{**shape, **options}) in forms


def test_few_images_of_many_channels_are_not_transformed(monkeypatch):
  monkeypatch.setattr(conv, 'current_platform', lambda: 'cpu')

  def program(batch, form):
    x = jax.ShapeDtypeStruct((batch, 6, 6, 512), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 512, 512), jnp.float32)
    return str(
      jax.make_jaxpr(lambda x, k: conv.conv2d(x, k, form=form))(x, kernel)
    )

  assert program(4, 'auto') == program(4, 'patches')
  assert program(128, 'auto') == program(128, 'winograd3')


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'form': 'winograd9'}, 'form must be one of'),
    ({'form': 'winograd2', 'strides': 3}, 'for 3x3 kernels at stride 1 or 2'),
    ({'form': 'winograd2', 'strides': (1, 2)}, 'for 3x3 kernels'),
    ({'padding': 'FULL'}, "must be 'SAME' or 'VALID'"),
    ({'padding': ((1, 1), (-1, 0))}, 'none negative'),
    ({'strides': (1, 0)}, 'strides must be'),
  ],
)
def test_mistakes_are_named(options, message):
  x, kernel, _ = draw((1, 8, 8, 4), (3, 3, 4, 4), (1, 1), 'SAME')
  with pytest.raises(ValueError, match=message):
    conv.conv2d(x, kernel, **options)


def test_shape_mistakes_are_named():
  x, kernel, _ = draw((1, 8, 8, 4), (3, 3, 4, 4), (1, 1), 'SAME')
  with pytest.raises(ValueError, match='channels, the kernel expects'):
    conv.conv2d(x[..., :3], kernel)
  with pytest.raises(ValueError, match='takes images'):
    conv.conv2d(x[0], kernel)
  with pytest.raises(ValueError, match='the kernel is float32'):
    conv.conv2d(x.astype(jnp.bfloat16), kernel)
  with pytest.raises(ValueError, match='leaves no output'):
    conv.conv2d(x[:, :2], kernel, padding='VALID')
  with pytest.raises(ValueError, match=r'bias must be float32 \(4,\), got'):
    conv.conv2d(x, kernel, jnp.zeros(3))
  bfloat16 = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
  with pytest.raises(ValueError, match='too much precision'):
    conv.conv2d(*bfloat16, form='winograd4')


@pytest.mark.parametrize('strides', [1, (2, 1)])
@pytest.mark.parametrize('use_bias', [True, False])
def test_layer_matches_flax(strides, use_bias):
  ours = conv.Conv(
    4, 6, 3, strides=strides, use_bias=use_bias, rngs=nnx.Rngs(0)
  )
  theirs = nnx.Conv(
    4, 6, (3, 3), strides=strides, use_bias=use_bias, rngs=nnx.Rngs(0)
  )
  np.testing.assert_array_equal(ours.kernel[...], theirs.kernel[...])
  if use_bias:
    ours.bias[...] = theirs.bias[...] = jnp.arange(6, dtype=jnp.float32)
  x = jax.random.normal(jax.random.key(0), (3, 9, 8, 4))
  np.testing.assert_allclose(ours(x), theirs(x), rtol=0, atol=1e-5)


def test_layer_computes_in_its_dtype_and_keeps_float32_parameters():
  layer = conv.Conv(4, 6, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
  y = layer(jnp.ones((2, 8, 8, 4)))
  assert y.dtype == jnp.bfloat16
  assert layer.kernel[...].dtype == jnp.float32
  grads = nnx.grad(lambda m: m(jnp.ones((2, 8, 8, 4))).sum())(layer)
  assert grads['kernel'][...].dtype == jnp.float32
