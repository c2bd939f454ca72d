"""What layers are handed: NumPy's numbers do for Python's, and what will not do
is named, with what was expected."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fer_jax.nn import (
  GRU,
  LSTM,
  AdditiveAttention,
  BatchNorm,
  Bidirectional,
  Conv,
  DepthwiseConv,
  Dropout,
  ResidualBlock,
  SeparableConv,
  Stacked,
  avg_pool,
  conv2d,
  depthwise_conv2d,
  max_pool,
)

RNGS = nnx.Rngs(0)
TWO = np.int64(2)
MAKE = {
  AdditiveAttention: ('features', 'units'),
  Conv: ('in_features', 'out_features'),
  DepthwiseConv: ('features',),
  GRU: ('in_features', 'units'),
  LSTM: ('in_features', 'units'),
  ResidualBlock: ('in_features', 'out_features'),
  SeparableConv: ('in_features', 'out_features'),
  BatchNorm: ('num_features',),
}
"""Public layers with sizes, and the names of these."""
CONVS = (Conv, DepthwiseConv, ResidualBlock, SeparableConv)


def make(layer, **options):
  sizes = dict.fromkeys(MAKE[layer], 3)
  return layer(**{**sizes, 'rngs': RNGS, **options})


@functools.cache
def lstm():
  return make(LSTM)


def sizes():
  return [(layer, name) for layer, names in MAKE.items() for name in names]


@pytest.mark.parametrize(('layer', 'name'), sizes())
def test_sizes_are_ints(layer, name):
  make(layer, **{name: np.int32(3)})
  for value in (3.0, True, 0, -3, '3', None, (3,)):
    # Of some layers it is a layer inside that takes the size.
    with pytest.raises(ValueError, match=r'must be a positive int, got ') as e:
      make(layer, **{name: value})
    assert str(e.value).endswith(f'got {value!r}')
    assert layer in (SeparableConv,) or name in str(e.value)


@pytest.mark.parametrize(
  'rngs', [0, None, jax.random.key(0), nnx.Rngs(dropout=0)]
)
@pytest.mark.parametrize('layer', [m for m in MAKE if m is not BatchNorm])
def test_rngs_are_those_of_flax(layer, rngs):
  message = r"^rngs must be nnx.Rngs with a stream 'params', such .*, got .+$"
  with pytest.raises(ValueError, match=message):
    make(layer, rngs=rngs)


@pytest.mark.parametrize('layer', CONVS)
def test_strides_are_one_int_or_two(layer):
  x = jnp.ones((1, 4, 4, 3))
  for value in (TWO, [2, 2], np.array([2, 2]), (TWO, 2)):
    assert make(layer, strides=value)(x).shape == (1, 2, 2, 3)
  for value in (2.0, (2.0, 2), True, 0, '2', None, (1, 2, 3), jnp.ones(2)):
    with pytest.raises(ValueError, match='strides must be one or two positive'):
      make(layer, strides=value)


@pytest.mark.parametrize('layer', CONVS[:2])
def test_padding_is_checked_where_a_layer_is_made(layer):
  x = jnp.ones((1, 4, 4, 3))
  for value in (np.int64(1), np.array([1, 1]), [(1, 1), [TWO, 0]], 'same'):
    assert make(layer, padding=value)(x).shape == (1, 4, 4, 3)
  for value in ('CIRCULAR', -1, 1.0, True, None, (1, 1, 1), ('SAME', 'VALID')):
    with pytest.raises(ValueError, match="padding must be 'SAME' or 'VALID'"):
      make(layer, padding=value)


def test_a_residual_block_with_two_strides_of_one_has_no_projection():
  assert make(ResidualBlock, strides=(1, 1)).projection is None


@pytest.mark.parametrize('layer', [*MAKE])
def test_what_is_computed_in_is_floating(layer):
  taken = make(layer, dtype='bfloat16')
  assert nnx.graphdef(taken) == nnx.graphdef(make(layer, dtype=jnp.bfloat16))
  make(layer, dtype=float)
  for value in (int, 'bf16', jnp.int32, 3):
    with pytest.raises(ValueError, match=r'dtype must be a floating .*, got '):
      make(layer, dtype=value)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: make(Conv, param_dtype=int), 'param_dtype must be a floating'),
    (lambda: make(Conv, use_bias='no'), "use_bias must be True .* 'no'"),
    (lambda: make(Conv, kernel_init='he'), "of kernel must be .* got 'he'"),
    (lambda: make(LSTM, kernel_init='he'), "of kernel must be .* got 'he'"),
    (lambda: make(LSTM, backend=None), 'backend None is none of'),
    (lambda: make(GRU, reset_after='no'), "reset_after must be True .* 'no'"),
    (lambda: make(BatchNorm, momentum='0.9'), "momentum must be .* got '0.9'"),
    (lambda: make(BatchNorm, epsilon=-1), 'epsilon must be .* got -1'),
    (lambda: Dropout('0.5'), r"rate of dropout must be .*\[0, 1\), got '0.5'"),
    (lambda: Stacked(lstm()), 'Stacked takes a list of .* got LSTM'),
    (lambda: Stacked([lstm(), 3]), 'each layer must be an LSTM.* got 3'),
    (lambda: Bidirectional(lstm(), 3), 'backward must be an LSTM or GRU.* 3'),
    (lambda: Bidirectional(LSTM, LSTM), 'forward must be an LSTM or GRU'),
  ],
)
def test_other_arguments_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


IMAGES = jnp.ones((1, 4, 4, 3))
WHOLE = IMAGES.astype(int)
KERNEL, WINDOWS = jnp.ones((3, 3, 3, 3)), jnp.ones((3, 3, 1, 3))


def test_functions_take_numpys_numbers():
  for shape in (
    conv2d(IMAGES, KERNEL, strides=TWO, padding=np.int64(1)).shape,
    depthwise_conv2d(IMAGES, WINDOWS, strides=TWO).shape,
    max_pool(IMAGES, TWO).shape,
    avg_pool(IMAGES, np.array([2, 2]), TWO).shape,
  ):
    assert shape == (1, 2, 2, 3)
  assert Dropout(np.float32(0.5)).rate == 0.5


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: conv2d([1], KERNEL), 'images .B, H, W, C., got a list of 1'),
    (lambda: conv2d(IMAGES, KERNEL[0]), r'kernel .*got \(3, 3, 3\)'),
    (lambda: conv2d(IMAGES, KERNEL, 0), r'the bias must be .*, got 0'),
    (lambda: depthwise_conv2d(IMAGES, KERNEL), r'kw, 1, C\), got \(3, 3, 3'),
    (lambda: max_pool(IMAGES, 2.0), 'window must be .* got 2.0'),
    (lambda: max_pool(IMAGES, 2, True), 'strides must be .* got True'),
    (lambda: avg_pool([1]), 'images .B, H, W, C., got a list of 1'),
    (lambda: conv2d(WHOLE, KERNEL.astype(int)), 'floating .* got int32'),
    (lambda: depthwise_conv2d(WHOLE, WINDOWS.astype(int)), 'floating .* int32'),
    (lambda: max_pool(WHOLE), 'pooling takes images of floating .* got int32'),
    (lambda: avg_pool(WHOLE), 'pooling takes images of floating .* got int32'),
    (lambda: make(Conv)([1]), r'images \(B, H, W, 3\), got a list of 1'),
    (lambda: make(DepthwiseConv)(IMAGES[0]), r'W, 3\), got \(4, 4, 3\)'),
    (lambda: make(BatchNorm)(jnp.ones((2, 3), int)), 'floating .* got int32'),
    (lambda: make(BatchNorm)(IMAGES, mask=True), r'must be \(1,\), got True'),
    (lambda: Dropout(0.5)(IMAGES, key=0), 'key must be a PRNG key.* got 0'),
    (
      lambda: Dropout(0.5)(IMAGES, key=jax.random.key(0), rate=2.0),
      'rate of dropout must be .* got 2.0',
    ),
    (
      lambda: Dropout(0.5)([1.0], key=jax.random.key(0)),
      'floating numbers, got a list of 1',
    ),
    (
      lambda: Dropout(0.5)(IMAGES.astype(int), key=jax.random.key(0)),
      'floating numbers, got int32',
    ),
  ],
)
def test_what_is_computed_on_is_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


X_BTD = jnp.ones((2, 5, 3))


@pytest.mark.parametrize('kind', ['layer', 'both', 'stacked'])
def test_a_carry_in_the_place_of_a_mask_is_told_its_name(kind):
  layer = {
    'layer': lstm,
    'both': lambda: Bidirectional(lstm(), lstm()),
    'stacked': lambda: Stacked([lstm(), lstm()]),
  }[kind]()
  carry = layer.initial_carry(np.int64(2))
  with pytest.raises(ValueError, match=r'goes by its name, as .*carry=carry'):
    layer(X_BTD, carry)
  layer(X_BTD, carry=list(carry))
  message = r'takes a carry .* got \(a tuple of|takes a carry .* got \(\(2, 3'
  with pytest.raises(ValueError, match=message):
    layer(X_BTD, carry=carry[:1])
  with pytest.raises(ValueError, match=r'takes a carry .* got a single 0'):
    layer(X_BTD, carry=0)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: lstm()([[1.0]]), r'sequence \(B, T, 3\), got a list of 1'),
    (lambda: lstm()(X_BTD, True), r'must be \(2, 5\), got True'),
    (lambda: lstm()(X_BTD, [[True]]), r'must be \(2, 5\), got a list of 1'),
    (lambda: lstm()(X_BTD, reverse='yes'), "reverse must be True .* 'yes'"),
    (lambda: lstm()(X_BTD, carry=(None,) * 2), r'got \(None, None\)'),
    (
      lambda: make(AdditiveAttention)(X_BTD, lstm().initial_carry(2)),
      r'must be \(2, 5\), got a tuple of 2',
    ),
    (
      lambda: make(AdditiveAttention)(X_BTD.astype(int)),
      'sequence of floating numbers, got int32',
    ),
    (lambda: Stacked([lstm()])(X_BTD, key=0), 'key must be a PRNG key.* got 0'),
  ],
)
def test_wrong_sequences_and_masks_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()
