"""Every backend of the recurrent layers against the scan."""

import doctest
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import rnn

from fer_jax.nn import GRU, LSTM, Bidirectional
from fer_jax.nn.recurrent import choose_backend, layers
from fer_jax.nn.recurrent.backends import BACKENDS
from fer_jax.nn.recurrent.cells import KINDS, Weights, sum_dtype
from fer_jax.nn.recurrent.cudnn import pack

B, T, D, H = 3, 5, 4, 6
# Rows with gaps, a row with its padding in front, and an empty one.
MASK = np.array([[1, 0, 1, 1, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]], bool)
GAPS = MASK[[0, 0, 2]]
PADDED = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)


def problem(
  cells,
  dtype=np.float32,
  *,
  batch=B,
  steps=T,
  features=D,
  units=H,
  seed=0,
):
  """Random weights, sequence and carries; `units` of all cells or of each."""
  draw = np.random.default_rng(seed)

  def array(*shape):
    return jnp.asarray(draw.standard_normal(shape) * 0.5, dtype)

  def kernel(rows, columns):
    # Of many rows smaller, lest a long sequence makes chaos of rounding.
    return array(rows, columns) * min(1.0, math.sqrt(H / rows))

  weights, carries = [], []
  units = (units,) * len(cells) if isinstance(units, int) else units
  for cell, width in zip(cells, units, strict=True):
    gates, names = KINDS[cell]
    bias = (2, gates * width) if cell == 'gru' else (gates * width,)
    weights.append(
      Weights(
        kernel(features, gates * width),
        kernel(width, gates * width),
        array(*bias),
      )
    )
    carries.append(
      tuple(array(batch, width).astype(sum_dtype(dtype)) for _ in names)
    )
  x_btd = array(batch, steps, features)
  return tuple(weights), x_btd, tuple(carries)


def value_and_gradients(name, cells, reverse, dtype=np.float32):
  """A function of weights, sequence, carries and mask to all there is."""

  def loss(operands, mask_bt):
    weights, x_btd, carries = operands
    results = BACKENDS[name](
      cells, weights, x_btd, mask_bt, carries, reverse, dtype
    )
    # Each element has a weight of its own, so none stands in for another.
    leaves = [
      leaf.astype(sum_dtype(dtype)) for leaf in jax.tree.leaves(results)
    ]
    total = sum(
      jnp.sum(leaf * jnp.cos(1.0 + jnp.arange(leaf.size).reshape(leaf.shape)))
      for leaf in leaves
    )
    return total, results

  return jax.value_and_grad(loss, has_aux=True)


def compare(found, expected, tolerance):
  """All leaves equal to `tolerance` of the largest element of each."""
  found, expected = map(jax.tree.leaves, (found, expected))
  assert len(found) == len(expected)
  for a, b in zip(found, expected, strict=True):
    assert a.dtype == b.dtype
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = max(1.0, np.abs(b).max())
    np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=0)


# As a benchmark of the layers has it: 6 x 6 tokens of 256 channels.
TOKENS = {'batch': 4, 'steps': 36, 'features': 256, 'units': 128}
PADDED_TOKENS = np.arange(36)[None] < np.array([36, 20, 1, 0])[:, None]

CASES = [
  (('lstm', 'lstm'), (False, True), MASK, {}),
  (('gru', 'gru'), (False, True), None, {'units': (6, 3)}),
  (('gru_reset_before', 'lstm'), (False, True), MASK, {'units': (2, 5)}),
  (('gru',), (True,), MASK[:1], {'batch': 1}),
  (('lstm',), (True,), MASK[:, :1], {'steps': 1}),
  (('gru_reset_before',), (False,), None, {'units': 1}),
  (('lstm', 'lstm'), (False, True), PADDED_TOKENS, TOKENS),
  (('gru',), (False,), None, TOKENS),
]


@pytest.mark.parametrize(('cells', 'reverse', 'mask', 'shape'), CASES)
def test_fused_equals_the_scan(cells, reverse, mask, shape):
  """Values, last carries and all gradients, started from random carries; 2e-6
  of the largest."""
  operands = problem(cells, **shape)
  mask = None if mask is None else jnp.asarray(mask)
  found, expected = (
    jax.jit(value_and_gradients(name, cells, reverse))(operands, mask)
    for name in ('fused', 'scan')
  )
  compare(found, expected, 2e-6)


