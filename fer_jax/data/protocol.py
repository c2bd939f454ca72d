"""Who trains, who selects and who is reported.

A protocol turns a data set into lists of rows. It says of itself whether it
leaks: whether what is reported, or a copy, a person or a recording of it, can
by the protocol's own making have been trained or selected on. That a source
carries the same photograph on both sides of its official split is not the
protocol's doing; it is said in `reason`, shown by reporting the test split
without its twins as well, and measured by an audit.

Every protocol is one composition: a pool of rows, divided by a unit (images,
or whatever belongs together: the twins of a photograph, the pictures of a
person), then twins left out where that is asked for, then the training list
balanced. Nothing that an option can say makes a protocol leak; only another
protocol's name can.

Whether people are kept apart can be told only where a set says who is in its
images, or gathers photographs from the web, where people hardly recur. Of other
sets `leaks` is None: it cannot be told. Published splits are looked at in the
same way: where the set names people or recordings, its own table decides.

Test rows come from `open_test` and, for audits, from `open_all`. Both write to
the ledger before they hand them out.
"""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fer_jax.data import folds, ledger, sampling, twins
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError, nearest

# Sets of the 35,887 photographs of the challenge.
CHALLENGE = ('fer2013', 'ferplus')

# Share of Training that selects under fer2013_dev.
_DEV_SHARE = 0.1

TWIN_RULES = (
  'keep',
  'drop_from_train',
  'drop_copies_from_test',
  'drop_from_test',
)
"""What is done about twins: nothing; training and validation rows with a twin
in test are left out, and training rows with one in validation; test rows with
an exact copy among the others; test rows with any twin there."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """A protocol and its options; those it does not use keep their defaults.

  Attributes:
    name: of `names()`.
    seed: draws what is left to chance.
    folds: how many parts a k-fold protocol makes.
    fold: which of them is the test, from 0; of leave_one_subject_out, which
      subject, in the order of their names.
    test_share: of a hold-out.
    validation_share: of what is not test, set apart to select; 0 for none.
    inner_folds: of nested cross-validation: what is not test is divided into
      as many parts, and one of them selects; 0 for a share instead.
    inner_fold: which of them.
    train_share: of the training list, class by class, that trains.
    balance: of `sampling.BALANCES`, done to the training list alone.
    twins: of `TWIN_RULES`.
  """

  name: str = 'official'
  seed: int = 0
  folds: int = 10
  fold: int = 0
  test_share: float = 0.2
  validation_share: float = 0.1
  inner_folds: int = 0
  inner_fold: int = 0
  train_share: float = 1.0
  balance: str = 'none'
  twins: str = 'keep'

  def chosen(self) -> dict[str, Any]:
    """The options that are not at their defaults, without name and seed."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in ('name', 'seed')
      and getattr(self, field.name) != field.default
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
  """What training may know of a protocol: no test rows are in it.

  Attributes:
    protocol: its name.
    leaks: whether the protocol reports what it trained or selected on; None
      where it cannot be told.
    reason: why, or why not, and what to know of its figures; a sentence.
    train: int64 (n,), rows that train; under oversampling some more than once.
    validation: int64 (m,), rows that select; may be empty.
    test_count: how many rows are reported.
    digest: SHA-256 of the protocol's name and all its id lists, test too.
    train_ids: str (n,).
    validation_ids: str (m,).
    settings: all options.
  """

  protocol: str
  leaks: bool | None
  reason: str
  train: np.ndarray
  validation: np.ndarray
  test_count: int
  digest: str
  train_ids: np.ndarray
  validation_ids: np.ndarray
  settings: Settings

  def facts(self) -> dict[str, Any]:
    """What travels with every figure."""
    return {
      'name': self.protocol,
      'seed': self.settings.seed,
      'options': self.settings.chosen(),
      'leaks': self.leaks,
      'reason': self.reason,
      'digest': self.digest,
    }


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
class Lists:
  """The rows of all three sides, and what the protocol says of itself.

  Attributes:
    train: int64 (n,).
    validation: int64 (m,).
    test: int64 (k,).
    leaks: as in Partition.
    reason: as in Partition.
  """

  train: np.ndarray
  validation: np.ndarray
  test: np.ndarray
  leaks: bool | None
  reason: str


