"""Whole-sequence recurrent layers.

Legend: B batch, T steps, D input, H hidden, G gates (4H for LSTM, 3H for GRU).
Suffixes name the axes, so `x_btd` is (B, T, D).

A carry is what one step hands to the next: `(cell_bh, hidden_bh)` for LSTM,
`(hidden_bh,)` for GRU. Every layer takes one and returns one, so a sequence
may be fed in pieces, down to single steps, with the result of feeding it whole.

A layer's `backend` says what computes it, see `choose_backend`: 'scan' is
`lax.scan` as JAX differentiates it; 'fused' is a loop with its own backward
pass, faster and in reverse mode only (so `jax.grad`, not `jax.jvp`); 'cudnn' is
NVIDIA's LSTM; 'auto' is the fastest of them where the layer is traced, without
a mask 'cudnn' if it can run.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.nn import arguments, varying_axes
from fer_jax.nn.dropout import Dropout
from fer_jax.nn.dtypes import as_bool, sum_dtype
from fer_jax.nn.initializers import orthogonal
from fer_jax.nn.platforms import current_platform
from fer_jax.nn.recurrent import backends
from fer_jax.nn.recurrent.cells import KINDS, Carry, Weights


class _Cell(nnx.Module):
  """What LSTM and GRU share: parameters, and the call over a sequence."""

  in_features: int
  out_features: int
  units: int
  carry_names: tuple[str, ...]

  def __init__(
    self,
    in_features: int,
    units: int,
    *,
    kind: str,
    bias: Callable[[Any], jax.Array],
    dtype: Any,
    param_dtype: Any,
    kernel_init: Callable[..., jax.Array] | None,
    recurrent_init: Callable[..., jax.Array] | None,
    backend: str,
    rngs: nnx.Rngs,
  ):
    backends.check_backend(backend, kind)
    gates, _ = KINDS[kind]
    in_features = arguments.positive('in_features', in_features)
    units = arguments.positive('units', units)
    self.kernel = arguments.parameter(
      'kernel',
      kernel_init or nnx.initializers.glorot_uniform(),
      rngs,
      (in_features, gates * units),
      param_dtype,
    )
    self.recurrent_kernel = arguments.parameter(
      'recurrent_kernel',
      recurrent_init or orthogonal,
      rngs,
      (units, gates * units),
      param_dtype,
    )
    self.bias = nnx.Param(bias(self.kernel.dtype))
    self.in_features = in_features
    self.units = self.out_features = units
    self.dtype = arguments.floating('dtype', dtype)
    self.kind = kind
    self.backend = backend

  def compute_dtype(self, x: jax.Array) -> Any:
    """What matrix products take; carries are at least float32."""
    return self.dtype or jnp.result_type(x, self.kernel[...])

  def weights(self) -> Weights:
    """The parameters, for a backend."""
    return Weights(self.kernel[...], self.recurrent_kernel[...], self.bias[...])

  def initial_carry(self, batch: int, dtype: Any = jnp.float32) -> Carry:
    """Zeros, one (B, H) array for each of `carry_names`."""
    shape = (batch, self.units)
    return tuple(jnp.zeros(shape, dtype) for _ in self.carry_names)

  def final_hidden(self, carry: Carry) -> jax.Array:
    """The hidden state (B, H) of a returned carry."""
    return carry[-1]

  def __call__(
    self,
    x_btd: jax.Array,
    mask_bt: jax.Array | None = None,
    *,
    carry: Carry | None = None,
    reverse: bool = False,
  ) -> tuple[jax.Array, Carry]:
    """Runs over the whole sequence.

    Args:
      x_btd: the sequence.
      mask_bt: True for steps that count, or None for all. At the others the
        carry passes through and the output is 0, whatever the sequence holds
        there, NaN included.
      carry: where to start; None is zeros. Must be `carry_names`, each (B, H).
      reverse: whether to run from the last step to the first. Outputs stay at
        the place of their inputs (Keras' `go_backwards` turns them round).

    Returns:
      Outputs (B, T, H) of the dtype computed in, and the carry after the last
      step taken, of at least float32.

    Raises:
      ValueError: for shapes that do not fit.
    """
    (y_bth,), (carry,) = _run(
      (self,),
      x_btd,
      mask_bt,
      (carry,),
      (arguments.flag('reverse', reverse),),
    )
    return y_bth, carry


class LSTM(_Cell):
  """Long short-term memory over a whole sequence.

      i, f, o = sigmoid(...)    g = tanh(...)    each of x_t W + h_(t-1) U + b
      c_t = f c_(t-1) + i g     h_t = o tanh(c_t)

  Parameters as in Keras: `kernel` (D, 4H), `recurrent_kernel` (H, 4H) and one
  `bias` (4H,), gates in the order i f g o.

  Examples:

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from fer_jax.nn import LSTM
    >>> lstm = LSTM(in_features=3, units=4, rngs=nnx.Rngs(0))
    >>> clip = jnp.ones((2, 6, 3))
    >>> outputs, (cell, hidden) = jax.jit(lstm)(clip)
    >>> outputs.shape, cell.shape
    ((2, 6, 4), (2, 4))

    Fed step by step, it says the same:

    >>> carry = None
    >>> for t in range(6):
    ...   output, carry = lstm(clip[:, t : t + 1], carry=carry)
    >>> bool(jnp.allclose(output[:, 0], outputs[:, -1], atol=1e-6))
    True

    As a pure function of its parameters:

    >>> graphdef, params = nnx.split(lstm)
    >>> loss = lambda params: nnx.merge(graphdef, params)(clip)[0].sum()
    >>> jax.grad(loss)(params)['recurrent_kernel'].shape
    (4, 16)

  Args:
    in_features: D.
    units: H.
    dtype: what matrix products take, such as bfloat16; None takes that of
      input and parameters. Sums, gates and carries are at least float32.
    param_dtype: what to store parameters in.
    kernel_init: of `kernel`; None is Glorot uniform.
    recurrent_init: of `recurrent_kernel`; None is orthogonal.
    backend: 'auto', 'scan', 'fused' or 'cudnn', see this module.
    rngs: the stream `params` draws the parameters. The bias starts at 1 for the
      forget gate and 0 elsewhere.

  Source: Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al.
  (2000).
  """

  carry_names = KINDS['lstm'][1]

  def __init__(
    self,
    in_features: int,
    units: int,
    *,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    kernel_init: Callable[..., jax.Array] | None = None,
    recurrent_init: Callable[..., jax.Array] | None = None,
    backend: str = 'auto',
    rngs: nnx.Rngs,
  ):
    super().__init__(
      in_features,
      units,
      kind='lstm',
      bias=lambda dtype: jnp.repeat(jnp.array([0, 1, 0, 0], dtype), units),
      dtype=dtype,
      param_dtype=param_dtype,
      kernel_init=kernel_init,
      recurrent_init=recurrent_init,
      backend=backend,
      rngs=rngs,
    )


class GRU(_Cell):
  """Gated recurrent unit over a whole sequence.

      z, r = sigmoid(...)     each of x_t W + h_(t-1) U + b
      g = tanh(x_t W_g + b_g + r (h_(t-1) U_g + b'_g))       reset_after
      g = tanh(x_t W_g + b_g + (r h_(t-1)) U_g)              otherwise
      h_t = z h_(t-1) + (1 - z) g

  Parameters as in Keras: `kernel` (D, 3H), `recurrent_kernel` (H, 3H), gates in
  the order z r g, and `bias` (2, 3H), of the input and of the hidden state,
  or (3H,) without `reset_after`.

  Example:

    >>> import jax, jax.numpy as jnp
    >>> from flax import nnx
    >>> from fer_jax.nn import GRU
    >>> gru = GRU(in_features=3, units=4, rngs=nnx.Rngs(0))
    >>> mask = jnp.array([[True, True, False], [True, True, True]])
    >>> outputs, (hidden,) = jax.jit(gru)(jnp.ones((2, 3, 3)), mask)
    >>> outputs.shape, float(jnp.abs(outputs[0, 2]).max())
    ((2, 3, 4), 0.0)

  Args:
    in_features, units, dtype, param_dtype: as for `LSTM`.
    kernel_init, recurrent_init, rngs: as for `LSTM`; the bias starts at 0.
    backend: 'auto', 'scan' or 'fused', see this module.
    reset_after: whether the reset gate acts after the recurrent product (as
      in cuDNN, torch and today's Keras) or before it (the original).

  Source: Cho et al., arXiv 1406.1078; with `reset_after`, v3's variant as cuDNN
  has it.
  """

  carry_names = KINDS['gru'][1]

  def __init__(
    self,
    in_features: int,
    units: int,
    *,
    reset_after: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    kernel_init: Callable[..., jax.Array] | None = None,
    recurrent_init: Callable[..., jax.Array] | None = None,
    backend: str = 'auto',
    rngs: nnx.Rngs,
  ):
    reset_after = arguments.flag('reset_after', reset_after)
    super().__init__(
      in_features,
      units,
      kind='gru' if reset_after else 'gru_reset_before',
      bias=lambda dtype: jnp.zeros(
        (2, 3 * units) if reset_after else (3 * units,), dtype
      ),
      dtype=dtype,
      param_dtype=param_dtype,
      kernel_init=kernel_init,
      recurrent_init=recurrent_init,
      backend=backend,
      rngs=rngs,
    )
    self.reset_after = reset_after


class Bidirectional(nnx.Module):
  """Two layers over one sequence, one from each end, in one loop.

  Outputs are beside each other, forward first. The carry is
  `(forward carry, backward carry)`.

  Example:

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from fer_jax.nn import LSTM, Bidirectional
    >>> rngs = nnx.Rngs(0)
    >>> both = Bidirectional(LSTM(3, 4, rngs=rngs), LSTM(3, 4, rngs=rngs))
    >>> outputs, (forward, backward) = both(jnp.ones((2, 6, 3)))
    >>> outputs.shape, both.final_hidden((forward, backward)).shape
    ((2, 6, 8), (2, 8))

  Args:
    forward: an LSTM or GRU.
    backward: another one for the same input.

  Raises:
    ValueError: where the two take different inputs or backends, or are
      something else.

  Source: Schuster and Paliwal (1997).
  """

  def __init__(self, forward: LSTM | GRU, backward: LSTM | GRU):
    for name, cell in (('forward', forward), ('backward', backward)):
      if not isinstance(cell, _Cell):
        arguments.refuse(name, 'an LSTM or GRU', cell)
    if forward.in_features != backward.in_features:
      raise ValueError(
        'both directions read one sequence: forward takes '
        f'{forward.in_features} features, backward {backward.in_features}'
      )
    if forward.backend != backward.backend:
      raise ValueError(
        f'both directions run in one loop: forward has backend '
        f'{forward.backend!r}, backward {backward.backend!r}'
      )
    self.forward = forward
    self.backward = backward
    self.in_features = forward.in_features
    self.out_features = forward.units + backward.units

  def initial_carry(
    self, batch: int, dtype: Any = jnp.float32
  ) -> tuple[Carry, Carry]:
    """Zeros for both directions."""
    return (
      self.forward.initial_carry(batch, dtype),
      self.backward.initial_carry(batch, dtype),
    )

  def final_hidden(self, carry: tuple[Carry, Carry]) -> jax.Array:
    """Both hidden states of a returned carry, (B, forward + backward units)."""
    return jnp.concatenate([direction[-1] for direction in carry], -1)

  def __call__(
    self,
    x_btd: jax.Array,
    mask_bt: jax.Array | None = None,
    *,
    carry: tuple[Carry | None, Carry | None] | None = None,
  ) -> tuple[jax.Array, tuple[Carry, Carry]]:
    """As for `LSTM`; outputs (B, T, forward + backward units)."""
    outputs, carries = _run(
      (self.forward, self.backward),
      x_btd,
      mask_bt,
      _carry_of_each(self, carry, ('forward', 'backward')),
      (False, True),
    )
    return jnp.concatenate(outputs, -1), (carries[0], carries[1])


class Stacked(nnx.Module):
  """Recurrent layers on top of each other; the carry is one for each layer.

  Args:
    layers: the first reads the sequence, each other the outputs of the one
      below it.
    dropout: rate between layers; it acts where a call brings a key. A stack
      among them has its own.

  Raises:
    ValueError: where there is no layer, or one does not fit the one below it.
  """

  def __init__(
    self,
    layers: Sequence['LSTM | GRU | Bidirectional | Stacked'],
    *,
    dropout: float = 0.0,
  ):
    if not isinstance(layers, Sequence) or not layers:
      raise ValueError(
        f'Stacked takes a list of at least one layer, got {layers!r}'
      )
    for layer in layers:
      if not isinstance(layer, _Cell | Bidirectional | Stacked):
        expected = 'an LSTM, GRU, Bidirectional or Stacked'
        arguments.refuse('each layer', expected, layer)
    for below, above in itertools.pairwise(layers):
      if below.out_features != above.in_features:
        raise ValueError(
          f'a layer takes {above.in_features} features, the one below it '
          f'gives {below.out_features}'
        )
    self.depth = len(layers)
    # Names, not numbers: they are keys of checkpoints too.
    self.layers = nnx.Dict(
      {f'layer{n}': layer for n, layer in enumerate(layers, 1)}
    )
    self.dropout = Dropout(dropout)
    self.in_features = layers[0].in_features
    self.out_features = layers[-1].out_features

  def in_order(self) -> list['LSTM | GRU | Bidirectional | Stacked']:
    """The layers, the one that reads the sequence first."""
    return [self.layers[f'layer{n}'] for n in range(1, self.depth + 1)]

  def initial_carry(
    self, batch: int, dtype: Any = jnp.float32
  ) -> tuple[Any, ...]:
    """Zeros for every layer."""
    return tuple(layer.initial_carry(batch, dtype) for layer in self.in_order())

  def final_hidden(self, carry: tuple[Any, ...]) -> jax.Array:
    """The top layer's hidden state (B, out_features) of a returned carry."""
    return self.in_order()[-1].final_hidden(carry[-1])

  def __call__(
    self,
    x_btd: jax.Array,
    mask_bt: jax.Array | None = None,
    *,
    carry: tuple[Any, ...] | None = None,
    key: jax.Array | None = None,
    rate: jax.Array | float | None = None,
  ) -> tuple[jax.Array, tuple[Any, ...]]:
    """As for `LSTM`; outputs of the top layer (B, T, out_features).

    Args:
      x_btd, mask_bt: as for `LSTM`.
      carry: one for each layer, or None.
      key, rate: of the dropout between layers, as for `Dropout`.
    """
    arguments.check_key(key)
    carries = _carry_of_each(self, carry, tuple(self.layers))
    after = []
    for n, layer in enumerate(self.in_order()):
      if n and key is not None:
        x_btd = self.dropout(x_btd, key=jax.random.fold_in(key, n), rate=rate)
      options: dict[str, Any] = {}
      if key is not None and isinstance(layer, Stacked):
        # Its own draws, none of them one of those above.
        inner_key = jax.random.fold_in(key, self.depth + n)
        options = {'key': inner_key, 'rate': rate}
      x_btd, layer_carry = layer(x_btd, mask_bt, carry=carries[n], **options)
      after.append(layer_carry)
    return x_btd, tuple(after)


def _run(
  cells: Sequence[_Cell],
  x_btd: jax.Array,
  mask_bt: jax.Array | None,
  carries: Sequence[Carry | None],
  reverse: tuple[bool, ...],
) -> tuple[tuple[jax.Array, ...], tuple[Carry, ...]]:
  """Runs cells side by side over one sequence, each in its own direction.

  Returns:
    For each cell its outputs (B, T, H), and its last carry.
  """
  if isinstance(mask_bt, tuple):
    raise ValueError(
      'a mask (B, T) is what comes after the sequence, got a tuple: a carry '
      'goes by its name, as in layer(x, carry=carry)'
    )
  arguments.check_sequence(
    'a recurrent layer', x_btd, mask_bt, cells[0].in_features
  )
  batch = x_btd.shape[0]
  # One for both directions: the parameters have a say in it.
  dtype = jnp.result_type(*(cell.compute_dtype(x_btd) for cell in cells))
  starts = []
  for cell, carry in zip(cells, carries, strict=True):
    if carry is None:
      carry = cell.initial_carry(batch)
    _check_carry(cell, carry, batch)
    starts.append(tuple(part.astype(sum_dtype(dtype)) for part in carry))
  name = backends.choose_backend(
    cells[0].backend,
    platform=current_platform(),
    cells=[cell.kind for cell in cells],
    units=[cell.units for cell in cells],
    dtype=dtype,
    masked=mask_bt is not None,
  )
  if x_btd.shape[1] == 0:
    # The others read the first step before they ask whether there is one.
    name = 'scan'
  weights, x_btd, mask_bt, given = varying_axes.alike(
    tuple(cell.weights() for cell in cells),
    x_btd,
    None if mask_bt is None else as_bool(mask_bt),
    tuple(starts),
  )
  if mask_bt is not None:
    # A gradient of 0 times what is no number would be none either.
    x_btd = jnp.where(mask_bt[..., None], x_btd, 0)
  outputs, after = backends.BACKENDS[name](
    tuple(cell.kind for cell in cells),
    weights,
    x_btd,
    mask_bt,
    given,
    reverse,
    dtype,
  )
  return tuple(y_bth.astype(dtype) for y_bth in outputs), after


def _check_carry(cell: _Cell, carry: Any, batch: int) -> None:
  expected = (batch, cell.units)
  if not _is_of(carry, cell.carry_names) or any(
    arguments.shape_of(part) != expected for part in carry
  ):
    raise ValueError(
      f'{type(cell).__name__} takes a carry ({", ".join(cell.carry_names)}), '
      f'each {expected}; got {_described(carry)}'
    )


def _carry_of_each(
  layer: nnx.Module, carry: Any, names: Sequence[str]
) -> Sequence[Any]:
  """The carries of the layers that make up `layer`; None for all is None."""
  if carry is None:
    return (None,) * len(names)
  if not _is_of(carry, names):
    raise ValueError(
      f'{type(layer).__name__} takes a carry ({", ".join(names)}), each that '
      f'of a layer; got {_described(carry)}'
    )
  return carry


def _is_of(carry: Any, names: Sequence[str]) -> bool:
  return isinstance(carry, tuple | list) and len(carry) == len(names)


def _described(carry: Any) -> str:
  if isinstance(carry, tuple | list):
    return f'({", ".join(map(arguments.described, carry))})'
  return f'a single {arguments.described(carry)}'
