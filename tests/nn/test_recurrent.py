"""Recurrent layers against plain loops in float64 and Flax's cells."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fer_jax.nn import (
  GRU,
  LSTM,
  Bidirectional,
  Dropout,
  Stacked,
  attention,
)
from fer_jax.nn.recurrent import layers as recurrent

B, T, D, H = 3, 5, 4, 6
LENGTHS = np.array([5, 2, 4])
MASK = np.arange(T)[None] < LENGTHS[:, None]
GAPS = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 1]], bool)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def weights(layer):
  """Kernel, recurrent kernel and bias in float64, by name."""
  names = ('kernel', 'recurrent_kernel', 'bias')
  return {n: np.array(getattr(layer, n)[...], np.float64) for n in names}


def lstm_step(kernel, recurrent_kernel, bias, x, carry):
  cell, hidden = carry
  i, f, g, o = np.split(x @ kernel + hidden @ recurrent_kernel + bias, 4, -1)
  cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
  return cell, sigmoid(o) * np.tanh(cell)


def gru_step(kernel, recurrent_kernel, bias, x, carry):
  (hidden,) = carry
  h = hidden.shape[-1]
  if bias.ndim == 2:
    xz, xr, xg = np.split(x @ kernel + bias[0], 3, -1)
    hz, hr, hg = np.split(hidden @ recurrent_kernel + bias[1], 3, -1)
    z, r = sigmoid(xz + hz), sigmoid(xr + hr)
    g = np.tanh(xg + r * hg)
  else:
    xz, xr, xg = np.split(x @ kernel + bias, 3, -1)
    z = sigmoid(xz + hidden @ recurrent_kernel[:, :h])
    r = sigmoid(xr + hidden @ recurrent_kernel[:, h : 2 * h])
    g = np.tanh(xg + (r * hidden) @ recurrent_kernel[:, 2 * h :])
  return (z * hidden + (1 - z) * g,)


def loop(layer, x, mask=None, carry=None, reverse=False, params=None):
  """Each sequence on its own, step by step; masked steps are not taken."""
  params = params or weights(layer)
  step = lstm_step if isinstance(layer, LSTM) else gru_step
  outputs = np.zeros((*x.shape[:2], layer.units))
  parts = len(layer.carry_names)
  finals = [np.zeros((len(x), layer.units)) for _ in range(parts)]
  for b in range(len(x)):
    state = tuple(
      np.zeros(layer.units) if carry is None else np.asarray(carry[p][b])
      for p in range(parts)
    )
    steps = range(x.shape[1])
    for t in reversed(steps) if reverse else steps:
      if mask is None or mask[b, t]:
        state = step(*params.values(), np.asarray(x[b, t], np.float64), state)
        outputs[b, t] = state[-1]
    for p in range(parts):
      finals[p][b] = state[p]
  return outputs, tuple(finals)


def make(kind, in_features=D, units=H, seed=0, **options):
  """A layer all of whose parameters, biases too, are random."""
  if kind == 'gru_before':
    options['reset_after'] = False
  cls = LSTM if kind == 'lstm' else GRU
  layer = cls(in_features, units, rngs=nnx.Rngs(seed), **options)
  noise = sequence(seed + 100, layer.bias.shape).astype(layer.bias.dtype)
  layer.bias[...] = layer.bias[...] + noise
  return layer


def sequence(seed=1, shape=(B, T, D)):
  draw = np.random.default_rng(seed)
  return jnp.asarray(draw.standard_normal(shape), jnp.float32)


KINDS = ('lstm', 'gru', 'gru_before')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(
  ('reverse', 'masked', 'carried'),
  [(False, False, False), (False, True, True), (True, True, False)],
)
def test_layer_equals_a_float64_loop(kind, reverse, masked, carried):
  """Reference: plain loop; tolerance 2e-6."""
  layer, x = make(kind), sequence()
  mask = MASK if masked else None
  carry = None
  if carried:
    carry = tuple(
      sequence(7 + n, (B, H)) for n in range(len(layer.carry_names))
    )
  y, after = jax.jit(lambda x, m, c: layer(x, m, carry=c, reverse=reverse))(
    x, None if mask is None else jnp.asarray(mask), carry
  )
  expected, expected_after = loop(layer, np.asarray(x), mask, carry, reverse)
  np.testing.assert_allclose(y, expected, atol=2e-6)
  assert len(after) == len(expected_after)
  for part, expected_part in zip(after, expected_after, strict=True):
    np.testing.assert_allclose(part, expected_part, atol=2e-6)


def test_lstm_equals_flax_optimized_cell():
  """Reference: nnx.OptimizedLSTMCell with the same weights; 2e-6."""
  layer, x = make('lstm'), sequence()
  cell = nnx.OptimizedLSTMCell(D, H, rngs=nnx.Rngs(0))
  # Flax lays gates side by side too, in the same order, bias on the hidden.
  cell.dense_i.kernel[...] = layer.kernel[...]
  cell.dense_h.kernel[...] = layer.recurrent_kernel[...]
  cell.dense_h.bias[...] = layer.bias[...]
  carry = (jnp.zeros((B, H)), jnp.zeros((B, H)))
  y, _ = layer(x)
  for t in range(T):
    carry, output = cell(carry, x[:, t])
    np.testing.assert_allclose(y[:, t], output, atol=2e-6)


def test_gru_equals_flax_cell():
  """Reference: nnx.GRUCell, which resets after the product too but has no bias
  on the hidden side; 2e-6."""
  layer, x = make('gru'), sequence()
  cell = nnx.GRUCell(D, H, rngs=nnx.Rngs(0))

  def r_z_g(array):
    z, r, g = jnp.split(array, 3, -1)
    return jnp.concatenate([r, z, g], -1)

  layer.bias[...] = layer.bias[...].at[1].set(0)
  cell.dense_i.kernel[...] = r_z_g(layer.kernel[...])
  cell.dense_i.bias[...] = r_z_g(layer.bias[0])
  cell.dense_h.kernel[...] = r_z_g(layer.recurrent_kernel[...])
  hidden = jnp.zeros((B, H))
  y, _ = layer(x)
  for t in range(T):
    hidden, output = cell(hidden, x[:, t])
    np.testing.assert_allclose(y[:, t], output, atol=2e-6)


@pytest.mark.parametrize('kind', ['lstm', 'gru'])
def test_bidirectional_equals_two_layers(kind):
  """Reference: each direction on its own, from a carry of its own; 1e-6."""
  forward, backward = make(kind, seed=0), make(kind, units=3, seed=1)
  x, mask = sequence(), jnp.asarray(MASK)
  both = Bidirectional(forward, backward)
  starts = tuple(
    tuple(part + start for part in layer.initial_carry(B))
    for layer, start in ((forward, 0.5), (backward, -0.5))
  )
  y, carry = both(x, mask, carry=starts)
  ahead, carry_ahead = forward(x, mask, carry=starts[0])
  back, carry_back = backward(x, mask, carry=starts[1], reverse=True)
  np.testing.assert_allclose(y[..., :H], ahead, atol=1e-6)
  np.testing.assert_allclose(y[..., H:], back, atol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    carry,
    (carry_ahead, carry_back),
  )
  # After a masked sequence: the last step forward, the first backward.
  last = jnp.concatenate(
    [ahead[jnp.arange(B), LENGTHS - 1], back[:, 0]], -1
  )  # fmt: skip
  np.testing.assert_allclose(both.final_hidden(carry), last, atol=1e-6)


def stack():
  return Stacked(
    [
      Bidirectional(make('lstm', seed=0), make('lstm', seed=1)),
      make('gru', 2 * H, 5, seed=2),
    ],
    dropout=0.5,
  )


def test_stacked_equals_layer_on_layer():
  """Reference: the layers called one after the other; exact."""
  x, mask = sequence(), jnp.asarray(MASK)
  layers = stack()
  y, carry = layers(x, mask)
  first, second = layers.in_order()
  between, _ = first(x, mask)
  expected, (hidden,) = second(between, mask)
  np.testing.assert_array_equal(y, expected)
  np.testing.assert_array_equal(layers.final_hidden(carry), hidden)


def test_stacked_dropout_acts_between_layers_only_with_a_key():
  x, layers = sequence(), stack()
  plain = layers(x)[0]
  key = jax.random.key(0)
  np.testing.assert_array_equal(layers(x, key=key, rate=0.0)[0], plain)
  assert jnp.abs(layers(x, key=key)[0] - plain).max() > 1e-3
  # A single layer has nothing between.
  single = Stacked([make('lstm')], dropout=0.9)
  y, carry = single(x, key=key)
  np.testing.assert_array_equal(y, single(x)[0])
  np.testing.assert_array_equal(single.final_hidden(carry), y[:, -1])


def test_dropout_of_a_stack_in_a_stack_acts_too():
  x, key = sequence(), jax.random.key(0)
  layers = Stacked([stack(), make('gru', 5)])
  plain = layers(x)[0]
  assert jnp.abs(layers(x, key=key)[0] - plain).max() > 1e-3
  np.testing.assert_array_equal(layers(x, key=key, rate=0.0)[0], plain)


def test_every_dropout_of_a_stack_draws_by_a_key_of_its_own(monkeypatch):
  keys = []

  def recorded(self, x, *, key, rate=None):
    keys.append(tuple(jax.random.key_data(key).tolist()))
    return x

  def three():
    return Stacked([make('gru', H) for _ in range(3)], dropout=0.5)

  monkeypatch.setattr(Dropout, '__call__', recorded)
  Stacked([three(), three()])(sequence(shape=(1, 1, H)), key=jax.random.key(0))
  assert len(set(keys)) == len(keys) == 5


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('mask', [None, GAPS], ids=['all', 'gaps'])
def test_streaming_by_frame_equals_the_whole_clip(kind, mask):
  """Carries fed back one step at a time; 1e-6."""
  layers = Stacked([make(kind), make(kind, H, 3, seed=1)])
  x = sequence()
  call = jax.jit(lambda x, mask, carry: layers(x, mask, carry=carry))
  whole, whole_carry = call(x, mask, None)
  carry = layers.initial_carry(B)
  for t in range(T):
    now = None if mask is None else mask[:, t : t + 1]
    y, carry = call(x[:, t : t + 1], now, carry)
    np.testing.assert_allclose(y[:, 0], whole[:, t], atol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    carry,
    whole_carry,
  )


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_equal_finite_differences(kind):
  """Central differences of the float64 loop; 1e-3 of the largest."""
  layer, x = make(kind), sequence()
  graphdef, params = nnx.split(layer)

  def loss(params, x):
    y, carry = nnx.merge(graphdef, params)(x, jnp.asarray(MASK))
    return jnp.sum(y * jnp.sin(jnp.arange(y.size).reshape(y.shape))) + sum(
      jnp.sum(part**2) for part in carry
    )

  def reference(name, index, step):
    changed = weights(layer)
    changed[name][index] += step
    y, carry = loop(layer, np.asarray(x), MASK, params=changed)
    return np.sum(y * np.sin(np.arange(y.size).reshape(y.shape))) + sum(
      np.sum(part**2) for part in carry
    )

  gradient = nnx.to_pure_dict(jax.jit(jax.grad(loss))(params, x))
  draw = np.random.default_rng(0)
  for name in ('kernel', 'recurrent_kernel', 'bias'):
    scale = np.abs(gradient[name]).max()
    for _ in range(8):
      index = tuple(draw.integers(n) for n in gradient[name].shape)
      slope = (
        reference(name, index, 1e-5) - reference(name, index, -1e-5)
      ) / 2e-5
      np.testing.assert_allclose(
        gradient[name][index], slope, atol=1e-3 * scale
      )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('bidirectional', [False, True])
def test_masked_gradients_equal_those_of_the_short_sequence(
  kind, bidirectional
):
  """What lies behind a mask has no influence and no gradient; 1e-6."""
  layer = make(kind)
  if bidirectional:
    layer = Bidirectional(layer, make(kind, seed=1))
  graphdef, params = nnx.split(layer)
  long = sequence(shape=(1, T, D))
  mask = jnp.arange(T)[None] < 3

  def loss(params, x, mask):
    y, carry = nnx.merge(graphdef, params)(x, mask)
    return jnp.sum(y**2) + sum(jnp.sum(c) for c in jax.tree.leaves(carry))

  gradient = jax.jit(jax.grad(loss, (0, 1)))
  masked = gradient(params, long, mask)
  short = gradient(params, long[:, :3], None)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
    masked[0],
    short[0],
  )
  np.testing.assert_allclose(masked[1][:, :3], short[1], atol=1e-6)
  assert not np.any(masked[1][:, 3:])


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('backend', ['fused', 'scan'])
def test_what_a_mask_hides_may_be_no_number(kind, backend):
  """Values and gradients are those of zeros in its place; exact."""
  layer = make(kind, backend=backend)
  graphdef, params = nnx.split(layer)

  @jax.jit
  def value_and_gradients(params, x):
    def loss(params, x):
      y, carry = nnx.merge(graphdef, params)(x, jnp.asarray(MASK))
      return jnp.sum(y**2) + sum(jnp.sum(part) for part in carry)

    return jax.value_and_grad(loss, (0, 1))(params, x)

  found, expected = (
    value_and_gradients(params, jnp.where(MASK[..., None], sequence(), value))
    for value in (np.nan, 0.0)
  )
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('backend', ['fused', 'scan'])
def test_no_step_leaves_the_carry(kind, backend):
  """Values and gradients of a sequence of no steps; exact."""
  layer = make(kind, backend=backend)
  graphdef, state = nnx.split(layer)
  start = jax.tree.map(lambda part: part + 2.0, layer.initial_carry(B))

  def total(state, start):
    outputs, after = nnx.merge(graphdef, state)(
      jnp.zeros((B, 0, D)), carry=start
    )
    return sum(part.sum() for part in after), (outputs, after)

  gradients, (outputs, after) = jax.grad(total, (0, 1), has_aux=True)(
    state, start
  )
  assert outputs.shape == (B, 0, H)
  for found, expected in zip(after, start, strict=True):
    np.testing.assert_array_equal(found, expected)
  assert all((d == 1).all() for d in gradients[1])
  assert not any(d.any() for d in jax.tree.leaves(gradients[0]))


@pytest.mark.parametrize('kind', ['lstm', 'gru'])
def test_bfloat16_keeps_its_carry_in_float32(kind):
  """Against float32: 0.03, a few of bfloat16's 2^-8 steps."""
  exact, x = make(kind), sequence()
  layer = make(kind, dtype=jnp.bfloat16)
  y, carry = layer(x)
  assert y.dtype == jnp.bfloat16
  assert all(part.dtype == jnp.float32 for part in carry)
  assert layer.kernel.dtype == jnp.float32
  np.testing.assert_allclose(np.asarray(y, np.float32), exact(x)[0], atol=0.03)