@dataclasses.dataclass(frozen=True)
class _Protocol:
  """How a protocol makes its lists.

  Attributes:
    make: (data set, settings) to lists.
    uses: options it takes, beside those that all take.
    reports_training: whether the test is the training list, as it is in the
      end, so that there are no twins to keep out of either.
  """

  make: Callable[[Dataset, Settings], Lists]
  uses: frozenset[str] = frozenset()
  reports_training: bool = False

  @property
  def takes(self) -> frozenset[str]:
    """All its options, name and seed among them."""
    taken = self.uses | _ALL_TAKE
    return taken - {'twins'} if self.reports_training else taken


_SELECTS = frozenset({'validation_share', 'inner_folds', 'inner_fold'})
_FOLDS = _SELECTS | {'folds', 'fold'}
_HOLDS_OUT = _SELECTS | {'test_share'}
_ALL_TAKE = frozenset({'name', 'seed', 'train_share', 'balance', 'twins'})


def names() -> tuple[str, ...]:
  """Names of all protocols."""
  return tuple(_PROTOCOLS)


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
  settings = configure(name, seed=seed, **options)
  return _partition(dataset, settings, _lists(dataset, settings))


def _partition(dataset: Dataset, settings: Settings, lists: Lists) -> Partition:
  ids = dataset.table['id']
  return Partition(
    protocol=settings.name,
    leaks=lists.leaks,
    reason=lists.reason,
    train=lists.train,
    validation=lists.validation,
    test_count=len(lists.test),
    digest=_digest(settings.name, dataset, lists),
    train_ids=ids[lists.train],
    validation_ids=ids[lists.validation],
    settings=settings,
  )


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
  lists = _lists(dataset, configure(name, seed=seed, **options))
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
  if twins.near_twins_are_copies(dataset):
    found = twins.find(dataset)
    seen = np.concatenate([lists.train, lists.validation])
    slices['without_exact_twins'] = ~found.exact_among(lists.test, seen)
    slices['without_twins'] = ~found.any_among(lists.test, seen)
  ids = dataset.table['id'][lists.test]
  return TestSplit(lists.test, ids, slices, digest, run)


def open_all(
  dataset: Dataset, name: str, *, seed: int = 0, run: str, **options: Any
) -> tuple[Partition, Lists]:
  """All lists of a protocol, test included, for audits: they train nothing.

  Args, Raises: as `open_test`; the ledger says that it was an audit.
  """
  settings = configure(name, seed=seed, **options)
  lists = _lists(dataset, settings)
  partition = _partition(dataset, settings, lists)
  ledger.record(
    dataset,
    run=run,
    protocol=name,
    split='test',
    figures={},
    digest=partition.digest,
    event=ledger.AUDITED,
  )
  return partition, lists


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
  settings = configure(name, seed=seed, **options)
  if 'fold' in options or 'fold' not in _PROTOCOLS[name].uses:
    opened = open_all(dataset, name, seed=seed, run=run, **options)
    return {settings.fold: opened}, {}
  folds_opened, refused, failure = {}, {}, None
  for fold in range(_fold_count(dataset, settings)):
    try:
      folds_opened[fold] = open_all(
        dataset, name, seed=seed, run=run, fold=fold, **options
      )
    except UserError as error:
      refused[fold] = str(error)
      failure = failure or error
  if not folds_opened:
    assert failure is not None
    raise failure
  return folds_opened, refused


