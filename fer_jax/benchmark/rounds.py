"""Interleaved rounds and their statistics; nothing here knows what is timed.

A machine's speed drifts: other processes, clock, temperature. So contenders
are never timed one after another. Every round times each of them once, the
order rotates from round to round, and a ratio is formed inside a round before
the median over rounds is taken.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence


def order_of_round(names: Sequence[str], index: int) -> list[str]:
  """The contenders in the order in which round `index` times them."""
  first = index % len(names)
  return [*names[first:], *names[:first]]


def interleave(
  contenders: Mapping[str, Callable[[], float]],
  rounds: int,
  *,
  after_round: Callable[[int], None] = lambda index: None,
) -> dict[str, list[float]]:
  """Times every contender once in each round.

  Args:
    contenders: for each name a function that runs one turn and returns the
      seconds a step took in it.
    rounds: number of rounds.
    after_round: called with the index of each finished round.

  Returns:
    For each contender its seconds per step, one entry a round.
  """
  seconds: dict[str, list[float]] = {name: [] for name in contenders}
  for index in range(rounds):
    for name in order_of_round(list(contenders), index):
      seconds[name].append(contenders[name]())
    after_round(index)
  return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
  """Median, smallest and largest."""
  return {
    'median': statistics.median(values),
    'min': min(values),
    'max': max(values),
  }


def ratios(
  numerator: Sequence[float], denominator: Sequence[float]
) -> dict[str, float]:
  """Spread of the quotients taken round by round."""
  return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def summarise(
  seconds: Mapping[str, Sequence[float]], *, images: int, reference: str
) -> dict[str, dict]:
  """What a record says of each contender.

  Args:
    seconds: for each contender seconds per step, one entry a round.
    images: images in a step.
    reference: the contender that ratios are taken against.

  Returns:
    For each contender `seconds_per_step` and `images_per_second` (spreads
    over rounds), `speedup_of_reference` (a spread: its seconds over the
    reference's in the same round, so above 1 the reference is the faster)
    and `rounds`, the seconds themselves.
  """
  return {
    name: {
      'seconds_per_step': spread(values),
      'images_per_second': spread([images / value for value in values]),
      'speedup_of_reference': ratios(values, seconds[reference]),
      'rounds': list(values),
    }
    for name, values in seconds.items()
  }
