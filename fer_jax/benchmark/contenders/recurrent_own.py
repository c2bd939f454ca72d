"""`fer_jax.nn.Bidirectional` as `fer_jax.benchmark.recurrent_layers` asks.

The case's 'backend' is that of its cells; 'divided' says whether its batch is
divided over devices as `train` divides it.
"""

from collections.abc import Callable

from flax import nnx

from fer_jax import provenance
from fer_jax.benchmark.contenders import AbsentError, recurrent_jax
from fer_jax.nn import GRU, LSTM, Bidirectional
from fer_jax.training import cores, sharding


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`."""
  mesh = None
  if case['divided']:
    cores.spread(cores.parts_of_batch(case['batch']))
    mesh = sharding.data_mesh(case['batch'])
    if mesh is None:
      raise AbsentError('a batch of this size is not divided here')
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
    mesh,
  )
