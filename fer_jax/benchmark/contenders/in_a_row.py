"""Another contender's runs one after another, for a population to be beside.

The case's 'contender' is the module of one run, 'members' how many runs there
are. A step is one step of each, all of them taken by one model: what runs of
the same shape cost does not depend on which of them it is.
"""

import importlib
from collections.abc import Callable


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`."""
  one, info = importlib.import_module(case['contender']).prepare(case)
  return lambda steps: one(steps * case['members']), info