@pytest.mark.parametrize('cell', KINDS)
@pytest.mark.parametrize(
  ('dtype', 'tolerance'), [('bfloat16', 2e-2), ('float16', 3e-3)]
)
def test_fused_equals_the_scan_in_half_precision(cell, dtype, tolerance):
  """Both round what enters a product, and sum in float32: values to 1e-5 of
  the largest. The scan rounds sums of gradients too, to bfloat16's 2^-8 or
  float16's 2^-11."""
  cells, dtype = (cell, 'lstm'), jnp.dtype(dtype)
  operands = problem(cells, dtype)
  found, expected = (
    jax.jit(value_and_gradients(n, cells, (False, True), dtype))(
      operands, jnp.asarray(MASK)
    )
    for n in ('fused', 'scan')
  )
  (_, found_results), found_gradients = found
  (_, expected_results), expected_gradients = expected
  compare(found_results, expected_results, 1e-5)
  assert found_results[0][0].dtype == jnp.float32
  compare(found_gradients, expected_gradients, tolerance)


@pytest.mark.parametrize('cell', KINDS)
def test_fused_equals_the_scan_in_float64(cell):
  """1e-13: the formulas are the same, not only close."""
  with jax.enable_x64(True):
    operands = problem((cell,), np.float64)
    found, expected = (
      jax.jit(value_and_gradients(n, (cell,), (True,), np.float64))(
        operands, jnp.asarray(MASK)
      )
      for n in ('fused', 'scan')
    )
    assert found[0][0].dtype == np.float64
    compare(found, expected, 1e-13)


@pytest.mark.parametrize('cell', KINDS)
def test_fused_in_a_scan_over_steps_of_training(cell):
  """Three descents inside `lax.scan`, each under `jax.checkpoint`; 1e-5."""
  mask = jnp.asarray(MASK)

  def descend(name):
    gradient = value_and_gradients(name, (cell, cell), (False, True))

    def train(operands):
      def step(operands, _):
        (value, _), slopes = jax.checkpoint(gradient)(operands, mask)
        moved = jax.tree.map(lambda p, d: p - 0.01 * d, operands, slopes)
        return moved, value

      return jax.lax.scan(step, operands, length=3)

    return jax.jit(train)(problem((cell, cell)))

  compare(descend('fused'), descend('scan'), 1e-5)


