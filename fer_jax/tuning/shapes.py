"""Which shape the next population has.

Every shape costs a compilation, and a population has but one. So trials are
drawn in turns of one shape each:

1. First shapes are *looked at*: a turn takes one that no trial has had, drawn
   evenly, and gives it one population, until `LOOKED_AT` of all trials could
   have gone that way, or no other shape is found. Then turns alternate.
2. At one the shape is taken that *promises most a second*: the share of its
   trials that are among the best quarter of all, counted as if one more of
   four more had been (a shape of one lucky trial is not yet a good one),
   divided by what a whole trial of it costs, compilation included.
3. At the next the sampler draws freely, by what it has learnt from all trials,
   which may bring a further shape.

A sampler alone looks at few shapes: what it learns from the first populations
draws it back to theirs. And not the best value alone promises, which grows with
the number of trials whatever the shape: that would favour the shape that
happened to be tried most. A pruned or diverged trial counts as tried and not as
good, and its cost for the part of a trial that it was: else the shapes that are
pruned soonest would be the cheapest.
"""

import dataclasses
import math
from collections.abc import Sequence

LOOKED_AT = 0.5
"""Share of the trials that shapes are first looked at with."""

QUARTER = 0.25


@dataclasses.dataclass(frozen=True)
class Tried:
  """A trial that has ended.

  Attributes:
    shape: of it.
    score: its value, larger is better; None where it did not complete.
    seconds: that it took of a device.
    share: of a whole trial that it was, epochs that came to nothing included.
  """

  shape: str
  score: float | None
  seconds: float
  share: float = 1.0


def first_looks(trials: int, population: int) -> int:
  """How many shapes are looked at first.

  Args:
    trials: of the search.
    population: trials that one look takes.
  """
  return math.ceil(LOOKED_AT * trials / population)


def choose(
  tried: Sequence[Tried], *, free_turns: int, kept_turns: int
) -> str | None:
  """The shape of the next turn; None to let the sampler draw it.

  Args:
    tried: all trials that have ended.
    free_turns: turns so far that the sampler has drawn.
    kept_turns: turns so far of a shape that promised most.
  """
  if kept_turns > free_turns or all(t.score is None for t in tried):
    return None
  promised = promises(tried)
  return max(promised, key=lambda shape: promised[shape])


def promises(tried: Sequence[Tried]) -> dict[str, float]:
  """Good trials that each shape promises a second."""
  scores = sorted((t.score for t in tried if t.score is not None), reverse=True)
  good_count = min(math.ceil(QUARTER * len(tried)), len(scores))
  bar = scores[good_count - 1] if good_count else math.inf
  found = {}
  for shape in dict.fromkeys(t.shape for t in tried):
    its = [t for t in tried if t.shape == shape]
    good = sum(t.score is not None and t.score >= bar for t in its)
    trained, seconds = sum(t.share for t in its), sum(t.seconds for t in its)
    if not (trained and seconds):  # since it does not fit
      found[shape] = 0.0
      continue
    found[shape] = (good + 1) / (len(its) + 1 / QUARTER) * trained / seconds
  return found
