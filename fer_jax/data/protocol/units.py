"""What a division never cuts in two, and divisions by it."""

import dataclasses
from collections.abc import Callable

import numpy as np

from fer_jax.data import folds, twins
from fer_jax.data.protocol.settings import Settings
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Unit:
  """What a division never cuts in two.

  Attributes:
    groups: (data set, rows (n,)) to int (n,), one number a unit.
    verdict: (data set) to (whether a test example may so be seen in training,
      None where it cannot be told; why).
  """

  groups: Callable[[Dataset, np.ndarray], np.ndarray]
  verdict: Callable[[Dataset], tuple[bool | None, str]]


def _images(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
  """Every row is a unit of its own, copies too."""
  del dataset
  return np.arange(len(rows))


def _related(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
  """Rows of one person, recording or photograph are one unit."""
  groupings = [twins.known(dataset).groups(rows)]
  groupings += [
    dataset.table[column][rows]
    for column in ('subject', 'sequence')
    if column in dataset.table
  ]
  return folds.linked(*groupings)


def _of_subjects(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
  subjects(dataset)
  return _related(dataset, rows)


def subjects(dataset: Dataset) -> np.ndarray:
  """str (s,), the people of a set in the order of their names."""
  if 'subject' not in dataset.table:
    raise UserError(
      f'{dataset.name} does not say who is in its images, so no protocol can '
      'keep people apart; kfold_twins and holdout keep copies of a photograph '
      'on one side'
    )
  return np.unique(dataset.table['subject'])


def _verdict_on_related(dataset: Dataset) -> tuple[bool | None, str]:
  if 'subject' in dataset.table:
    return False, (
      'Copies of a photograph and pictures of a person stay on one side.'
    )
  if twins.near_twins_are_copies(dataset):
    return False, (
      'Copies of a photograph, mirrored ones too, stay on one side; who is in '
      'it is not known.'
    )
  return None, (
    'Exact copies stay on one side. The data set does not say who is in its '
    'images, so whether people or recordings do cannot be told.'
  )


IMAGES = Unit(
  _images,
  lambda dataset: (
    True,
    'Images are divided one by one: another copy of a test photograph, '
    'another picture of its person or another frame of its recording may '
    'train.',
  ),
)
RELATED = Unit(_related, _verdict_on_related)
SUBJECTS = Unit(
  _of_subjects,
  lambda dataset: (
    False,
    'Every person is on one side, in training or in test.',
  ),
)


def divide(
  dataset: Dataset,
  rows: np.ndarray,
  unit: Unit,
  shares: list[float],
  seed: int | str,
) -> np.ndarray:
  """int (n,): part of each row, stratified by class.

  Raises:
    UserError: there are fewer units than parts.
  """
  group = unit.groups(dataset, rows)
  count = len(np.unique(group))
  if count < len(shares):
    raise UserError(
      f'{dataset.name} has {count} groups of examples that belong together '
      f'(a person, a photograph and its copies), fewer than the '
      f'{len(shares)} parts asked for'
    )
  return folds.stratified_parts(
    dataset.table['id'][rows],
    dataset.table['label'][rows],
    group,
    shares=shares,
    seed=seed,
  )


def carve(
  dataset: Dataset, rows: np.ndarray, unit: Unit, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
  """(train, validation) of what is not test."""
  seed = f'{settings.seed} selects'
  if settings.inner_folds:
    shares = [1 / settings.inner_folds] * settings.inner_folds
    part = divide(dataset, rows, unit, shares, seed)
    selects = part == settings.inner_fold
  elif settings.validation_share:
    share = settings.validation_share
    selects = divide(dataset, rows, unit, [1 - share, share], seed) == 1
  else:
    selects = np.zeros(len(rows), bool)
  return rows[~selects], rows[selects]
