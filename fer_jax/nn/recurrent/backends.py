"""Which backend runs a recurrent layer."""

import difflib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from fer_jax.nn.recurrent import cudnn, fused, scan

BACKENDS = {'scan': scan.run, 'fused': fused.run, 'cudnn': cudnn.run}
"""For each name the function; all have the signature in `cells`."""

CUDNN_PRECISIONS = (
  *(None, 'high', 'tensorfloat32', 'bfloat16_3x'),
  *('highest', 'float32'),
)
"""Values of `jax_default_matmul_precision` that it heeds: TF32, and float32.
Of an algorithm, such as 'F32_F32_F32', JAX passes it nothing on."""


def check_backend(backend: str, cell: str) -> None:
  """Raises ValueError where no cell of this kind could run on `backend`."""
  allowed = ['auto', *(b for b in BACKENDS if b != 'cudnn' or cell == 'lstm')]
  if backend not in allowed:
    near = difflib.get_close_matches(str(backend).lower(), allowed, n=1)
    raise ValueError(
      f'backend {backend!r} is none of {", ".join(allowed)}, which '
      f'{cell} can run on' + (f' (did you mean {near[0]!r}?)' if near else '')
    )


def choose_backend(
  backend: str,
  *,
  platform: str,
  cells: Sequence[str],
  units: Sequence[int],
  dtype: Any,
  masked: bool,
) -> str:
  """Name of the backend that runs these cells side by side.

  Neither batch size nor length enters, nor what a mask says, as backends round
  differently and a prediction must not depend on what else is in its batch. So
  'auto' takes cuDNN, which knows lengths alone, where no mask is given.

  Args:
    backend: 'auto', or a name of `BACKENDS` that is wanted.
    platform: 'cpu', 'cuda', 'rocm' or 'tpu', see
      `nn.platforms`.
    cells: kinds of the cells that share the sequence.
    units: of each.
    dtype: what matrix products take.
    masked: whether a mask is given.

  Raises:
    ValueError: `backend` is unknown or cannot run these cells here.
  """
  for cell in cells:
    check_backend(backend, cell)
  refusal = _refusal_of_cudnn(platform, cells, units, dtype)
  if backend == 'auto':
    return 'fused' if refusal or masked else 'cudnn'
  if backend == 'cudnn' and refusal:
    raise ValueError(
      f"backend 'cudnn' {refusal}; here 'auto', 'scan' and 'fused' can run"
    )
  return backend


def _refusal_of_cudnn(platform, cells, units, dtype) -> str | None:
  if platform != 'cuda':
    return f'needs an NVIDIA GPU, this is {platform}'
  if any(cell != 'lstm' for cell in cells):
    return f'runs LSTM, not {", ".join(cells)}'
  if len(set(units)) > 1:
    return f'needs one number of units in both directions, not {units}'
  if jnp.dtype(dtype) != jnp.float32:
    return f'computes in float32, not {jnp.dtype(dtype)}'
  precision = _config('jax_default_matmul_precision')
  if precision not in CUDNN_PRECISIONS:
    return f"cannot compute at JAX's default_matmul_precision {precision!r}"
  return None


def _config(name: str) -> Any:
  return getattr(jax.config, name)
