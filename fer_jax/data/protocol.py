"""Who trains, who selects and who is reported.

A protocol turns a data set into lists of rows. It says of itself whether it
leaks: whether what is reported was trained or selected on, by the protocol's
own making. That a source carries the same photograph on both sides of its
official split is not the protocol's doing; it is said in `reason` and shown
by reporting the test split without its twins as well.

Test rows come from `open_test` alone, which only evaluation calls and which
writes to the ledger before it hands them out.
"""

import dataclasses
import difflib
import hashlib
from collections.abc import Callable

import numpy as np

from fer_jax.data import ledger, twins
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError

# Share of Training that selects under fer2013_dev.
_DEV_SHARE = 0.1

# Sets of photographs collected from the web, where copies are a fact. Twins
# by correlation mean nothing on aligned or rendered faces: strangers
# correlate above the threshold there.
_WITH_TWINS = ('fer2013',)


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
  """What training may know of a protocol: no test rows are in it.

  Attributes:
    protocol: its name.
    leaks: whether the protocol reports what it trained or selected on.
    reason: why, or why not, and what to know of its figures; a sentence.
    train: int64 (n,), rows that train.
    validation: int64 (m,), rows that select.
    digest: SHA-256 of the protocol's name and all its id lists, test too.
    train_ids: str (n,).
    validation_ids: str (m,).
  """

  protocol: str
  leaks: bool
  reason: str
  train: np.ndarray
  validation: np.ndarray
  digest: str
  train_ids: np.ndarray
  validation_ids: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class TestSplit:
  """The rows that are reported.

  Attributes:
    index: int64 (n,), rows of the data set.
    ids: str (n,).
    slices: bool (n,) masks by name: 'all', and for photographs
      'without_exact_twins', without images that are pixel by pixel in train
      or validation, and 'without_twins', without near twins of those either.
    digest: as in Partition.
    run: who looks.
  """

  index: np.ndarray
  ids: np.ndarray
  slices: dict[str, np.ndarray]
  digest: str
  run: str


@dataclasses.dataclass(frozen=True, eq=False)
class _Lists:
  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray
  leaks: bool
  reason: str


def names() -> tuple[str, ...]:
  """Names of all protocols."""
  return tuple(_PROTOCOLS)


def resolve(
  dataset: Dataset, name: str, *, seed: int = 0, **options: object
) -> Partition:
  """The training and validation rows of a data set under a protocol.

  Args:
    dataset: a built data set.
    name: one of `names()`.
    seed: draws what the protocol leaves to chance.
    **options: none yet; anything is refused.

  Raises:
    UserError: unknown protocol or option, or the data set does not have the
      splits that the protocol needs.
  """
  lists = _lists(dataset, name, seed, options)
  ids = dataset.table['id']
  return Partition(
    protocol=name,
    leaks=lists.leaks,
    reason=lists.reason,
    train=lists.train,
    validation=lists.validation,
    digest=_digest(name, dataset, lists),
    train_ids=ids[lists.train],
    validation_ids=ids[lists.validation],
  )