def of_public_test(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
  """bool (n,): rows of PublicTest, on which one protocol of the challenge's
  sets selects and which another one reports."""
  splits = dataset.table['official_split'][rows]
  return (splits == 'validation') & (dataset.name in CHALLENGE)


def divides_into_folds(name: str) -> bool:
  """Whether a protocol, one of `names()`, takes a number of folds."""
  return 'folds' in _PROTOCOLS[name].uses


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
  settings = configure(name, **options)
  if _PROTOCOLS[name].reports_training:
    raise UserError(
      f'protocol {name} reports what it trained on, so an example is in the '
      'test of several folds and none can be scored out of fold; train and '
      'evaluate one fold'
    )
  if 'fold' in _PROTOCOLS[name].uses:
    return _fold_count(dataset, settings)
  folded = [
    n
    for n, known in _PROTOCOLS.items()
    if 'fold' in known.uses and not known.reports_training
  ]
  raise UserError(
    f'protocol {name} has no folds; those that have are {", ".join(folded)}'
  )


def _fold_count(dataset: Dataset, settings: Settings) -> int:
  if divides_into_folds(settings.name):
    return settings.folds
  return len(_subjects(dataset))


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
  known = _PROTOCOLS.get(name)
  if known is None or 'fold' not in known.uses:
    return None
  settings = configure(name, **options)
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
  dataset: Dataset, known: _Protocol, settings: Settings
) -> np.ndarray:
  """int64 (k,), the rows that a fold reports; none where it is refused."""
  if known.reports_training:
    with contextlib.suppress(UserError):
      return _lists(dataset, settings).test
    return np.zeros(0, np.int64)
  # What selects and how much trains decide nothing of them.
  settings = dataclasses.replace(
    settings, validation_share=0.0, inner_folds=0, inner_fold=0
  )
  lists = known.make(dataset, settings)
  return _without_twins(dataset, lists, settings.twins).test


def parts_apart(dataset: Dataset) -> int:
  """How many parts an honest protocol can divide a data set into, at most:
  its people, or its photographs with their copies, that nothing links."""
  return len(np.unique(_related(dataset, _pool(dataset))))


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


def _whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


# What every option may be: a check of its value, and what it then should be.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
  'folds': (lambda v: _whole(v) and v >= 2, 'a whole number of at least 2'),
  'fold': (lambda v: _whole(v) and v >= 0, 'a whole number of at least 0'),
  'test_share': (lambda v: 0 < v < 1, 'a share above 0 and below 1'),
  'validation_share': (lambda v: 0 <= v < 1, 'a share of 0 or more, below 1'),
  'inner_folds': (
    lambda v: _whole(v) and (v == 0 or v >= 2),
    '0, or a whole number of at least 2',
  ),
  'inner_fold': (
    lambda v: _whole(v) and v >= 0,
    'a whole number of at least 0',
  ),
  'train_share': (lambda v: 0 < v <= 1, 'a share above 0, at most 1'),
  'balance': (
    lambda v: v in sampling.BALANCES,
    f'one of {", ".join(sampling.BALANCES)}',
  ),
  'twins': (lambda v: v in TWIN_RULES, f'one of {", ".join(TWIN_RULES)}'),
}


def configure(name: str, *, seed: int = 0, **options: Any) -> Settings:
  """A protocol's settings, checked as far as they can be without data.

  Raises:
    UserError: naming the protocol or option and what is allowed.
  """
  if name not in _PROTOCOLS:
    raise UserError(
      f'no protocol {name!r}; there are {", ".join(_PROTOCOLS)}'
      f'{nearest(name, _PROTOCOLS)}'
    )
  takes = _PROTOCOLS[name].takes
  defaults = Settings()
  for option, value in options.items():
    if not hasattr(defaults, option) or option in ('name', 'seed'):
      raise UserError(
        f'protocol {name} has no option {option!r}; it takes '
        f'{", ".join(sorted(takes - {"name", "seed"}))}'
      )
    if option not in takes and value != getattr(defaults, option):
      raise UserError(
        f'protocol {name} takes no option {option!r}, which is {value!r}; it '
        f'takes {", ".join(sorted(takes - {"name", "seed"}))}'
      )
  settings = dataclasses.replace(defaults, name=name, seed=seed, **options)
  for option, (allows, allowed) in _RANGES.items():
    value = getattr(settings, option)
    if not allows(value):
      raise UserError(
        f'protocol option {option} is {value!r}; allowed is {allowed}'
      )
  if settings.inner_fold >= max(settings.inner_folds, 1):
    raise UserError(
      f'protocol option inner_fold is {settings.inner_fold}; allowed is less '
      f'than inner_folds, {settings.inner_folds}'
    )
  if (
    settings.inner_folds
    and settings.validation_share != defaults.validation_share
  ):
    raise UserError(
      f'protocol option validation_share is {settings.validation_share}, and '
      f'inner_folds {settings.inner_folds}: one of them sets apart what selects'
    )
  return settings


