"""The lists of a protocol on a data set, and who may see its test."""

import dataclasses
from typing import Any

import numpy as np

from fer_jax.data import folds, ledger, sampling, twins
from fer_jax.data.protocol import registry
from fer_jax.data.protocol.lists import (
  Lists,
  Partition,
  TestSplit,
  digest_of,
)
from fer_jax.data.protocol.settings import Settings
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError


def resolve(
  dataset: Dataset, name: str, *, seed: int = 0, **options: Any
) -> Partition:
  """The training and validation rows of a data set under a protocol.

  Args:
    dataset: a built data set.
    name: one of `names()`.
    seed: draws what the protocol leaves to chance.
    **options: as in `Settings`.

  Raises:
    UserError: unknown protocol, an option that it does not take, or the data
      set does not have what the protocol needs.
  """
  settings = registry.configure(name, seed=seed, **options)
  return _partition(dataset, settings, lists_of(dataset, settings))


def open_test(
  dataset: Dataset, name: str, *, seed: int = 0, run: str, **options: Any
) -> TestSplit:
  """The test rows, for evaluation; the opening goes into the ledger first.

  Args:
    dataset: a built data set.
    name: one of `names()`.
    seed: as for `resolve`.
    run: name of the workdir that looks.
    **options: as for `resolve`.

  Raises:
    UserError: as `resolve`, or the ledger cannot be written.
  """
  settings = registry.configure(name, seed=seed, **options)
  partition, lists = _opened(dataset, settings, run, ledger.OPENED)
  slices = {'all': np.ones(len(lists.test), bool)}
  if twins.near_twins_are_copies(dataset):
    found = twins.find(dataset)
    seen = np.concatenate([lists.train, lists.validation])
    slices['without_exact_twins'] = ~found.exact_among(lists.test, seen)
    slices['without_twins'] = ~found.any_among(lists.test, seen)
  ids = dataset.table['id'][lists.test]
  return TestSplit(lists.test, ids, slices, partition.digest, run)


def open_all(
  dataset: Dataset, name: str, *, seed: int = 0, run: str, **options: Any
) -> tuple[Partition, Lists]:
  """All lists of a protocol, test included, for audits: they train nothing.

  Args, Raises: as `open_test`; the ledger says that it was an audit.
  """
  settings = registry.configure(name, seed=seed, **options)
  return _opened(dataset, settings, run, ledger.AUDITED)


def _opened(
  dataset: Dataset, settings: Settings, run: str, event: str
) -> tuple[Partition, Lists]:
  """All lists, once the ledger has the event of opening them."""
  lists = lists_of(dataset, settings)
  partition = _partition(dataset, settings, lists)
  ledger.record(
    dataset,
    run=run,
    protocol=settings.name,
    split='test',
    figures={},
    digest=partition.digest,
    event=event,
  )
  return partition, lists


def manifest(
  dataset: Dataset, partition: Partition, lists: Lists
) -> dict[str, Any]:
  """The id lists of a protocol as JSON-able values, test included."""
  ids = dataset.table['id']
  return {
    'dataset': dataset.facts(),
    'class_names': list(dataset.class_names),
    'protocol': partition.facts(),
    'settings': dataclasses.asdict(partition.settings),
    'train': ids[lists.train].tolist(),
    'validation': ids[lists.validation].tolist(),
    'test': ids[lists.test].tolist(),
  }


def _partition(dataset: Dataset, settings: Settings, lists: Lists) -> Partition:
  ids = dataset.table['id']
  return Partition(
    protocol=settings.name,
    leaks=lists.leaks,
    reason=lists.reason,
    train=lists.train,
    validation=lists.validation,
    test_count=len(lists.test),
    digest=digest_of(settings.name, dataset, lists),
    train_ids=ids[lists.train],
    validation_ids=ids[lists.validation],
    settings=settings,
  )


def lists_of(dataset: Dataset, settings: Settings) -> Lists:
  """All lists, test included, of which the ledger has not heard.

  Raises:
    UserError: as `resolve`, for want of what the protocol needs.
  """
  known = registry.PROTOCOLS[settings.name]
  lists = known.make(dataset, settings)
  lists = without_twins(dataset, lists, settings.twins)
  lists = _shortened(dataset, lists, settings)
  label = dataset.table['label']
  # Under a protocol that leaks, a list may be empty for want of groups.
  for side, rows in (('training', lists.train), ('test', lists.test)):
    if not len(rows):
      raise UserError(
        f'protocol {settings.name} leaves no {side} examples of {dataset.name}'
      )
  missing = np.setdiff1d(label[lists.test], label[lists.train])
  if len(missing):
    raise UserError(
      f'protocol {settings.name} leaves no training example of class '
      f'{dataset.class_names[missing[0]]!r} of {dataset.name}, which its '
      'test has'
    )
  if settings.balance != 'none':
    train = sampling.balance(
      settings.balance,
      lists.train,
      dataset.table['id'][lists.train],
      label[lists.train],
      seed=settings.seed,
    )
    alone = '' if known.reports_training else ' alone'
    reason = (
      f'{lists.reason} The training list{alone} is balanced '
      f'({settings.balance}).'
    )
    lists = dataclasses.replace(lists, train=train, reason=reason)
  if known.reports_training:
    lists = dataclasses.replace(lists, test=np.unique(lists.train))
  return lists


def without_twins(dataset: Dataset, lists: Lists, rule: str) -> Lists:
  """The lists less the twins that a rule, one of `TWIN_RULES`, leaves out."""
  if rule == 'keep':
    return lists
  found = twins.known(dataset)
  train, validation, test = lists.train, lists.validation, lists.test
  others = np.concatenate([train, validation])
  if rule == 'drop_from_train':
    validation = validation[~found.any_among(validation, test)]
    held = np.concatenate([validation, test])
    train = train[~found.any_among(train, held)]
    done = (
      'Validation rows with a twin in test, and training rows with one in '
      'either, are left out.'
    )
  elif rule == 'drop_copies_from_test':
    test = test[~found.exact_among(test, others)]
    done = (
      'Test rows with an exact copy in training or validation are left out.'
    )
  else:
    test = test[~found.any_among(test, others)]
    done = 'Test rows with a twin in training or validation are left out.'
  return dataclasses.replace(
    lists,
    train=train,
    validation=validation,
    test=test,
    reason=f'{lists.reason} {done}',
  )


def _shortened(dataset: Dataset, lists: Lists, settings: Settings) -> Lists:
  share = settings.train_share
  if share == 1:
    return lists
  kept = folds.stratified_share(
    dataset.table['id'][lists.train],
    dataset.table['label'][lists.train],
    np.arange(len(lists.train)),
    share=share,
    seed=settings.seed,
  )
  return dataclasses.replace(
    lists,
    train=lists.train[kept],
    reason=f'{lists.reason} {100 * share:.4g} % of the training list trains.',
  )
