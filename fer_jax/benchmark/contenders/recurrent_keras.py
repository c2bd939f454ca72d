"""`keras.layers.Bidirectional` on the JAX back end, called without state."""

# Of the extra `bench`, which a type check must do without.
# pyright: reportMissingImports=false, reportMissingModuleSource=false

from collections.abc import Callable

import keras

from fer_jax import provenance
from fer_jax.benchmark.contenders import recurrent_jax


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`."""
  backend = keras.backend.backend()
  if backend != 'jax':
    raise ValueError(f'this measures Keras on JAX, not on {backend}')
  keras.utils.set_random_seed(case['seed'])
  kind = {'lstm': keras.layers.LSTM, 'gru': keras.layers.GRU}[case['cell']]
  layer = keras.layers.Bidirectional(kind(case['units'], return_sequences=True))
  layer.build((case['batch'], case['steps'], case['inputs']))
  rest = [variable.value for variable in layer.non_trainable_variables]
  run, info = recurrent_jax.prepare(
    lambda params, x_btd: layer.stateless_call(params, rest, x_btd)[0],
    [variable.value for variable in layer.trainable_variables],
    case,
    provenance.versions(('keras', 'jax', 'jaxlib')),
  )
  return run, {**info, 'backend': backend}
