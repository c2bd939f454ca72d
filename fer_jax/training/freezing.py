"""Which parameters train, and since when.

A run has phases: from epoch to epoch more of the model may train, never less.
What is frozen in a phase is known when its step is compiled, so the step is not
differentiated with respect to it, and XLA drops that part of the backward pass.

A pattern is a path of names, each of which may hold the wildcards of `fnmatch`,
and stands for all parameters below: `backbone` matches
`backbone.conv1.conv.kernel`, and `backbone.*.norm` every normalisation two
levels down. A parameter belongs to the first pattern that matches it.
"""

import dataclasses
import fnmatch
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import jax

from fer_jax.errors import UserError, nearest

Arrays = Any
"""A nested dictionary of raw arrays, None where one is left out."""


@dataclasses.dataclass(frozen=True)
class Freezing:
  """What is frozen in one phase of a run.

  Attributes:
    patterns: of `optim.freeze`.
    thawed: how many of the patterns, from the first, have parameters that train
      by now.
  """

  patterns: tuple[str, ...] = ()
  thawed: int = 0

  def group(self, path: str) -> int | None:
    """0 for a parameter that trains from the run's first step on, n for one
    that trains since the n-th pattern thawed, None for one that is frozen."""
    for n, pattern in enumerate(self.patterns, 1):
      if matches(pattern, path):
        return n if n <= self.thawed else None
    return 0

  @property
  def frozen_patterns(self) -> tuple[str, ...]:
    """The patterns whose parameters do not train."""
    return self.patterns[self.thawed :]


NOTHING_FROZEN = Freezing()


def at_epoch(
  patterns: tuple[str, ...],
  unfreeze_epochs: tuple[int, ...],
  epoch: int,
) -> Freezing:
  """What is frozen in an epoch.

  Args:
    patterns: of `optim.freeze`.
    unfreeze_epochs: of `optim.unfreeze_epochs`, rising or equal.
    epoch: counts from 0.
  """
  return Freezing(patterns, sum(e <= epoch for e in unfreeze_epochs))


def matches(pattern: str, path: str) -> bool:
  """Whether a pattern stands for the parameter at a path."""
  wanted, names = pattern.split('.'), path.split('.')
  return len(wanted) <= len(names) and all(
    fnmatch.fnmatchcase(name, want)
    for want, name in zip(wanted, names, strict=False)
  )


def partition(freezing: Freezing, params: Arrays) -> tuple[Arrays, Arrays]:
  """(what trains, what is frozen), each with None in the place of the other."""

  def part(trains: bool):
    def kept(path, array):
      return array if _trains(freezing, path) == trains else None

    return jax.tree_util.tree_map_with_path(kept, params)

  return part(True), part(False)


def combine(trained: Arrays, frozen: Arrays) -> Arrays:
  """Undoes `partition`."""
  return jax.tree.map(
    lambda a, b: b if a is None else a,
    trained,
    frozen,
    is_leaf=lambda x: x is None,
  )


def groups(freezing: Freezing, trained: Arrays) -> Arrays:
  """For each array that trains its `Freezing.group`, a plain int."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: freezing.group(_dotted(path)), trained
  )


def frozen_modules(freezing: Freezing, params: Arrays) -> frozenset[str]:
  """Paths of the modules with parameters of their own, all of them frozen."""
  trains = defaultdict(list)
  if freezing.frozen_patterns:
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
      trains[_dotted(path[:-1])].append(_trains(freezing, path))
  return frozenset(module for module in trains if not any(trains[module]))


def held(freezing: Freezing, params: Arrays, model_state: Arrays) -> Arrays:
  """True for each array that does not move in this phase.

  Args:
    freezing: of the phase.
    params: all parameters.
    model_state: the model's other arrays; statistics are held where all
      parameters of their module are frozen.

  Returns:
    {'params', 'model_state'}, like the arguments, of plain bools.
  """
  modules = frozen_modules(freezing, params)
  return {
    'params': jax.tree_util.tree_map_with_path(
      lambda path, _: not _trains(freezing, path), params
    ),
    'model_state': jax.tree_util.tree_map_with_path(
      lambda path, _: _dotted(path[:-1]) in modules, model_state
    ),
  }


def check(patterns: tuple[str, ...], params: Arrays, *, model: str) -> None:
  """Checks `optim.freeze` against a model.

  Args:
    patterns: of `optim.freeze`.
    params: the model's parameters, or their shapes.
    model: its name, for messages.

  Raises:
    UserError: for a pattern that matches nothing, or nothing that an earlier
      one has not matched, and where nothing is left to train.
  """
  leaves = jax.tree_util.tree_leaves_with_path(params)
  free = {_dotted(path) for path, _ in leaves}
  everything = frozenset(free)
  for pattern in patterns:
    matched = {path for path in everything if matches(pattern, path)}
    if not matched:
      parts = ', '.join(sorted({path.split('.')[0] for path in everything}))
      near = nearest(pattern, _prefixes(everything))
      raise UserError(
        f'optim.freeze names {pattern!r}, which matches no parameter of '
        f'{model}{near}; allowed are paths below {parts}'
      )
    if not matched & free:
      raise UserError(
        f'optim.freeze names {pattern!r} after patterns that match all of its '
        'parameters already; put the narrower pattern first'
      )
    free -= matched
  if not free:
    raise UserError(
      f'optim.freeze is {patterns!r}, which is all of {model}; allowed is what '
      'leaves parameters to train'
    )


def describe(freezing: Freezing, params: Arrays) -> str:
  """One line on a phase: how many parameters train, and what is frozen."""
  trained, _ = partition(freezing, params)
  count, total = (
    sum(x.size for x in jax.tree.leaves(tree)) for tree in (trained, params)
  )
  frozen = ', '.join(freezing.frozen_patterns) or 'nothing'
  return f'{count:,} of {total:,} parameters train; frozen: {frozen}'


def _prefixes(paths: Iterable[str]) -> set[str]:
  """All paths and the paths of the modules that hold them."""
  return {
    '.'.join(names[:n])
    for names in (path.split('.') for path in paths)
    for n in range(1, len(names) + 1)
  }


def _trains(freezing: Freezing, path) -> bool:
  return freezing.group(_dotted(path)) is not None


def _dotted(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='.')
