"""`nnx.Bidirectional` of `nnx.RNN` under a plain `jax.jit`."""

from collections.abc import Callable

from flax import nnx

from fer_jax import provenance
from fer_jax.benchmark.contenders import flax_nnx, recurrent_jax


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`."""
  layer = flax_nnx.Recurrent(
    {
      'layer': 'recurrent',
      'cell': case['cell'],
      'inputs': case['inputs'],
      'units': case['units'],
      'bidirectional': True,
      'returns': 'sequence',
    },
    rngs=nnx.Rngs(case['seed']),
  )
  graphdef, params, rest = nnx.split(layer, nnx.Param, ...)
  return recurrent_jax.prepare(
    lambda params, x_btd: nnx.merge(graphdef, params, rest, copy=True)(x_btd),
    params,
    case,
    provenance.versions(('jax', 'jaxlib', 'flax')),
  )