@pytest.mark.parametrize('kind', ['lstm', 'gru'])
def test_bfloat16_rounds_what_enters_a_product_and_nothing_else(kind):
  """One step against a float64 loop on rounded operands; 1e-5, where a
  rounded sum would be off by 1e-3 and more."""

  def rounded(array):
    return np.asarray(jnp.asarray(array, jnp.bfloat16), np.float64)

  layer, x = make(kind, dtype=jnp.bfloat16), sequence(shape=(B, 1, D))
  parts = len(layer.carry_names)
  carry = tuple(rounded(sequence(7 + n, (B, H))) for n in range(parts))
  _, after = layer(x, carry=tuple(map(jnp.float32, carry)))
  params = weights(layer)
  for name in ('kernel', 'recurrent_kernel'):
    params[name] = rounded(params[name])
  _, expected = loop(layer, rounded(x), carry=carry, params=params)
  for part, expected_part in zip(after, expected, strict=True):
    np.testing.assert_allclose(part, expected_part, atol=1e-5)


def test_initialisation_is_that_of_keras():
  layer = LSTM(D, H, rngs=nnx.Rngs(0))
  limit = np.sqrt(6 / (D + 4 * H))
  assert np.abs(layer.kernel[...]).max() <= limit
  assert np.abs(layer.kernel[...]).max() > 0.9 * limit
  square = layer.recurrent_kernel[...] @ layer.recurrent_kernel[...].T
  np.testing.assert_allclose(square, np.eye(H), atol=1e-5)
  np.testing.assert_array_equal(
    layer.bias[...], np.repeat([0.0, 1.0, 0.0, 0.0], H)
  )
  gru = GRU(D, H, rngs=nnx.Rngs(0))
  assert gru.bias.shape == (2, 3 * H)
  assert not np.any(gru.bias[...])
  assert GRU(D, H, reset_after=False, rngs=nnx.Rngs(0)).bias.shape == (3 * H,)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', None])
