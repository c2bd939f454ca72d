"""A population against the same runs one after another, ours and peers'."""

import dataclasses
from collections.abc import Sequence

from fer_jax.benchmark import contest, rounds, train_step
from fer_jax.benchmark.contest import CONTENDERS, OWN, Contender, Effort

POPULATION = 'population'


def measure(
  case: dict,
  peers: Sequence[str],
  effort: Effort,
  *,
  members: int,
  mappings: Sequence[str] = ('auto',),
) -> dict:
  """Times a step of every member, side by side and in a row, interleaved.

  Args:
    case: see `fer_jax.benchmark.contenders`.
    peers: names of `train_step.PEERS`, whose runs go in a row.
    effort: how long is measured.
    members: how many runs.
    mappings: names of `mapping.MAPPINGS` or 'auto', of a population each; the
      first one's is the reference.

  Returns:
    What `contest.hold` returns, of steps of all members; with 'members', and
    'share_of_in_a_row', the population's time over that of our own runs in a
    row, a spread over rounds.

  Raises:
    UserError: a contender has another number of parameters.
  """
  case = {**case, 'what': 'train_step', 'members': members}
  result = contest.hold(
    [
      *contest.variants(
        POPULATION, f'{CONTENDERS}.own_population', case, 'mapping', mappings
      ),
      *map(_in_a_row, train_step.contenders(case, peers)),
    ],
    effort,
    images=members * case['batch_size'],
    check=train_step.same_network(case),
  )
  together, own = (
    result['contenders'][name]['rounds']
    for name in (POPULATION, f'{OWN} in a row')
  )
  return {
    'members': members,
    'share_of_in_a_row': rounds.ratios(together, own),
    **result,
  }


def _in_a_row(run: Contender) -> Contender:
  """As many of a contender's runs as there are members."""
  return dataclasses.replace(
    run,
    name=f'{run.name} in a row',
    module=f'{CONTENDERS}.in_a_row',
    case={**run.case, 'contender': run.module},
  )


def lines(result: dict) -> list[str]:
  """The result as text for the terminal."""
  members = result['members']
  own = result['contenders'][POPULATION]
  share = result['share_of_in_a_row']
  rows = [
    f'population of {members} on {own["devices"]} devices, mapped '
    f'{own["mapping"]}: {share["median"]:.2f} ({share["min"]:.2f} to '
    f'{share["max"]:.2f}) of the time of {members} runs in a row',
    f'{"":26}{"ms a step of all":>26}{"time of population":>24}',
  ]
  for name, row in result['contenders'].items():
    took = row['seconds_per_step']
    text = (
      f'{1e3 * took["median"]:.1f} '
      f'({1e3 * took["min"]:.1f} to {1e3 * took["max"]:.1f})'
    )
    ratio = row['speedup_of_reference']['median']
    times = '' if name == POPULATION else f'{ratio:.2f} x'
    rows.append(f'{name:26}{text:>26}{times:>24}'.rstrip())
  for name, reason in result['absent'].items():
    rows.append(f'{name:26}absent: {reason}')
  return rows
