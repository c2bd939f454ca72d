"""The train step against peers of the same architecture."""

from collections.abc import Callable, Sequence

from fer_jax.benchmark import architecture, contest
from fer_jax.benchmark.contest import CONTENDERS, OWN, Contender, Effort, Peers
from fer_jax.errors import UserError

PEERS: Peers = {
  'flax': (f'{CONTENDERS}.flax_nnx', {}),
  'torch': (f'{CONTENDERS}.pytorch', {}),
  'keras': (f'{CONTENDERS}.keras_3', {}),
  'keras_tensorflow': (
    f'{CONTENDERS}.keras_3',
    {'KERAS_BACKEND': 'tensorflow'},
  ),
  'keras_jax': (f'{CONTENDERS}.keras_3', {'KERAS_BACKEND': 'jax'}),
  'keras_torch': (f'{CONTENDERS}.keras_3', {'KERAS_BACKEND': 'torch'}),
}
"""The environment selects Keras' back end."""


def measure(case: dict, peers: Sequence[str], effort: Effort) -> dict:
  """Times our train step and the peers', interleaved.

  Args:
    case: see `fer_jax.benchmark.contenders`.
    peers: names of `PEERS`.
    effort: how long is measured.

  Returns:
    What `contest.hold` returns, with 'parameters', the number that all
    contenders share.

  Raises:
    UserError: a contender has another number of parameters.
  """
  result = contest.hold(
    contenders(case, peers),
    effort,
    images=case['batch_size'],
    check=same_network(case),
  )
  expected = architecture.parameter_count(case['layers'])
  return {'parameters': expected, **result}


def contenders(case: dict, peers: Sequence[str]) -> list[Contender]:
  """Our train step and those of peers, names of `PEERS`."""
  case = {**case, 'what': 'train_step'}
  return [
    Contender(OWN, f'{CONTENDERS}.own', case),
    *contest.peers_of(PEERS, peers, case),
  ]


def same_network(case: dict) -> Callable[[dict[str, dict]], None]:
  """The check for `contest.hold` that all have the case's parameters.

  It raises UserError where a contender has another number of them.
  """
  expected = architecture.parameter_count(case['layers'])

  def check(infos: dict[str, dict]) -> None:
    for name, info in infos.items():
      if info['parameters'] != expected:
        raise UserError(
          f'{name} has {info["parameters"]} parameters where the architecture '
          f'of {case["model"]} has {expected}: not the same network'
        )

  return check
