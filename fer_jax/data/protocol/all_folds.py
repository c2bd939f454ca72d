"""All folds of a protocol together."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_jax.data.protocol import drawn, registry, resolving, units
from fer_jax.data.protocol.lists import Lists, Partition
from fer_jax.data.protocol.settings import Settings
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError


def open_folds(
  dataset: Dataset, name: str, *, seed: int = 0, run: str, **options: Any
) -> tuple[dict[int, tuple[Partition, Lists]], dict[int, str]]:
  """As `open_all` of every fold, or of the one that `fold` names.

  Args: as `open_all`.

  Returns:
    (what `open_all` gives by fold, why of each other fold there is none).
    A protocol without folds has fold 0 alone.

  Raises:
    UserError: as `open_all`, where it does so of every fold.
  """
  settings = registry.configure(name, seed=seed, **options)
  if 'fold' in options or 'fold' not in registry.PROTOCOLS[name].uses:
    opened = resolving.open_all(dataset, name, seed=seed, run=run, **options)
    return {settings.fold: opened}, {}
  folds_opened, refused, failure = {}, {}, None
  for fold in range(_fold_count(dataset, settings)):
    try:
      folds_opened[fold] = resolving.open_all(
        dataset, name, seed=seed, run=run, fold=fold, **options
      )
    except UserError as error:
      refused[fold] = str(error)
      failure = failure or error
  if not folds_opened:
    assert failure is not None
    raise failure
  return folds_opened, refused


def fold_count(dataset: Dataset, name: str, **options: Any) -> int:
  """How many folds a protocol has on a data set.

  Args:
    dataset: a built data set.
    name: one of `names()`.
    **options: as for `resolve`, its seed among them.

  Raises:
    UserError: as `resolve`, or the protocol has no folds, or none whose tests
      are apart.
  """
  settings = registry.configure(name, **options)
  if registry.PROTOCOLS[name].reports_training:
    raise UserError(
      f'protocol {name} reports what it trained on, so an example is in the '
      'test of several folds and none can be scored out of fold; train and '
      'evaluate one fold'
    )
  if 'fold' in registry.PROTOCOLS[name].uses:
    return _fold_count(dataset, settings)
  folded = [
    n
    for n, known in registry.PROTOCOLS.items()
    if 'fold' in known.uses and not known.reports_training
  ]
  raise UserError(
    f'protocol {name} has no folds; those that have are {", ".join(folded)}'
  )


def _fold_count(dataset: Dataset, settings: Settings) -> int:
  if registry.divides_into_folds(settings.name):
    return settings.folds
  return len(units.subjects(dataset))


def fold_coverage(
  dataset: Dataset, name: str, **options: Any
) -> dict[str, int] | None:
  """How often the tests of a protocol's folds, all together, hold an example.

  Hands out no ids, so that the ledger hears nothing of it.

  Args:
    dataset: a built data set.
    name: one of `names()`.
    **options: as for `resolve`, its seed among them; the fold does not matter.

  Returns:
    'folds', and how many examples are in the test of 'several' folds and of
    'none'; None of a protocol without folds.
  """
  known = registry.PROTOCOLS.get(name)
  if known is None or 'fold' not in known.uses:
    return None
  settings = registry.configure(name, **options)
  count = _fold_count(dataset, settings)
  times = np.zeros(len(dataset), np.int64)
  for fold in range(count):
    of_fold = dataclasses.replace(settings, fold=fold)
    times[_tested(dataset, known, of_fold)] += 1
  return {
    'folds': count,
    'several': int((times > 1).sum()),
    'none': int((times == 0).sum()),
  }


def _tested(
  dataset: Dataset, known: registry.Protocol, settings: Settings
) -> np.ndarray:
  """int64 (k,), the rows that a fold reports; none where it is refused."""
  if known.reports_training:
    with contextlib.suppress(UserError):
      return resolving.lists_of(dataset, settings).test
    return np.zeros(0, np.int64)
  # What selects and how much trains decide nothing of them.
  settings = dataclasses.replace(
    settings, validation_share=0.0, inner_folds=0, inner_fold=0
  )
  lists = known.make(dataset, settings)
  return resolving.without_twins(dataset, lists, settings.twins).test


def parts_apart(dataset: Dataset) -> int:
  """How many parts an honest protocol can divide a data set into, at most:
  its people, or its photographs with their copies, that nothing links."""
  return len(np.unique(units.RELATED.groups(dataset, drawn.all_rows(dataset))))


def facts_of_folds(facts: Sequence[dict[str, Any]], of: int) -> dict[str, Any]:
  """What travels with figures of several folds together.

  Args:
    facts: `Partition.facts` of each, of one protocol.
    of: how many folds there are.

  Returns:
    As those of one fold, with the 'digests' of all; of a single one, its own.
  """
  if len(facts) == 1:
    return dict(facts[0])
  together = dict(facts[0])
  del together['digest']
  # Its first sentence says that one fold is reported.
  _, told, said = together['reason'].partition(' is reported. ')
  count = len({one['digest'] for one in facts})
  which = 'All folds are' if count == of else f'{count} of {of} folds are'
  return together | {
    'options': {k: v for k, v in facts[0]['options'].items() if k != 'fold'},
    'reason': f'{which} reported. {said}' if told else facts[0]['reason'],
    'digests': [one['digest'] for one in facts],
  }