def test_parameters_are_stored_as_asked(kind, dtype):
  """Against float32's of the same key: 2^-8, a step of bfloat16."""
  layer, wide = (make(kind, param_dtype=d) for d in (dtype, jnp.float32))
  for name, expected in weights(wide).items():
    parameter = getattr(layer, name)
    assert parameter.dtype == (dtype or jnp.float32)
    if name == 'recurrent_kernel':
      np.testing.assert_allclose(weights(layer)[name], expected, atol=2**-8)


@pytest.mark.parametrize('kind', ['lstm', 'gru'])
def test_vmap_over_stacked_parameters(kind):
  """Reference: one member after the other; 1e-6."""
  members = [
    Bidirectional(make(kind, seed=s), make(kind, seed=s + 9)) for s in (0, 1, 2)
  ]
  graphdef = nnx.split(members[0])[0]
  states = [nnx.to_pure_dict(nnx.state(m)) for m in members]
  stacked = jax.tree.map(lambda *a: jnp.stack(a), *states)
  x = sequence(shape=(3, B, T, D))
  y = jax.jit(
    jax.vmap(lambda s, x: nnx.merge(graphdef, s)(x, jnp.asarray(MASK))[0])
  )(stacked, x)
  for n, member in enumerate(members):
    expected = member(x[n], jnp.asarray(MASK))[0]
    np.testing.assert_allclose(y[n], expected, atol=1e-6)


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda lstm, x: lstm(x[0]), r'takes a sequence \(B, T, 4\), got \(5, 4\)'),
    (lambda lstm, x: lstm(x[..., :2]), r'\(B, T, 4\), got \(3, 5, 2\)'),
    (lambda lstm, x: lstm(x, jnp.ones((B, 2), bool)), r'must be \(3, 5\)'),
    (lambda lstm, x: lstm(x, carry=lstm.initial_carry(2)), r'each \(3, 6\)'),
    (lambda lstm, x: lstm(x, carry=(x[:, 0],)), r'carry \(cell, hidden\)'),
  ],
)
def test_wrong_shapes_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call(make('lstm'), sequence())


def test_wrong_layers_are_named():
  with pytest.raises(ValueError, match='forward takes 4 features, backward 3'):
    Bidirectional(make('lstm'), make('lstm', 3))
  with pytest.raises(ValueError, match='takes 4 features, the one below'):
    Stacked([make('lstm'), make('lstm')])
  with pytest.raises(ValueError, match='at least one layer'):
    Stacked([])
  with pytest.raises(ValueError, match='units must be a positive int, got 0'):
    LSTM(D, 0, rngs=nnx.Rngs(0))
  assert LSTM(1, 1, rngs=nnx.Rngs(0)).kernel.shape == (1, 4)


@pytest.mark.parametrize('module', [recurrent, attention])
def test_examples_run(module):
  results = doctest.testmod(module)
  assert results.attempted > 3
  assert results.failed == 0
