"""The plain backend: `lax.scan` over steps, differentiated by JAX.

The oracle that the others are tested against. It is the one for forward mode
(`jax.jvp`, `jax.hessian`). See `cells` for the signature and the legend.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.nn.recurrent.cells import Carry, Weights, matmul

Step = Callable[[Carry, jax.Array], Carry]


def run(
  cells: Sequence[str],
  weights: Sequence[Weights],
  x_btd: jax.Array,
  mask_bt: jax.Array | None,
  carries: Sequence[Carry],
  reverse: Sequence[bool],
  dtype: Any,
) -> tuple[tuple[jax.Array, ...], tuple[Carry, ...]]:
  """Runs cells side by side over one sequence, each in its own direction.

  A cell that runs backwards gets the sequence turned round, so all take their
  steps in the same iteration and the cost of a step's dispatch is paid once.
  """
  gates, masks, steps = [], [], []
  for cell, own, backwards in zip(cells, weights, reverse, strict=True):
    x_tbd = jnp.swapaxes(jnp.flip(x_btd, 1) if backwards else x_btd, 0, 1)
    gates_tbg = matmul(x_tbd, own.kernel, dtype)
    bias = own.bias[0] if cell == 'gru' else own.bias
    gates.append(gates_tbg + bias.astype(gates_tbg.dtype)[None, None])
    steps.append(STEPS[cell](own, dtype))
    if mask_bt is not None:
      mask_bt1 = (jnp.flip(mask_bt, 1) if backwards else mask_bt)[..., None]
      masks.append(jnp.swapaxes(mask_bt1, 0, 1))

  def step_all(carries, inputs):
    gates, masks = inputs
    after, outputs = [], []
    for n, (step, carry) in enumerate(zip(steps, carries, strict=True)):
      new = step(carry, gates[n])
      output = new[-1]
      if masks:
        new = tuple(
          jnp.where(masks[n], moved, stayed)
          for moved, stayed in zip(new, carry, strict=True)
        )
        output = jnp.where(masks[n], output, 0)
      after.append(new)
      outputs.append(output)
    return tuple(after), tuple(outputs)

  after, outputs = lax.scan(
    step_all, tuple(carries), (tuple(gates), tuple(masks))
  )
  outputs_bth = tuple(
    jnp.swapaxes(jnp.flip(y_tbh, 0) if backwards else y_tbh, 0, 1)
    for y_tbh, backwards in zip(outputs, reverse, strict=True)
  )
  return outputs_bth, after


def _lstm(weights: Weights, dtype: Any) -> Step:
  def step(carry, gates_bg):
    cell_bh, hidden_bh = carry
    gates_bg = gates_bg + matmul(hidden_bh, weights.recurrent_kernel, dtype)
    i, f, g, o = jnp.split(gates_bg, 4, -1)
    keep, write = jax.nn.sigmoid(f), jax.nn.sigmoid(i)
    cell_bh = keep * cell_bh + write * jnp.tanh(g)
    return cell_bh, jax.nn.sigmoid(o) * jnp.tanh(cell_bh)

  return step


def _gru(weights: Weights, dtype: Any) -> Step:
  bias_1g = weights.bias[1][None]

  def step(carry, gates_bg):
    (hidden_bh,) = carry
    h = hidden_bh.shape[-1]
    inner_bg = matmul(hidden_bh, weights.recurrent_kernel, dtype)
    inner_bg = inner_bg + bias_1g.astype(inner_bg.dtype)
    zr = jax.nn.sigmoid(gates_bg[:, : 2 * h] + inner_bg[:, : 2 * h])
    z, r = jnp.split(zr, 2, -1)
    g = jnp.tanh(gates_bg[:, 2 * h :] + r * inner_bg[:, 2 * h :])
    return (z * hidden_bh + (1 - z) * g,)

  return step


def _gru_reset_before(weights: Weights, dtype: Any) -> Step:
  def step(carry, gates_bg):
    (hidden_bh,) = carry
    h = hidden_bh.shape[-1]
    recurrent_hg = weights.recurrent_kernel
    inner_bg = matmul(hidden_bh, recurrent_hg[:, : 2 * h], dtype)
    z, r = jnp.split(jax.nn.sigmoid(gates_bg[:, : 2 * h] + inner_bg), 2, -1)
    inner_bh = matmul(r * hidden_bh, recurrent_hg[:, 2 * h :], dtype)
    g = jnp.tanh(gates_bg[:, 2 * h :] + inner_bh)
    return (z * hidden_bh + (1 - z) * g,)

  return step


STEPS: dict[str, Callable[[Weights, Any], Step]] = {
  'lstm': _lstm,
  'gru': _gru,
  'gru_reset_before': _gru_reset_before,
}
"""For each kind, from weights: a carry and a step's gates to the next carry."""
