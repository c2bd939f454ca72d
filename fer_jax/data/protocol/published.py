"""Protocols on the splits that a set was published with."""

import numpy as np

from fer_jax.data import folds, twins
from fer_jax.data.protocol import units
from fer_jax.data.protocol.lists import Lists
from fer_jax.data.protocol.settings import SELECTS, Settings
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError

# Sets of the 35,887 photographs of the challenge.
CHALLENGE = ('fer2013', 'ferplus')

# Share of Training that selects under fer2013_dev.
_DEV_SHARE = 0.1


def of_public_test(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
  """bool (n,): rows of PublicTest, on which one protocol of the challenge's
  sets selects and which another one reports."""
  splits = dataset.table['official_split'][rows]
  return (splits == 'validation') & (dataset.name in CHALLENGE)


def official(dataset: Dataset, settings: Settings) -> Lists:
  """Train, select on validation, report test; or carve what selects."""
  rows = _rows_by_split(dataset)
  _require_told_apart(dataset, rows, 'official')
  if set(rows) == {'none'}:
    raise UserError(
      f'{dataset.name} has no official split; kfold_subjects, kfold_twins, '
      'holdout and others make one'
    )
  for split in ('train', 'test'):
    if split not in rows:
      instead = (
        '; without PrivateTest use protocol fer2013_dev'
        if dataset.name in CHALLENGE and split == 'test'
        else ''
      )
      raise UserError(
        f'protocol official needs a {split} split, and this build of '
        f'{dataset.name} has none{instead}'
      )
  test = rows['test']
  if 'validation' in rows:
    changed = settings.chosen().keys() & SELECTS
    if changed:
      raise UserError(
        f'protocol official takes no option {min(changed)!r} on '
        f'{dataset.name}, which has a validation split'
      )
    train, validation = rows['train'], rows['validation']
    reason = 'The published splits: trains, selects and reports on three lists.'
    selects = 'PublicTest'
  else:
    train, validation = units.carve(
      dataset, rows['train'], units.RELATED, settings
    )
    selects = 'a stratified part of it' if len(validation) else 'nothing'
    reason = 'The published splits; the set has none to select on, ' + (
      'so a stratified part of train does.'
      if len(validation)
      else 'and nothing does.'
    )
  if dataset.name in CHALLENGE:
    reason = (
      f'Trains on Training, selects on {selects}, reports PrivateTest. '
      + _repeats(dataset, '8.0 % of PrivateTest is')
    )
  seen = np.concatenate([train, validation])
  leaks, said = _verdict_on_published(dataset, seen, test)
  if leaks is None and settings.twins == 'keep':
    said += (
      ' Copies of a photograph on both sides are not looked for; an audit '
      'counts them.'
    )
  return Lists(train, validation, test, leaks, reason + said)


def fer2013_dev(dataset: Dataset, settings: Settings) -> Lists:
  """Selects on a tenth of Training, reports PublicTest."""
  if dataset.name not in CHALLENGE:
    raise UserError(
      f'protocol fer2013_dev is for {" and ".join(CHALLENGE)}, not '
      f'{dataset.name}; use official'
    )
  rows = _rows_by_split(dataset)
  _require_told_apart(dataset, rows, 'fer2013_dev')
  for split, usage in (('train', 'Training'), ('validation', 'PublicTest')):
    if split not in rows:
      raise UserError(
        f'protocol fer2013_dev needs {usage}, and this build of '
        f'{dataset.name} has no such rows'
      )
  training = rows['train']
  selects = folds.stratified_share(
    dataset.table['id'][training],
    dataset.table['label'][training],
    twins.find(dataset).groups(training),
    share=_DEV_SHARE,
    seed=settings.seed,
  )
  reason = (
    'Trains on nine tenths of Training, selects on a stratified tenth of it '
    'with twins kept on one side, reports PublicTest. '
    + _repeats(dataset, '7.8 % of PublicTest is')
  )
  return Lists(
    training[~selects], training[selects], rows['validation'], False, reason
  )


def _verdict_on_published(
  dataset: Dataset, seen: np.ndarray, test: np.ndarray
) -> tuple[bool | None, str]:
  """As `units.Unit.verdict`, of lists that somebody else made."""
  for column, what in (('subject', 'people'), ('sequence', 'recordings')):
    if column in dataset.table:
      values = dataset.table[column]
      shared = np.isin(values[test], values[seen]).sum()
      if shared:
        return True, (
          f' As published, {shared:,} of {len(test):,} test examples are of '
          f'{what} that train or select.'
        )
  if 'subject' in dataset.table:
    return False, ' Nobody in the test trains or selects.'
  if twins.near_twins_are_copies(dataset):
    return False, ''
  return None, (
    ' The data set does not say who is in its images, so whether people recur '
    'cannot be told.'
  )


def _repeats(dataset: Dataset, share: str) -> str:
  """That the challenge repeats photographs; how many, where all are there."""
  whole = dataset.name == 'fer2013' and dataset.rows is None
  counted = f': {share} byte-identical to a Training image' if whole else ''
  return (
    f'The source itself repeats photographs{counted}, so the figures without '
    'twins count as well.'
  )


def _rows_by_split(dataset: Dataset) -> dict[str, np.ndarray]:
  split = dataset.table['official_split']
  return {
    str(name): np.flatnonzero(split == name).astype(np.int64)
    for name in np.unique(split)
  }


def _require_told_apart(
  dataset: Dataset, rows: dict[str, np.ndarray], protocol: str
) -> None:
  if 'test_unsplit' in rows:
    raise UserError(
      f'protocol {protocol} needs to tell validation from test, and this '
      f'build of {dataset.name} has them mixed in one folder; build it from '
      'a source that names them, such as the fer2013.csv of the challenge'
    )