def _lists(dataset: Dataset, settings: Settings) -> Lists:
  known = _PROTOCOLS[settings.name]
  lists = known.make(dataset, settings)
  lists = _without_twins(dataset, lists, settings.twins)
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


def _without_twins(dataset: Dataset, lists: Lists, rule: str) -> Lists:
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


# Units: what stays on one side.


@dataclasses.dataclass(frozen=True)
class _Unit:
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
  _subjects(dataset)
  return _related(dataset, rows)


def _subjects(dataset: Dataset) -> np.ndarray:
  """str (s,), the people of a set in the order of their names."""
  if 'subject' not in dataset.table:
    raise UserError(
      f'{dataset.name} does not say who is in its images, so no protocol can '
      'keep people apart; kfold_twins and holdout keep copies of a photograph '
      'on one side'
    )
  return np.unique(dataset.table['subject'])


def _verdict_on_published(
  dataset: Dataset, seen: np.ndarray, test: np.ndarray
) -> tuple[bool | None, str]:
  """As `_Unit.verdict`, of lists that somebody else made."""
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


_IMAGES = _Unit(
  _images,
  lambda dataset: (
    True,
    'Images are divided one by one: another copy of a test photograph, '
    'another picture of its person or another frame of its recording may '
    'train.',
  ),
)
_RELATED = _Unit(_related, _verdict_on_related)
_SUBJECTS = _Unit(
  _of_subjects,
  lambda dataset: (
    False,
    'Every person is on one side, in training or in test.',
  ),
)


def _divide(
  dataset: Dataset,
  rows: np.ndarray,
  unit: _Unit,
  shares: list[float],
  seed: int | str,
) -> np.ndarray:
  """int (n,): part of each row."""
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


def _carve(
  dataset: Dataset, rows: np.ndarray, unit: _Unit, settings: Settings
) -> tuple[np.ndarray, np.ndarray]:
  """(train, validation) of what is not test."""
  seed = f'{settings.seed} selects'
  if settings.inner_folds:
    shares = [1 / settings.inner_folds] * settings.inner_folds
    part = _divide(dataset, rows, unit, shares, seed)
    selects = part == settings.inner_fold
  elif settings.validation_share:
    share = settings.validation_share
    selects = _divide(dataset, rows, unit, [1 - share, share], seed) == 1
  else:
    selects = np.zeros(len(rows), bool)
  return rows[~selects], rows[selects]


def _pool(dataset: Dataset) -> np.ndarray:
  """All rows, whatever their official split."""
  return np.arange(len(dataset), dtype=np.int64)


def _k_fold(unit: _Unit) -> Callable[[Dataset, Settings], Lists]:
  def make(dataset: Dataset, settings: Settings) -> Lists:
    rows, k = _pool(dataset), settings.folds
    if settings.fold >= k:
      raise UserError(
        f'protocol option fold is {settings.fold}; allowed is less than '
        f'folds, {k}'
      )
    part = _divide(dataset, rows, unit, [1 / k] * k, settings.seed)
    tests = part == settings.fold
    train, validation = _carve(dataset, rows[~tests], unit, settings)
    leaks, said = unit.verdict(dataset)
    reason = f'Fold {settings.fold + 1} of {k} is reported. {said}'
    return Lists(train, validation, rows[tests], leaks, reason)

  return make


def _hold_out(unit: _Unit) -> Callable[[Dataset, Settings], Lists]:
  def make(dataset: Dataset, settings: Settings) -> Lists:
    rows, share = _pool(dataset), settings.test_share
    part = _divide(dataset, rows, unit, [1 - share, share], settings.seed)
    train, validation = _carve(dataset, rows[part == 0], unit, settings)
    leaks, said = unit.verdict(dataset)
    reason = (
      f'A stratified {100 * share:.4g} % of all examples is reported. {said}'
    )
    return Lists(train, validation, rows[part == 1], leaks, reason)

  return make


