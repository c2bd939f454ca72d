"""What every backend is told about a cell, and what it is handed.

Legend: B batch, T steps, D input, H hidden, G gates (4H for LSTM, 3H for GRU).
Suffixes name the axes, so `x_btd` is (B, T, D).

A carry is what one step hands to the next: `(cell_bh, hidden_bh)` for LSTM,
`(hidden_bh,)` for GRU.

Every backend is one function of the same signature:

    run(cells, weights, x_btd, mask_bt, carries, reverse, dtype)
      -> outputs, carries

  cells    for each cell that reads the sequence, its kind: a key of KINDS
  weights  for each cell its `Weights`
  mask_bt  bool, or None
  carries  for each cell where it starts, of `sum_dtype(dtype)`
  reverse  for each cell whether it runs from the last step to the first
  dtype    what matrix products take
  outputs  for each cell (B, T, H) of `sum_dtype(dtype)`, 0 where masked

Weights, sequence, mask and carries come to it varying alike, see
`nn.varying_axes`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fer_jax.nn.dtypes import sum_dtype

Carry = tuple[jax.Array, ...]

KINDS: dict[str, tuple[int, tuple[str, ...]]] = {
  'lstm': (4, ('cell', 'hidden')),
  'gru': (3, ('hidden',)),
  'gru_reset_before': (3, ('hidden',)),
}
"""Gates of each kind and the names of its carry."""


class Weights(NamedTuple):
  """Parameters of a cell, as `LSTM` and `GRU` describe them."""

  kernel: jax.Array
  recurrent_kernel: jax.Array
  bias: jax.Array


def matmul(x: jax.Array, weights: jax.Array, dtype: Any) -> jax.Array:
  """Product over the last axis in `dtype`, summed in at least float32."""
  return jnp.matmul(
    x.astype(dtype),
    weights.astype(dtype),
    preferred_element_type=sum_dtype(dtype),
  )