@pytest.mark.parametrize('cell', KINDS)
def test_fused_under_vmap_over_parameters(cell):
  """Reference: members one by one on the scan; 2e-6 of the largest."""
  members = [problem((cell,), seed=seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
  mask = jnp.asarray(MASK)
  fused = value_and_gradients('fused', (cell,), (True,))
  scan = value_and_gradients('scan', (cell,), (True,))
  found = jax.jit(jax.vmap(fused, (0, None)))(stacked, mask)
  one = jax.jit(scan)
  for n, member in enumerate(members):
    compare(
      jax.tree.map(lambda leaf, n=n: leaf[n], found), one(member, mask), 2e-6
    )


@pytest.mark.parametrize('cell', KINDS)
def test_fused_loops_never_copy_the_sequence(cell):
  """Activations and gradients share one array: less temporary memory than two
  for each direction. A copy in the loop would also make it slow."""
  cells, steps, units, batch = (cell, cell), 40, 32, 16
  operands = problem(cells, batch=batch, steps=steps, units=units)
  compiled = (
    jax.jit(value_and_gradients('fused', cells, (False, True)))
    .lower(operands, None)
    .compile()
  )
  text = compiled.as_text()
  gates = KINDS[cell][0] * units
  whole = f'f32[{steps},{batch},{gates}]'
  inside = text[: text.index('ENTRY')]
  copies = [
    line
    for line in inside.splitlines()
    if f'= {whole}' in line and ' copy(' in line
  ]
  assert whole in inside
  assert not copies


@pytest.mark.parametrize('backend', ['scan', 'fused'])
def test_both_directions_share_one_loop(backend):
  forward, backward = (
    LSTM(D, H, backend=backend, rngs=nnx.Rngs(n)) for n in range(2)
  )
  program = jax.make_jaxpr(Bidirectional(forward, backward))(
    jnp.ones((B, T, D))
  )
  assert len(re.findall(r'= (?:scan|while)\[', str(program))) == 1


def test_without_gradients_nothing_is_kept_for_them():
  """Temporary memory of the forward pass alone is below that with gradients."""
  operands = problem(('lstm',), batch=16, steps=40, units=32)

  def outputs(operands):
    weights, x_btd, carries = operands
    return BACKENDS['fused'](
      ('lstm',), weights, x_btd, None, carries, (False,), np.float32
    )

  def memory(function, *arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  with_gradients = memory(
    value_and_gradients('fused', ('lstm',), (False,)), operands, None
  )
  assert memory(outputs, operands) < 0.7 * with_gradients


# cuDNN, with JAX's own reference implementation in its place.


def reference_forward(x, hidden, cell, packed, lengths, **sizes):
  """`rnn.lstm_fwd` by `rnn.lstm_ref`, which reads the packed weights."""
  sizes.pop('precision')
  names = ('input_size', 'hidden_size', 'num_layers', 'bidirectional')
  unpacked = rnn.unpack_lstm_weights(packed, *(sizes[n] for n in names))
  results = rnn.lstm_ref(x, hidden, cell, *unpacked, lengths, *sizes.values())
  return results, (x, hidden, cell, packed, lengths)


def reference_backward(
  input_size, hidden_size, layers, dropout, both, precision, residuals, slopes
):
  """`rnn.lstm_bwd` by differentiating `rnn.lstm_ref`."""
  *operands, lengths = residuals

  def forward(*operands):
    return reference_forward(
      *operands,
      lengths,
      input_size=input_size,
      hidden_size=hidden_size,
      num_layers=layers,
      dropout=dropout,
      bidirectional=both,
      precision=precision,
    )[0]

  return (*jax.vjp(forward, *operands)[1](slopes), None)


@pytest.fixture
def calls(monkeypatch):
  """Puts the references in the place of cuDNN; the list of calls made."""
  made = []

  def forward(*operands, **sizes):
    made.append('forward')
    return reference_forward(*operands, **sizes)

  def backward(*arguments):
    made.append('backward')
    return reference_backward(*arguments)

  monkeypatch.setattr(rnn, 'lstm_fwd', forward)
  monkeypatch.setattr(rnn, 'lstm_bwd', backward)
  return made


@pytest.mark.parametrize(
  ('cells', 'reverse', 'mask'),
  [
    (('lstm',), (False,), None),
    (('lstm',), (True,), PADDED),
    (('lstm', 'lstm'), (False, True), PADDED),
    (('lstm', 'lstm'), (False, True), GAPS),
  ],
)
def test_plumbing_of_cudnn(calls, cells, reverse, mask):
  """JAX's `rnn.lstm_ref` called as cuDNN is, against the scan: packing, turning
  round, lengths, carries; 2e-6 of the largest."""
  operands = problem(cells)
  mask = None if mask is None else jnp.asarray(mask)
  with jax.numpy_rank_promotion('allow'):
    found = jax.jit(value_and_gradients('cudnn', cells, reverse))(
      operands, mask
    )
  expected = jax.jit(value_and_gradients('scan', cells, reverse))(
    operands, mask
  )
  assert {'forward', 'backward'} <= set(calls)
  compare(found, expected, 2e-6)


@pytest.mark.parametrize('order', ['vmap of gradient', 'gradient of vmap'])
def test_members_on_cudnn_run_one_after_another(calls, order):
  """As `vmap` needs no batching rule of cuDNN; 2e-6 of the largest."""
  members = [problem(('lstm',), seed=seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
  one = value_and_gradients('cudnn', ('lstm',), (False,))

  def gradient_of_vmap(stacked):
    def total(stacked):
      run = jax.vmap(
        lambda o: BACKENDS['cudnn'](
          ('lstm',), o[0], o[1], None, o[2], (False,), np.float32
        )
      )
      leaves = jax.tree.leaves(run(stacked))
      return sum(
        jnp.sum(
          leaf * jnp.cos(1.0 + jnp.arange(leaf[0].size)).reshape(leaf[:1].shape)
        )
        for leaf in leaves
      )

    return jax.grad(total)(stacked)

  shapes = []
  forward = rnn.lstm_fwd
  rnn.lstm_fwd = lambda x, *rest, **sizes: (
    shapes.append(x.shape),
    forward(x, *rest, **sizes),
  )[1]
  with jax.numpy_rank_promotion('allow'):
    if order == 'vmap of gradient':
      found = jax.jit(jax.vmap(lambda o: one(o, None)[1]))(stacked)
    else:
      found = jax.jit(gradient_of_vmap)(stacked)
  assert set(shapes) == {(B, T, D)}
  scan = jax.jit(value_and_gradients('scan', ('lstm',), (False,)))
  for n, member in enumerate(members):
    compare(
      jax.tree.map(lambda leaf, n=n: leaf[n], found),
      scan(member, None)[1],
      2e-6,
    )


def test_packed_weights_are_what_jax_unpacks():
  """Reference: `rnn.unpack_lstm_weights`; exact."""
  weights, _, _ = problem(('lstm', 'lstm'))
  packed = pack(weights)
  assert packed.shape == (rnn.get_num_params_in_lstm(D, H, 1, True),)
  of_input, of_hidden, first, second = rnn.unpack_lstm_weights(
    packed, D, H, 1, True
  )
  for n, own in enumerate(weights):
    np.testing.assert_array_equal(of_input[n], own.kernel.T)
    np.testing.assert_array_equal(of_hidden[n], own.recurrent_kernel.T)
    np.testing.assert_array_equal(first[n] + second[n], own.bias)


@pytest.mark.skipif(
  jax.default_backend() != 'gpu', reason='needs an accelerator: an NVIDIA GPU'
)
@pytest.mark.parametrize(
  ('cells', 'reverse', 'mask'),
  [
    (('lstm',), (False,), None),
    (('lstm',), (True,), PADDED),
    (('lstm', 'lstm'), (False, True), None),
    (('lstm', 'lstm'), (False, True), PADDED),
    (('lstm', 'lstm'), (False, True), MASK),
  ],
)
def test_cudnn_equals_the_scan(cells, reverse, mask):
  """The real one, values and gradients at the highest precision; 1e-5."""
  operands = problem(cells)
  mask = None if mask is None else jnp.asarray(mask)
  with jax.default_matmul_precision('highest'):
    found, expected = (
      jax.jit(value_and_gradients(name, cells, reverse))(operands, mask)
      for name in ('cudnn', 'scan')
    )
  compare(found, expected, 1e-5)


def test_no_mask_takes_an_automatic_layer_off_its_backend(calls, monkeypatch):
  """One clip with a hole left the whole batch to another backend."""
  monkeypatch.setattr(layers, 'current_platform', lambda: 'cuda')
  lstm, x = LSTM(D, H, rngs=nnx.Rngs(0)), jnp.ones((2, 3, D))
  with jax.numpy_rank_promotion('allow'):
    lstm(x)
    assert calls == ['forward']
    program = jax.make_jaxpr(lstm)(x, jnp.ones((2, 3), bool))
  assert calls == ['forward']
  assert 'cond[' not in str(program)


# The choice.


def choice(backend='auto', **changes):
  arguments = {
    'platform': 'cpu',
    'cells': ['lstm', 'lstm'],
    'units': [6, 6],
    'dtype': jnp.float32,
    'masked': False,
  }
  return choose_backend(backend, **(arguments | changes))


def test_choice_by_platform():
  assert (
    choice() == choice(platform='tpu') == choice(platform='rocm') == 'fused'
  )
  assert choice(platform='cuda') == 'cudnn'
  assert choice(platform='cuda', cells=['gru'], units=[6]) == 'fused'
  assert choice(platform='cuda', dtype=jnp.bfloat16) == 'fused'
  assert choice(platform='cuda', units=[6, 3]) == 'fused'
  assert choice(platform='cuda', masked=True) == 'fused'
  assert choice('cudnn', platform='cuda', masked=True) == 'cudnn'
  for precision in ('bfloat16', 'F32_F32_F32', 'BF16_BF16_F32'):
    with jax.default_matmul_precision(precision):
      assert choice(platform='cuda') == 'fused'
  for precision in ('highest', 'float32', 'high', 'tensorfloat32'):
    with jax.default_matmul_precision(precision):
      assert choice(platform='cuda') == 'cudnn'
  for name in ('scan', 'fused'):
    assert choice(name, platform='cuda') == name


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    (lambda: choice('fusd'), "did you mean 'fused'"),
    (lambda: choice('SCAN'), "did you mean 'scan'"),
    (lambda: choice('pallas'), 'none of auto, scan, fused, cudnn, which lstm'),
    (lambda: choice('cudnn'), "this is cpu; here 'auto', 'scan' and 'fused'"),
    (
      lambda: choice('cudnn', cells=['gru']),
      'none of auto, scan, fused, which',
    ),
    (
      lambda: choice('cudnn', platform='cuda', dtype=jnp.bfloat16),
      'in float32, not bfloat16',
    ),
    (lambda: choice('cudnn', platform='cuda', units=[6, 3]), r'not \[6, 3\]'),
    (lambda: LSTM(D, H, backend='scam', rngs=nnx.Rngs(0)), "mean 'scan'"),
    (lambda: GRU(D, H, backend='cudnn', rngs=nnx.Rngs(0)), 'which gru can run'),
    (
      lambda: LSTM(D, H, backend='cudnn', rngs=nnx.Rngs(0))(
        jnp.ones((1, 2, D))
      ),
      'needs an NVIDIA GPU',
    ),
    (
      lambda: Bidirectional(
        LSTM(D, H, backend='scan', rngs=nnx.Rngs(0)),
        LSTM(D, H, rngs=nnx.Rngs(0)),
      ),
      "forward has backend 'scan', backward 'auto'",
    ),
  ],
)
def test_wrong_backends_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_a_layer_runs_on_the_backend_it_names(monkeypatch):
  made = []
  for name, run in BACKENDS.items():
    monkeypatch.setitem(
      BACKENDS,
      name,
      lambda *arguments, name=name, run=run: (
        made.append(name),
        run(*arguments),
      )[1],
    )
  x = jnp.ones((1, 2, D))
  for cls, backend in itertools.product((LSTM, GRU), ('auto', 'scan', 'fused')):
    cls(D, H, backend=backend, rngs=nnx.Rngs(0))(x)
  assert made == ['fused', 'scan', 'fused'] * 2


def test_examples_run():
  results = doctest.testmod(layers)
  assert results.attempted > 10
  assert results.failed == 0