def open_test(
  dataset: Dataset, name: str, *, seed: int = 0, run: str, **options: object
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
  lists = _lists(dataset, name, seed, options)
  digest = _digest(name, dataset, lists)
  ledger.record(
    dataset,
    run=run,
    protocol=name,
    split='test',
    figures={},
    digest=digest,
    event=ledger.OPENED,
  )
  slices = {'all': np.ones(len(lists.test), bool)}
  if dataset.name in _WITH_TWINS:
    found = twins.find(dataset)
    seen = np.concatenate([lists.train, lists.validation])
    slices['without_exact_twins'] = ~found.exact_among(lists.test, seen)
    slices['without_twins'] = ~found.any_among(lists.test, seen)
  ids = dataset.table['id'][lists.test]
  return TestSplit(lists.test, ids, slices, digest, run)


def _lists(
  dataset: Dataset, name: str, seed: int, options: dict[str, object]
) -> _Lists:
  if name not in _PROTOCOLS:
    near = difflib.get_close_matches(name, _PROTOCOLS, n=1)
    hint = f'; did you mean {near[0]!r}?' if near else ''
    raise UserError(
      f'no protocol {name!r}; there are {", ".join(_PROTOCOLS)}{hint}'
    )
  if options:
    raise UserError(
      f'protocol {name} has no option {next(iter(options))!r}; it takes none'
    )
  return _PROTOCOLS[name](dataset, seed)


def _official(dataset: Dataset, seed: int) -> _Lists:
  """The splits as published: train, select on validation, report test."""
  del seed  # Nothing is drawn.
  rows = _rows_by_split(dataset)
  _require_told_apart(dataset, rows, 'official')
  for split in ('train', 'validation', 'test'):
    if split not in rows:
      instead = (
        '; without PrivateTest use protocol fer2013_dev'
        if dataset.name == 'fer2013' and split == 'test'
        else ''
      )
      raise UserError(
        f'protocol official needs a {split} split, and this build of '
        f'{dataset.name} has none{instead}'
      )
  reason = 'The published splits: trains, selects and reports on three lists.'
  if dataset.name == 'fer2013':
    reason = (
      'Trains on Training, selects on PublicTest, reports PrivateTest. The '
      'source itself repeats photographs: 8.0 % of PrivateTest is '
      'byte-identical to a Training image, so the figures without twins '
      'count as well.'
    )
  return _Lists(rows['train'], rows['validation'], rows['test'], False, reason)


def _fer2013_dev(dataset: Dataset, seed: int) -> _Lists:
  """Selects on a tenth of Training, reports PublicTest."""
  if dataset.name != 'fer2013':
    raise UserError(
      f'protocol fer2013_dev is for fer2013, not {dataset.name}; use official'
    )
  rows = _rows_by_split(dataset)
  _require_told_apart(dataset, rows, 'fer2013_dev')
  for split, usage in (('train', 'Training'), ('validation', 'PublicTest')):
    if split not in rows:
      raise UserError(
        f'protocol fer2013_dev needs {usage}, and this build of fer2013 has '
        'no such rows'
      )
  training = rows['train']
  selects = stratified_share(
    dataset.table['id'][training],
    dataset.table['label'][training],
    twins.find(dataset).groups(training),
    share=_DEV_SHARE,
    seed=seed,
  )
  reason = (
    'Trains on nine tenths of Training, selects on a stratified tenth of it '
    'with twins kept on one side, reports PublicTest. The source itself '
    'repeats photographs: 7.8 % of PublicTest is byte-identical to a '
    'Training image, so the figures without twins count as well.'
  )
  return _Lists(
    training[~selects], training[selects], rows['validation'], False, reason
  )


_PROTOCOLS: dict[str, Callable[[Dataset, int], _Lists]] = {
  'official': _official,
  'fer2013_dev': _fer2013_dev,
}


def stratified_share(
  ids: np.ndarray,
  label: np.ndarray,
  group: np.ndarray,
  *,
  share: float,
  seed: int,
) -> np.ndarray:
  """Draws a share of every class, taking groups whole.

  Groups come in the order of a hash of the seed and their least id, which no
  library version changes, and are taken while each of their classes has room.

  Args:
    ids: str (n,).
    label: int (n,).
    group: int (n,); rows with one number stay together.
    share: of every class, rounded to whole rows.
    seed: any whole number.

  Returns:
    bool (n,), the rows drawn: the rounded share of every class exactly, as
    long as single rows are left to fill it.
  """
  classes, label = np.unique(label, return_inverse=True)
  room = np.round(share * np.bincount(label, minlength=len(classes)))
  by_group = np.lexsort((ids, group))
  starts = np.flatnonzero(np.diff(group[by_group], prepend=-1))
  members = np.split(by_group, starts[1:])
  rank = [
    hashlib.sha256(f'{seed} {ids[rows[0]]}'.encode()).digest()
    for rows in members
  ]
  drawn = np.zeros(len(ids), bool)
  for n in sorted(range(len(members)), key=rank.__getitem__):
    taken = np.bincount(label[members[n]], minlength=len(classes))
    if np.all(taken <= room):
      room -= taken
      drawn[members[n]] = True
  return drawn


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


def _digest(name: str, dataset: Dataset, lists: _Lists) -> str:
  digest = hashlib.sha256(f'{dataset.name}\0{name}\0'.encode())
  for part in ('train', 'validation', 'test'):
    ids = dataset.table['id'][getattr(lists, part)]
    digest.update(f'{part}\0{len(ids)}\0'.encode())
    digest.update('\n'.join(ids.tolist()).encode() + b'\0')
  return digest.hexdigest()
