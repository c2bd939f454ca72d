"""The fast backend: a loop with a backward pass written by hand.

See `cells` for the signature and the legend. What differs from `scan`:

- The loop forward keeps the activated gates. They replace, step by step, the
  input's share of the gates in the same array; the loop backward replaces them
  by their gradients. These arrays are most of the memory, and there is one of
  them a cell.
- The loop backward has one matrix product a step. Gradients of all weights and
  of the input are products over all steps at once, after it.
- A cell that runs backwards counts down; nothing is turned round.
- The sigmoids of a step are one tanh with each other: sigmoid(x) is
  (1 + tanh(x / 2)) / 2, and the halves are in the weights from the start.

Reverse mode only: `jax.jvp` and what builds on it need `scan`.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fer_jax.nn import varying_axes
from fer_jax.nn.dtypes import sum_dtype
from fer_jax.nn.recurrent.cells import (
  KINDS,
  Carry,
  Weights,
  matmul,
)


class _Kept(NamedTuple):
  """What the loop forward writes for one cell.

  Attributes:
    gates_tbg: the input's share of the gates, then activations, then gradients.
    inner_tbh: a further array of the GRUs, see there; None for LSTM.
    carries: before and after all steps, each (T + 1, B, H) in order of time, so
      a cell that runs backwards starts from the last; or without gradients the
      hidden state after each step, (T, B, H), alone.
  """

  gates_tbg: jax.Array
  inner_tbh: jax.Array | None
  carries: tuple[jax.Array, ...]


def run(
  cells: Sequence[str],
  weights: Sequence[Weights],
  x_btd: jax.Array,
  mask_bt: jax.Array | None,
  carries: Sequence[Carry],
  reverse: Sequence[bool],
  dtype: Any,
) -> tuple[tuple[jax.Array, ...], tuple[Carry, ...]]:
  """Runs cells side by side over one sequence, each in its own direction."""
  return _run(
    tuple(cells),
    tuple(reverse),
    jnp.dtype(dtype),
    tuple(weights),
    x_btd,
    mask_bt,
    tuple(carries),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _run(cells, reverse, dtype, weights, x_btd, mask_bt, carries):
  outputs, after, _ = _loop_forward(
    cells, reverse, dtype, weights, x_btd, mask_bt, carries, keep=False
  )
  return outputs, after


def _forward(cells, reverse, dtype, weights, x_btd, mask_bt, carries):
  outputs, after, kept = _loop_forward(
    cells, reverse, dtype, weights, x_btd, mask_bt, carries, keep=True
  )
  return (outputs, after), (weights, x_btd, mask_bt, carries, kept)


def _backward(cells, reverse, dtype, residuals, cotangents):
  weights, x_btd, mask_bt, carries, kept = residuals
  d_outputs, d_after = cotangents
  if mask_bt is not None:
    d_outputs = [jnp.where(mask_bt[..., None], dy, 0) for dy in d_outputs]
  kept, d_carries = _loop_backward(
    cells, reverse, dtype, weights, mask_bt, kept, d_outputs, d_after
  )
  x_tbd = jnp.swapaxes(x_btd, 0, 1)
  dx_tbd = sum(
    matmul(own.gates_tbg, layer.kernel.T, dtype)
    for own, layer in zip(kept, weights, strict=True)
  )
  d_weights = []
  for cell, layer, own, backwards in zip(
    cells, weights, kept, reverse, strict=True
  ):
    hidden = own.carries[-1]
    recurrent, bias = _CELLS[cell].weight_gradients(
      own, hidden[1:] if backwards else hidden[:-1], dtype
    )
    d_weights.append(
      Weights(
        _over_steps(x_tbd, own.gates_tbg, dtype).astype(layer.kernel.dtype),
        recurrent.astype(layer.recurrent_kernel.dtype),
        bias.astype(layer.bias.dtype),
      )
    )
  d_carries = jax.tree.map(lambda d, c: d.astype(c.dtype), d_carries, carries)
  dx_btd = jnp.swapaxes(dx_tbd, 0, 1).astype(x_btd.dtype)
  return tuple(d_weights), dx_btd, None, d_carries


_run.defvjp(_forward, _backward)


def _loop_forward(
  cells, reverse, dtype, weights, x_btd, mask_bt, carries, *, keep
):
  """Outputs, last carries, and for each cell its `_Kept`."""
  steps = x_btd.shape[1]
  x_tbd = jnp.swapaxes(x_btd, 0, 1)
  mask_tb1 = _mask_by_step(mask_bt)
  maths = [
    _CELLS[cell](layer, dtype)
    for cell, layer in zip(cells, weights, strict=True)
  ]
  kept = []
  for cell, own, carry, backwards in zip(
    cells, maths, carries, reverse, strict=True
  ):
    hidden_tbh = jnp.zeros((steps, *carry[-1].shape), carry[-1].dtype)
    hidden_tbh, _ = varying_axes.alike(hidden_tbh, carry)
    inner_tbh, stacks = None, (hidden_tbh,)
    if keep:
      start = steps if backwards else 0
      stacks = tuple(
        jnp.zeros((steps + 1, *part.shape), part.dtype).at[start].set(part)
        for part in carry
      )
      inner_tbh = None if cell == 'lstm' else hidden_tbh
    gates_tbg = matmul(x_tbd, own.kernel, dtype)
    kept.append(_Kept(gates_tbg, inner_tbh, stacks))

  def body(i, state):
    kept, carries = [], []
    for own, backwards, (was, carry) in zip(
      maths, reverse, zip(*state, strict=True), strict=True
    ):
      t = steps - 1 - i if backwards else i
      active_bg, inner_bh, after = own.forward(_at(was.gates_tbg, t), carry)
      if mask_tb1 is not None:
        mask_b1 = _at(mask_tb1, t)
        after = tuple(
          jnp.where(mask_b1, moved, stayed)
          for moved, stayed in zip(after, carry, strict=True)
        )
      carries.append(after)
      if keep:
        slot = t if backwards else t + 1
        is_now = _Kept(
          _put(was.gates_tbg, active_bg, t),
          None if was.inner_tbh is None else _put(was.inner_tbh, inner_bh, t),
          tuple(
            _put(stack, part, slot)
            for stack, part in zip(was.carries, after, strict=True)
          ),
        )
      else:
        is_now = was._replace(carries=(_put(was.carries[0], after[-1], t),))
      kept.append(is_now)
    return tuple(kept), tuple(carries)

  kept, after = lax.fori_loop(0, steps, body, (tuple(kept), tuple(carries)))
  outputs = []
  for own, backwards in zip(kept, reverse, strict=True):
    hidden_tbh = own.carries[-1]
    if keep:
      hidden_tbh = hidden_tbh[:-1] if backwards else hidden_tbh[1:]
    y_bth = jnp.swapaxes(hidden_tbh, 0, 1)
    if mask_bt is not None:
      y_bth = jnp.where(mask_bt[..., None], y_bth, 0)
    outputs.append(y_bth)
  return tuple(outputs), after, kept


def _loop_backward(
  cells, reverse, dtype, weights, mask_bt, kept, d_outputs, d_after
):
  """`_Kept` with gradients in the place of gates, and those of the carries."""
  steps = kept[0].gates_tbg.shape[0]
  mask_tb1 = _mask_by_step(mask_bt)
  dy_tbh = [jnp.swapaxes(dy_bth, 0, 1) for dy_bth in d_outputs]
  maths = [
    _CELLS[cell](layer, dtype)
    for cell, layer in zip(cells, weights, strict=True)
  ]

  def body(j, state):
    arrays, d_carries = [], []
    for n, (array, now, d_carry) in enumerate(zip(*state, strict=True)):
      backwards = reverse[n]
      t = j if backwards else steps - 1 - j
      before, after = (t + 1, t) if backwards else (t, t + 1)
      # Where a step is masked, its gradient passes by all of the step.
      passing = None
      if mask_tb1 is not None:
        mask_b1 = _at(mask_tb1, t)
        passing = [jnp.where(mask_b1, 0, part) for part in d_carry]
        d_carry = tuple(jnp.where(mask_b1, part, 0) for part in d_carry)
      *d_cell, d_hidden = d_carry
      d_hidden = d_hidden + _at(dy_tbh[n], t)
      new, d_carry = maths[n].backward(
        now,
        tuple(_at(stack, before) for stack in kept[n].carries),
        tuple(_at(stack, after) for stack in kept[n].carries),
        (*d_cell, d_hidden),
      )
      if passing is not None:
        d_carry = tuple(
          part + by for part, by in zip(d_carry, passing, strict=True)
        )
      d_carries.append(d_carry)
      arrays.append(jax.tree.map(functools.partial(_put, t=t), array, new))
    arrays = tuple(arrays)
    # Read an iteration ahead, after the writes: were they read in the iteration
    # that takes their place, XLA would copy the whole array to be safe.
    return arrays, activations(arrays, j + 1), tuple(d_carries)

  def activations(arrays, j):
    return tuple(
      jax.tree.map(
        functools.partial(_at, t=j if backwards else steps - 1 - j), own
      )
      for own, backwards in zip(arrays, reverse, strict=True)
    )

  arrays = tuple((own.gates_tbg, own.inner_tbh) for own in kept)
  # Of GRUs too the gradient has two parts: of one array, added a step later.
  d_carries = tuple(
    part if len(part) > 1 else (jnp.zeros_like(part[0]), *part)
    for part in d_after
  )
  arrays, _, d_carries = lax.fori_loop(
    0, steps, body, (arrays, activations(arrays, 0), d_carries)
  )
  d_carries = tuple(
    parts if len(own.carries) > 1 else (parts[0] + parts[1],)
    for own, parts in zip(kept, d_carries, strict=True)
  )
  kept = [
    own._replace(gates_tbg=gates_tbg, inner_tbh=inner_tbh)
    for own, (gates_tbg, inner_tbh) in zip(kept, arrays, strict=True)
  ]
  return kept, d_carries


class _Lstm:
  """Steps of an LSTM."""

  def __init__(self, weights: Weights, dtype: Any):
    self.dtype = dtype
    self.kernel, self.recurrent_kernel, bias = _halved(weights, (1, 1, 0, 1))
    self.bias_1g = bias.astype(sum_dtype(dtype))[None]
    self.transposed_gh = weights.recurrent_kernel.T

  def forward(self, gates_bg, carry):
    """Activations, what to keep besides, and the next carry."""
    cell_bh, hidden_bh = carry
    inner_bg = matmul(hidden_bh, self.recurrent_kernel, self.dtype)
    active_bg = jnp.tanh(gates_bg + (inner_bg + self.bias_1g))
    i, f, g, o = jnp.split(active_bg, 4, -1)
    cell_bh = _sigmoid(f) * cell_bh + _sigmoid(i) * g
    return active_bg, None, (cell_bh, _sigmoid(o) * jnp.tanh(cell_bh))

  def backward(self, active, before, after, d_carry):
    """Gradients of the gates beside what to keep, and those of the carry."""
    d_cell, d_hidden = d_carry
    i, f, g, o = jnp.split(active[0], 4, -1)
    i, f, o = _sigmoid(i), _sigmoid(f), _sigmoid(o)
    squashed = jnp.tanh(after[0])
    d_cell = d_cell + d_hidden * o * (1 - squashed * squashed)
    kept = d_cell * f
    d_gates_bg = jnp.concatenate(
      [
        d_cell * g * i * (1 - i),
        kept * before[0] * (1 - f),
        d_cell * i * (1 - g * g),
        d_hidden * squashed * o * (1 - o),
      ],
      -1,
    )
    d_before = matmul(d_gates_bg, self.transposed_gh, self.dtype)
    return (d_gates_bg, None), (kept, d_before)

  @staticmethod
  def weight_gradients(kept, hidden_tbh, dtype):
    """Gradients of recurrent kernel and bias."""
    return (
      _over_steps(hidden_tbh, kept.gates_tbg, dtype),
      kept.gates_tbg.sum((0, 1)),
    )


class _Gru:
  """Steps of a GRU that resets after the product.

  Kept besides: the candidate's share of the hidden state before the reset, and
  in its place the gradient of that.
  """

  def __init__(self, weights: Weights, dtype: Any):
    self.dtype = dtype
    self.kernel, self.recurrent_kernel, bias = _halved(weights, (1, 1, 0))
    self.bias_2g = bias.astype(sum_dtype(dtype))
    self.transposed_gh = weights.recurrent_kernel.T

  def forward(self, gates_bg, carry):
    """As for `_Lstm`."""
    (hidden_bh,) = carry
    h = hidden_bh.shape[-1]
    inner_bg = matmul(hidden_bh, self.recurrent_kernel, self.dtype)
    inner_bg = inner_bg + self.bias_2g[1:]
    gates_bg = gates_bg + self.bias_2g[:1]
    zr = jnp.tanh(gates_bg[:, : 2 * h] + inner_bg[:, : 2 * h])
    z, r = map(_sigmoid, jnp.split(zr, 2, -1))
    inner_bh = inner_bg[:, 2 * h :]
    g = jnp.tanh(gates_bg[:, 2 * h :] + r * inner_bh)
    active_bg = jnp.concatenate([zr, g], -1)
    return active_bg, inner_bh, (z * hidden_bh + (1 - z) * g,)

  def backward(self, active, before, after, d_carry):
    """As for `_Lstm`."""
    del after
    d_hidden = d_carry[0] + d_carry[1]
    active_bg, inner_bh = active
    z, r, g = jnp.split(active_bg, 3, -1)
    z, r = _sigmoid(z), _sigmoid(r)
    kept = d_hidden * z
    d_g = (d_hidden - kept) * (1 - g * g)
    d_inner = d_g * r
    d_z = kept * (before[0] - g) * (1 - z)
    d_r = d_inner * inner_bh * (1 - r)
    d_product = matmul(
      jnp.concatenate([d_z, d_r, d_inner], -1), self.transposed_gh, self.dtype
    )
    d_gates_bg = jnp.concatenate([d_z, d_r, d_g], -1)
    return (d_gates_bg, d_inner), (kept, d_product)

  @staticmethod
  def weight_gradients(kept, hidden_tbh, dtype):
    """As for `_Lstm`."""
    h = hidden_tbh.shape[-1]
    recurrent_hg = jnp.concatenate(
      [
        _over_steps(hidden_tbh, kept.gates_tbg[..., : 2 * h], dtype),
        _over_steps(hidden_tbh, kept.inner_tbh, dtype),
      ],
      -1,
    )
    of_input = kept.gates_tbg.sum((0, 1))
    of_hidden = jnp.concatenate([of_input[: 2 * h], kept.inner_tbh.sum((0, 1))])
    return recurrent_hg, jnp.stack([of_input, of_hidden])


class _GruResetBefore:
  """Steps of a GRU that resets before the product.

  Kept besides: the hidden state after the reset.
  """

  def __init__(self, weights: Weights, dtype: Any):
    self.dtype = dtype
    self.kernel, recurrent_hg, bias = _halved(weights, (1, 1, 0))
    h = recurrent_hg.shape[0]
    self.of_zr, self.of_g = recurrent_hg[:, : 2 * h], recurrent_hg[:, 2 * h :]
    self.bias_1g = bias.astype(sum_dtype(dtype))[None]
    transposed_gh = weights.recurrent_kernel.T
    self.transposed_zr = transposed_gh[: 2 * h]
    self.transposed_g = transposed_gh[2 * h :]

  def forward(self, gates_bg, carry):
    """As for `_Lstm`."""
    (hidden_bh,) = carry
    h = hidden_bh.shape[-1]
    gates_bg = gates_bg + self.bias_1g
    inner_bg = matmul(hidden_bh, self.of_zr, self.dtype)
    zr = jnp.tanh(gates_bg[:, : 2 * h] + inner_bg)
    z, r = map(_sigmoid, jnp.split(zr, 2, -1))
    reset_bh = r * hidden_bh
    g = gates_bg[:, 2 * h :] + matmul(reset_bh, self.of_g, self.dtype)
    g = jnp.tanh(g)
    active_bg = jnp.concatenate([zr, g], -1)
    return active_bg, reset_bh, (z * hidden_bh + (1 - z) * g,)

  def backward(self, active, before, after, d_carry):
    """As for `_Lstm`."""
    del after
    d_hidden = d_carry[0] + d_carry[1]
    active_bg, inner_bh = active
    z, r, g = jnp.split(active_bg, 3, -1)
    z, r = _sigmoid(z), _sigmoid(r)
    kept = d_hidden * z
    d_g = (d_hidden - kept) * (1 - g * g)
    through = matmul(d_g, self.transposed_g, self.dtype) * r
    d_z = kept * (before[0] - g) * (1 - z)
    d_r = through * before[0] * (1 - r)
    d_zr = jnp.concatenate([d_z, d_r], -1)
    d_product = matmul(d_zr, self.transposed_zr, self.dtype)
    d_gates_bg = jnp.concatenate([d_zr, d_g], -1)
    return (d_gates_bg, inner_bh), (kept + through, d_product)

  @staticmethod
  def weight_gradients(kept, hidden_tbh, dtype):
    """As for `_Lstm`."""
    h = hidden_tbh.shape[-1]
    recurrent_hg = jnp.concatenate(
      [
        _over_steps(hidden_tbh, kept.gates_tbg[..., : 2 * h], dtype),
        _over_steps(kept.inner_tbh, kept.gates_tbg[..., 2 * h :], dtype),
      ],
      -1,
    )
    return recurrent_hg, kept.gates_tbg.sum((0, 1))


_CELLS = {'lstm': _Lstm, 'gru': _Gru, 'gru_reset_before': _GruResetBefore}
assert _CELLS.keys() == KINDS.keys()


def _halved(weights: Weights, sigmoids: Sequence[int]) -> Weights:
  """With the gates that are sigmoids halved, see `_sigmoid`; exact."""
  units = weights.recurrent_kernel.shape[0]
  half_g = jnp.repeat(jnp.where(jnp.array(sigmoids) == 1, 0.5, 1.0), units)

  def scale(array):
    shape = (1,) * (array.ndim - 1) + half_g.shape
    return array * half_g.astype(array.dtype).reshape(shape)

  return Weights(*map(scale, weights))


def _sigmoid(tanh_of_half):
  """sigmoid(x) from tanh(x / 2)."""
  return 0.5 * tanh_of_half + 0.5


def _over_steps(a_tbi, b_tbj, dtype):
  """Sum over steps and batch of a b', (I, J), in `dtype` as `matmul` does."""
  return lax.dot_general(
    a_tbi.reshape(-1, a_tbi.shape[-1]).astype(dtype),
    b_tbj.reshape(-1, b_tbj.shape[-1]).astype(dtype),
    (((0,), (0,)), ((), ())),
    preferred_element_type=sum_dtype(dtype),
  )


def _mask_by_step(mask_bt):
  return None if mask_bt is None else jnp.swapaxes(mask_bt, 0, 1)[..., None]


def _at(array, t):
  """`array[t]`, without the code that negative indices cost."""
  return lax.dynamic_index_in_dim(
    array, t, keepdims=False, allow_negative_indices=False
  )


def _put(array, value, t):
  return lax.dynamic_update_index_in_dim(
    array, value, t, 0, allow_negative_indices=False
  )
