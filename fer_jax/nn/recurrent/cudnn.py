"""NVIDIA's LSTM through `jax.experimental.rnn`; float32 on CUDA alone.

See `cells` for the signature and the legend. Our gates i f g o are in cuDNN's
order; it wants the kernels transposed, of all directions before any bias, and
two biases, of which the second is 0 here.

cuDNN knows lengths, not masks, so 'auto' takes it where no mask is given. Asked
for by name, it looks at the mask when it is there: where all its rows are True
and then False, cuDNN runs, else, for the whole batch, the loop of `fused`. Both
can be in the program then, and what either keeps for its gradient.

There is no batching rule: under `jax.vmap` members run one after another, and
with masks of their own by both.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental import rnn

from fer_jax.nn import varying_axes
from fer_jax.nn.recurrent import fused
from fer_jax.nn.recurrent.cells import Carry, Weights


def run(
  cells: Sequence[str],
  weights: Sequence[Weights],
  x_btd: jax.Array,
  mask_bt: jax.Array | None,
  carries: Sequence[Carry],
  reverse: Sequence[bool],
  dtype: Any,
) -> tuple[tuple[jax.Array, ...], tuple[Carry, ...]]:
  """Runs an LSTM, or one forward beside one backward, over one sequence."""
  operands = (tuple(weights), x_btd.astype(dtype), mask_bt, tuple(carries))

  def on_cudnn(operands):
    weights, x_btd, mask_bt, carries = operands
    return _run_to_lengths(weights, x_btd, mask_bt, carries, tuple(reverse))

  def by_loop(operands):
    weights, x_btd, mask_bt, carries = operands
    return fused.run(cells, weights, x_btd, mask_bt, carries, reverse, dtype)

  if mask_bt is None:
    return on_cudnn(operands)
  padded_right = jnp.all(mask_bt[:, 1:] <= mask_bt[:, :-1])
  return lax.cond(padded_right, on_cudnn, by_loop, operands)


def _run_to_lengths(weights, x_btd, mask_bt, carries, reverse):
  batch, steps, features = x_btd.shape
  if mask_bt is None:
    length_b = jnp.full((batch,), steps, jnp.int32)
  else:
    length_b = mask_bt.sum(1, dtype=jnp.int32)
  # Alone, a backward cell is a forward one on the sequence turned round.
  alone_backwards = reverse == (True,)
  if alone_backwards:
    x_btd = _turn(x_btd, length_b)
  results: Any = _lstm(
    features,
    carries[0][0].shape[-1],
    len(reverse) == 2,
    x_btd,
    jnp.stack([carry[1] for carry in carries]),
    jnp.stack([carry[0] for carry in carries]),
    pack(weights),
    # Empty sequences are not everywhere allowed; they are put right below.
    jnp.maximum(length_b, 1),
  )
  y_bth, hidden, cell = results
  if alone_backwards:
    y_bth = _turn(y_bth, length_b)
  after = tuple(zip(cell, hidden, strict=True))
  if mask_bt is not None:
    y_bth = jnp.where(mask_bt[..., None], y_bth, 0)
    after = jax.tree.map(
      lambda new, old: jnp.where(length_b[:, None] > 0, new, old),
      after,
      carries,
    )
  return tuple(jnp.split(y_bth, len(reverse), -1)), after


def pack(weights: Sequence[Weights]) -> jax.Array:
  """All parameters in the one array that cuDNN takes."""
  kernels, biases = [], []
  for own in weights:
    kernels += [own.kernel.T, own.recurrent_kernel.T]
    biases += [own.bias, jnp.zeros_like(own.bias)]
  arrays = [array.astype(jnp.float32).ravel() for array in kernels + biases]
  return jnp.concatenate(arrays)


def _turn(x_bti: jax.Array, length_b: jax.Array) -> jax.Array:
  """Turns each row round as far as it goes; padding stays behind it."""
  places_bt = (length_b[:, None] - 1 - jnp.arange(x_bti.shape[1])[None]) % (
    x_bti.shape[1]
  )
  return jnp.take_along_axis(x_bti, places_bt[..., None], 1)


# Differentiation comes first and batching inside it: JAX cannot transpose what
# is below a custom batching rule.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _lstm(features, units, both, x_btd, hidden, cell, packed, length_b):
  operands = (x_btd, hidden, cell, packed, length_b)
  return _forward(features, units, both, *operands)[0]


def _forward(features, units, both, *operands):
  @sequential_vmap
  def forward(x_btd, hidden, cell, packed, length_b):
    return rnn.lstm_fwd(
      x_btd,
      hidden,
      cell,
      packed,
      length_b,
      input_size=features,
      hidden_size=units,
      num_layers=1,
      dropout=0.0,
      bidirectional=both,
      precision=None,
    )

  # What cuDNN gives says of itself that it is the same on all devices.
  return varying_axes.alike(forward(*operands), operands)[0]


def _backward(features, units, both, residuals, cotangents):
  @sequential_vmap
  def backward(residuals, cotangents):
    return rnn.lstm_bwd(
      features, units, 1, 0.0, both, None, residuals, cotangents
    )[:4]

  return (*backward(residuals, cotangents), None)


_lstm.defvjp(_forward, _backward)
