"""Protocols that divide a whole set, whatever its published splits."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from fer_jax.data import folds, sampling
from fer_jax.data.protocol import units
from fer_jax.data.protocol.lists import Lists
from fer_jax.data.protocol.settings import Settings
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError


def all_rows(dataset: Dataset) -> np.ndarray:
  """All rows, whatever their official split."""
  return np.arange(len(dataset), dtype=np.int64)


def k_fold(unit: units.Unit) -> Callable[[Dataset, Settings], Lists]:
  """Reports one of several equal parts."""

  def make(dataset: Dataset, settings: Settings) -> Lists:
    rows, k = all_rows(dataset), settings.folds
    if settings.fold >= k:
      raise UserError(
        f'protocol option fold is {settings.fold}; allowed is less than '
        f'folds, {k}'
      )
    part = units.divide(dataset, rows, unit, [1 / k] * k, settings.seed)
    tests = part == settings.fold
    train, validation = units.carve(dataset, rows[~tests], unit, settings)
    leaks, said = unit.verdict(dataset)
    reason = f'Fold {settings.fold + 1} of {k} is reported. {said}'
    return Lists(train, validation, rows[tests], leaks, reason)

  return make


def hold_out(unit: units.Unit) -> Callable[[Dataset, Settings], Lists]:
  """Reports a stratified share."""

  def make(dataset: Dataset, settings: Settings) -> Lists:
    rows, share = all_rows(dataset), settings.test_share
    part = units.divide(dataset, rows, unit, [1 - share, share], settings.seed)
    train, validation = units.carve(dataset, rows[part == 0], unit, settings)
    leaks, said = unit.verdict(dataset)
    reason = (
      f'A stratified {100 * share:.4g} % of all examples is reported. {said}'
    )
    return Lists(train, validation, rows[part == 1], leaks, reason)

  return make


def leave_one_subject_out(dataset: Dataset, settings: Settings) -> Lists:
  """Reports one person; `fold` counts them."""
  rows = all_rows(dataset)
  group = units.SUBJECTS.groups(dataset, rows)
  subjects = units.subjects(dataset)
  if settings.fold >= len(subjects):
    raise UserError(
      f'protocol option fold is {settings.fold}; {dataset.name} has '
      f'{len(subjects)} subjects, 0 to {len(subjects) - 1}'
    )
  left_out = subjects[settings.fold]
  tests = dataset.table['subject'] == left_out
  # Whoever shares a picture with the subject can be on neither side.
  touched = np.isin(group, group[tests])
  train, validation = units.carve(
    dataset, rows[~touched], units.SUBJECTS, settings
  )
  linked = int((touched & ~tests).sum())
  beside = (
    f' ({linked:,} examples of others, who share a photograph or recording '
    'with it, are on neither side)'
    if linked
    else ''
  )
  said = units.SUBJECTS.verdict(dataset)[1]
  reason = f'Subject {left_out}{beside} is reported. {said}'
  return Lists(train, validation, rows[tests], False, reason)


def balance_then_split(how: str) -> Callable[[Dataset, Settings], Lists]:
  """Balances the whole set, then draws what is reported: P3, P4."""

  def make(dataset: Dataset, settings: Settings) -> Lists:
    pool = all_rows(dataset)
    ids, label = dataset.table['id'], dataset.table['label']
    rows = sampling.balance(how, pool, ids, label, seed=settings.seed)
    # Unstratified, and rounded up: P4's supports sum to 6,293 of 62,923 and
    # differ by class.
    count = math.ceil(settings.test_share * len(rows) - 1e-9)
    copy = np.arange(len(rows))
    names = np.char.add(ids[rows], np.char.add(' ', copy.astype(str)))
    order = folds.draw_order(names, settings.seed)
    tests = np.zeros(len(rows), bool)
    tests[order[:count]] = True
    train, validation = units.carve(
      dataset, rows[~tests], units.IMAGES, settings
    )
    reason = {
      'oversample': 'Every class is oversampled to the size of the largest '
      'over the whole set and the test is drawn from the result: copies of '
      'one image are on both sides.',
      'downsample': 'Every class is cut to the size of the smallest over the '
      'whole set and the test is drawn from the rest image by image: another '
      'copy of a test photograph may train, and the test has not the '
      "classes' real shares.",
    }[how]
    return Lists(train, validation, rows[tests], True, reason)

  return make


def evaluate_on_train(dataset: Dataset, settings: Settings) -> Lists:
  """Reports what trains without one fold: P1's confusion matrix."""
  lists = k_fold(units.IMAGES)(dataset, settings)
  reason = (
    f'What trains without fold {settings.fold + 1} of {settings.folds} is '
    'reported. The figures are of the very examples that trained.'
  )
  return dataclasses.replace(lists, leaks=True, reason=reason)