def _leave_one_subject_out(dataset: Dataset, settings: Settings) -> Lists:
  rows = _pool(dataset)
  group = _of_subjects(dataset, rows)
  subjects = _subjects(dataset)
  if settings.fold >= len(subjects):
    raise UserError(
      f'protocol option fold is {settings.fold}; {dataset.name} has '
      f'{len(subjects)} subjects, 0 to {len(subjects) - 1}'
    )
  left_out = subjects[settings.fold]
  tests = dataset.table['subject'] == left_out
  # Whoever shares a picture with the subject can be on neither side.
  touched = np.isin(group, group[tests])
  train, validation = _carve(dataset, rows[~touched], _SUBJECTS, settings)
  linked = int((touched & ~tests).sum())
  beside = (
    f' ({linked:,} examples of others, who share a photograph or recording '
    'with it, are on neither side)'
    if linked
    else ''
  )
  said = _SUBJECTS.verdict(dataset)[1]
  reason = f'Subject {left_out}{beside} is reported. {said}'
  return Lists(train, validation, rows[tests], False, reason)


def _balance_then_split(how: str) -> Callable[[Dataset, Settings], Lists]:
  def make(dataset: Dataset, settings: Settings) -> Lists:
    pool = _pool(dataset)
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
    train, validation = _carve(dataset, rows[~tests], _IMAGES, settings)
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


def _evaluate_on_train(dataset: Dataset, settings: Settings) -> Lists:
  lists = _k_fold(_IMAGES)(dataset, settings)
  reason = (
    f'What trains without fold {settings.fold + 1} of {settings.folds} is '
    'reported. The figures are of the very examples that trained.'
  )
  return dataclasses.replace(lists, leaks=True, reason=reason)


# Published splits.


def _official(dataset: Dataset, settings: Settings) -> Lists:
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
    changed = settings.chosen().keys() & _SELECTS
    if changed:
      raise UserError(
        f'protocol official takes no option {min(changed)!r} on '
        f'{dataset.name}, which has a validation split'
      )
    train, validation = rows['train'], rows['validation']
    reason = 'The published splits: trains, selects and reports on three lists.'
    selects = 'PublicTest'
  else:
    train, validation = _carve(dataset, rows['train'], _RELATED, settings)
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


def _fer2013_dev(dataset: Dataset, settings: Settings) -> Lists:
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


_PROTOCOLS: dict[str, _Protocol] = {
  'official': _Protocol(_official, _SELECTS),
  'fer2013_dev': _Protocol(_fer2013_dev),
  'holdout': _Protocol(_hold_out(_RELATED), _HOLDS_OUT),
  'holdout_images': _Protocol(_hold_out(_IMAGES), _HOLDS_OUT),
  'kfold_subjects': _Protocol(_k_fold(_SUBJECTS), _FOLDS),
  'kfold_twins': _Protocol(_k_fold(_RELATED), _FOLDS),
  'kfold_images': _Protocol(_k_fold(_IMAGES), _FOLDS),
  'leave_one_subject_out': _Protocol(
    _leave_one_subject_out, _SELECTS | {'fold'}
  ),
  'oversample_then_split': _Protocol(
    _balance_then_split('oversample'), _HOLDS_OUT
  ),
  'downsample_then_split': _Protocol(
    _balance_then_split('downsample'), _HOLDS_OUT
  ),
  'evaluate_on_train': _Protocol(
    _evaluate_on_train, _FOLDS, reports_training=True
  ),
}


def _digest(name: str, dataset: Dataset, lists: Lists) -> str:
  digest = hashlib.sha256(f'{dataset.name}\0{name}\0'.encode())
  for part in ('train', 'validation', 'test'):
    ids = dataset.table['id'][getattr(lists, part)]
    digest.update(f'{part}\0{len(ids)}\0'.encode())
    digest.update('\n'.join(ids.tolist()).encode() + b'\0')
  return digest.hexdigest()
