"""`fer_jax.nn.Bidirectional` as `fer_jax.benchmark.recurrent_layers` asks.

The case's 'backend' is that of its cells.
"""

from collections.abc import Callable

from flax import nnx

from fer_jax import provenance
from fer_jax.benchmark.contenders import recurrent_jax
from fer_jax.nn import GRU, LSTM, Bidirectional


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`."""
  kind = {'lstm': LSTM, 'gru': GRU}[case['cell']]
  rngs = nnx.Rngs(case['seed'])
  sizes = (case['inputs'], case['units'])
  layer = Bidirectional(
    *(kind(*sizes, backend=case['backend'], rngs=rngs) for _ in range(2))
  )
  graphdef, params = nnx.split(layer)
  return recurrent_jax.prepare(
    lambda params, x_btd: nnx.merge(graphdef, params)(x_btd)[0],
    nnx.to_pure_dict(params),
    case,
    provenance.versions(('fer-jax', 'jax', 'jaxlib', 'flax')),
  )
