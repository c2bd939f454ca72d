"""Recurrent layers alone, forward and backward, against peers' layers."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from fer_jax.benchmark import contest
from fer_jax.benchmark.contest import (
  CONTENDERS,
  OWN,
  Contender,
  Effort,
  Peers,
)
from fer_jax.errors import UserError

KERAS = (f'{CONTENDERS}.recurrent_keras', {'KERAS_BACKEND': 'jax'})

PEERS: Peers = {
  'flax': (f'{CONTENDERS}.recurrent_flax', {}),
  'torch': (f'{CONTENDERS}.recurrent_torch', {}),
  'keras': KERAS,
  'keras_jax': KERAS,
}


@dataclasses.dataclass(frozen=True)
class Size:
  """One sequence batch and the layer that reads it in both directions."""

  batch: int
  steps: int
  inputs: int
  units: int

  def __str__(self) -> str:
    return f'({self.batch}, {self.steps}, {self.inputs}) -> {self.units}'


SIZES = (
  Size(64, 16, 128, 128),
  Size(64, 36, 256, 128),
  Size(4, 36, 256, 128),
  Size(64, 64, 32, 32),
  Size(32, 16, 1024, 256),
)
CELLS = ('lstm', 'gru')
DIVIDED = f'{OWN} divided'
"""Our layer with its batch divided over devices, as `train` divides it."""


def measure(
  peers: Sequence[str],
  effort: Effort,
  *,
  backends: Sequence[str] = ('auto',),
  sizes: Sequence[Size] = SIZES,
  cells: Sequence[str] = CELLS,
  seed: int = 0,
  keep: Callable[[dict], None] = lambda result: None,
) -> dict:
  """Times a bidirectional layer and its gradients, contenders interleaved.

  A step is the sum of all outputs, each with a weight, and its gradients of
  the input and all parameters; float32, no mask.

  Args:
    peers: names of `PEERS`.
    effort: how long is measured, for each size and cell.
    backends: of our layers, the first of which is the reference.
    sizes, cells: what is measured.
    seed: draws parameters and inputs.
    keep: is given what there is after each case.

  Returns:
    For each cell and size what `contest.hold` returns, with 'cell' and 'size';
    `images_per_second` counts sequences.

  Raises:
    UserError: as `require_peers`.
  """
  require_peers(peers)
  result: dict = {'backends': list(backends), 'cases': []}
  for cell, size in itertools.product(cells, sizes):
    case = {'cell': cell, 'seed': seed, **dataclasses.asdict(size)}
    place = f'{CONTENDERS}.recurrent_own'
    own = case | {'divided': False}
    divided = case | {'divided': True, 'backend': backends[0]}
    contenders = [
      *contest.variants(OWN, place, own, 'backend', backends),
      Contender(DIVIDED, place, divided),
      *contest.peers_of(PEERS, peers, case),
    ]
    held = contest.hold(contenders, effort, images=size.batch)
    row = {'cell': cell, 'size': dataclasses.asdict(size), **held}
    result['cases'].append(row)
    keep(result)
  return result


def require_peers(peers: Sequence[str]) -> None:
  """Raises UserError where a peer has no recurrent layer here."""
  for peer in peers:
    if peer not in PEERS:
      raise UserError(
        f'--peers {peer} has no part in --what=recurrent: name some of '
        f'{", ".join(PEERS)}'
      )


def table(result: dict) -> list[str]:
  """Lines for the terminal: ours in ms, the others as multiples of it."""
  names = list(
    dict.fromkeys(name for row in result['cases'] for name in row['contenders'])
  )
  _, *peers = names
  lines = [
    'recurrent layers, both directions, forward and backward, float32',
    f'{"":6}{"(B, T, D) -> H":>24}{OWN:>14}'
    + ''.join(f'{peer:>24}' for peer in peers),
  ]
  for row in result['cases']:
    contenders = row['contenders']
    ours = contenders[row['reference']]['seconds_per_step']['median'] * 1e3
    line = f'{row["cell"]:6}{Size(**row["size"])!s:>24}{ours:>11.2f} ms'
    for peer in peers:
      if peer in contenders:
        ratio = contenders[peer]['speedup_of_reference']
        low, high = ratio['min'], ratio['max']
        cell = f'{ratio["median"]:.2f} x ({low:.2f} to {high:.2f})'
        line += f'{cell:>24}'
      else:
        line += f'{"absent":>24}'
    lines.append(line)
  absent = {
    name: reason
    for row in result['cases']
    for name, reason in row['absent'].items()
  }
  lines += [f'{name} absent: {reason}' for name, reason in absent.items()]
  return lines


def draws(case: dict) -> tuple[np.ndarray, np.ndarray]:
  """Input (B, T, D) and the loss's weight of each output (B, T, 2H)."""
  draw = np.random.default_rng(case['seed'])
  shape = (case['batch'], case['steps'])
  return (
    draw.standard_normal((*shape, case['inputs']), np.float32),
    draw.standard_normal((*shape, 2 * case['units']), np.float32),
  )
