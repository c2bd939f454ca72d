"""Which shape the next population has.

Every shape costs a compilation, and a population has but one. Turns of a shape
alternate:

1. At one the sampler draws freely, which may bring a new shape.
2. At the next the shape is taken that *promises most a second*: the share of
   its trials that are among the best quarter of all, counted as if one more of
   four more had been (a shape of one lucky trial is not yet a good one),
   divided by what its trials cost on average, compilation included.

Not the best value alone, which grows with the number of trials whatever the
shape: that would favour the shape that happened to be tried most. A pruned or
diverged trial counts as tried and not as good.
"""

import dataclasses
import math
from collections.abc import Sequence

QUARTER = 0.25


@dataclasses.dataclass(frozen=True)
class Tried:
  """A trial that has ended.

  Attributes:
    shape: of it.
    score: its value, larger is better; None where it did not complete.
    seconds: that it took of a device.
  """

  shape: str
  score: float | None
  seconds: float


def choose(
  tried: Sequence[Tried], *, free_turns: int, kept_turns: int
) -> str | None:
  """The shape of the next turn; None to let the sampler draw it.

  Args:
    tried: all trials that have ended.
    free_turns: turns so far that the sampler has drawn.
    kept_turns: turns so far of a shape that was known.
  """
  if kept_turns >= free_turns or all(t.score is None for t in tried):
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
    seconds = sum(t.seconds for t in its) / len(its)
    if not seconds:  # it never trained, since it does not fit
      found[shape] = 0.0
      continue
    found[shape] = (good + 1) / (len(its) + 1 / QUARTER) / seconds
  return found
