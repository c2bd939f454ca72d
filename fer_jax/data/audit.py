"""What a data set repeats, and what a protocol lets through.

`of_dataset` looks at the set alone: copies, twins, labels that contradict
each other. `of_protocol` looks at the lists of a protocol: what of the test
is, in one form or another, on the side that trains or selects; `of_folds` at
those of every fold. They count; none trains anything. `overlap` compares two
sets.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fer_jax.data import nearest, protocol, twins
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError

# Pairs that a page shows of each kind.
SHOWN_PAIRS = 24
IN_BOTH = 'In both sets'


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
  """Pairs of rows that are one photograph, for showing.

  Attributes:
    title: what kind.
    rows: int (n, 2), of the data set; the second of the other set where two
      are compared.
    correlation: float (n,).
  """

  title: str
  rows: np.ndarray
  correlation: np.ndarray


def of_dataset(dataset: Dataset) -> tuple[dict[str, Any], list[Pairs]]:
  """Copies and contradictions within a set.

  Args:
    dataset: a built data set.

  Returns:
    (figures, pairs to show): `figures` is JSON-able; near and mirrored twins
    are None where they would mean nothing, see `twins.known`.
  """
  found = twins.known(dataset)
  label = dataset.table['label']
  image_count = int(found.image.max()) + 1
  copies = np.bincount(found.image)
  labels = _labels_by_image(found.image, label, image_count)
  contradicting = (labels > 0).sum(1) > 1
  constant = _constant_rows(dataset)
  figures: dict[str, Any] = {
    'examples': len(dataset),
    'different_images': image_count,
    'exact_copies': len(dataset) - image_count,
    'exact_groups': int((copies > 1).sum()),
    'contradicting_groups': int(contradicting.sum()),
    'contradicting_examples': int(copies[contradicting].sum()),
    'constant_images': len(constant),
    'constant_labels': len(np.unique(label[constant])),
    'near_pairs': None,
    'near_contradicting_pairs': None,
    'mirrored_pairs': None,
  }
  shown = [_exact_pairs(found.image, label, contradicting)]
  if twins.near_twins_are_copies(dataset):
    first = _first_rows(found.image)
    rows = first[found.pairs]
    differ = label[rows[:, 0]] != label[rows[:, 1]]
    figures['near_pairs'] = len(rows)
    figures['near_contradicting_pairs'] = int(differ.sum())
    shown += [
      _pairs(
        'Near twins, labels differ', rows[differ], found.correlation[differ]
      ),
      _pairs('Near twins', rows[~differ], found.correlation[~differ]),
    ]
    figures['mirrored_pairs'] = len(found.mirrored)
    mirrored = first[found.mirrored]
    shown.append(_pairs('Mirrored twins', mirrored, found.mirrored_correlation))
  return figures, [pairs for pairs in shown if len(pairs.rows)]


def of_protocol(
  dataset: Dataset,
  lists: protocol.Lists,
  *,
  image_size: tuple[int, int] = (48, 48),
) -> tuple[dict[str, Any], list[Pairs]]:
  """What of the test is on the side that trains or selects.

  Args:
    dataset: a built data set.
    lists: of `protocol.open_all`.
    image_size: (height, width) at which nearest neighbours are sought.

  Returns:
    (figures, pairs to show). `figures` is JSON-able: sizes, class counts,
    shares of the test that are themselves in training, have a copy, a near
    twin (copies included), a mirrored one, their person or their recording
    there, and the accuracy of a nearest neighbour; `leak_found` says whether
    any of those shares is above 0.
  """
  grey = functools.partial(twins.grey_images, dataset, size=image_size)
  return _of_lists(dataset, lists, grey, image_size)


def of_folds(
  dataset: Dataset,
  folds: Mapping[int, protocol.Lists],
  *,
  image_size: tuple[int, int] = (48, 48),
) -> tuple[dict[str, Any], list[Pairs]]:
  """As `of_protocol`, of the tests of several folds together.

  Args:
    dataset: a built data set.
    folds: their lists by number, at least one.
    image_size: as for `of_protocol`.

  Returns:
    (figures, pairs to show). Shares and accuracies are over the test examples
    of all folds, and what one fold does not know is not known; sizes, counts
    and absent classes are those of the first; 'each' has the figures of every
    fold, with its number, where there are several.
  """
  if len(folds) == 1:
    (lists,) = folds.values()
    return of_protocol(dataset, lists, image_size=image_size)
  # Every fold takes other rows of the same images.
  pixels = twins.grey_images(dataset, np.arange(len(dataset)), image_size)
  each, crossing = [], []
  for number, lists in folds.items():
    figures, pairs = _of_lists(dataset, lists, pixels.__getitem__, image_size)
    each.append({'fold': number, **figures})
    crossing += pairs
  sizes = [one['sizes']['test'] for one in each]
  neighbours = [one['nearest_neighbour'] for one in each]
  together = {
    **{name: value for name, value in each[0].items() if name != 'fold'},
    'share_of_test_seen': {
      kind: over_folds([one['share_of_test_seen'][kind] for one in each], sizes)
      for kind in each[0]['share_of_test_seen']
    },
    'nearest_neighbour': {
      **neighbours[0],
      **{
        name: over_folds([n[name] for n in neighbours], sizes)
        for name in ('accuracy', 'majority_class')
      },
      'accuracy_without_seen': _without_seen(neighbours),
      'not_seen': sum(n['not_seen'] for n in neighbours),
    },
    'leak_found': any(one['leak_found'] for one in each),
    'each': each,
  }
  return together, _pairs_of_all(crossing)


def over_folds(
  values: Sequence[float | None], sizes: Sequence[int]
) -> float | None:
  """A share of the test examples of all folds; None where one is unknown.

  Args:
    values: of each fold.
    sizes: of each fold's test.
  """
  known = [value for value in values if value is not None]
  if len(known) < len(values):
    return None
  return float(np.average(known, weights=sizes))


def _without_seen(neighbours: Sequence[dict[str, Any]]) -> float | None:
  """Accuracy on the test examples of all folds that were not seen, if any."""
  left = [n for n in neighbours if n['not_seen']]
  if not left:
    return None
  return over_folds(
    [n['accuracy_without_seen'] for n in left], [n['not_seen'] for n in left]
  )


def _pairs_of_all(crossing: Sequence[Pairs]) -> list[Pairs]:
  """Pairs of one kind together, whatever fold they are of."""
  kinds: dict[str, list[Pairs]] = {}
  for pairs in crossing:
    kinds.setdefault(pairs.title, []).append(pairs)
  return [
    _pairs(
      title,
      np.concatenate([pairs.rows for pairs in kind]),
      np.concatenate([pairs.correlation for pairs in kind]),
    )
    for title, kind in kinds.items()
  ]


def _of_lists(
  dataset: Dataset,
  lists: protocol.Lists,
  grey: Callable[[np.ndarray], np.ndarray],
  image_size: tuple[int, int],
) -> tuple[dict[str, Any], list[Pairs]]:
  """As `of_protocol`; `grey` gives rows' grey images of `image_size`."""
  found = twins.known(dataset)
  table, label = dataset.table, dataset.table['label']
  train, validation, test = lists.train, lists.validation, lists.test
  seen = np.concatenate([train, validation])
  exact = found.exact_among(test, seen)
  near = found.near_among(test, seen)
  shares: dict[str, float | None] = {
    'itself': _share(np.isin(test, seen)),
    'exact_copy': _share(exact),
    'twin': None,
    'mirrored': None,
    'subject': None,
    'sequence': None,
  }
  if twins.near_twins_are_copies(dataset):
    shares['twin'] = _share(near)
    shares['mirrored'] = _share(found.any_among(test, seen) & ~near)
  for column in ('subject', 'sequence'):
    if column in table:
      shares[column] = _share(np.isin(table[column][test], table[column][seen]))
  figures: dict[str, Any] = {
    'sizes': {
      'train': len(train),
      'train_different': len(np.unique(train)),
      'validation': len(validation),
      'test': len(test),
    },
    'class_counts': {
      side: np.bincount(
        label[rows], minlength=len(dataset.class_names)
      ).tolist()
      for side, rows in (
        ('train', train),
        ('validation', validation),
        ('test', test),
      )
    },
    'absent_classes': {
      side: [
        dataset.class_names[k]
        for k in np.setdiff1d(np.unique(label), label[rows])
      ]
      for side, rows in (('validation', validation), ('test', test))
      if len(rows)
    },
    'share_of_test_seen': shares,
    'share_of_validation_in_train': {
      'itself': _share(np.isin(validation, train)),
      'exact_copy': _share(found.exact_among(validation, train)),
      'twin': _share(found.near_among(validation, train))
      if twins.near_twins_are_copies(dataset)
      else None,
    }
    if len(validation)
    else None,
    'nearest_neighbour': {
      **_nearest_neighbour(label, train, test, near, grey),
      'compared_at': list(image_size),
    },
    'leak_found': any(share for share in shares.values()),
  }
  return figures, _crossing_pairs(dataset, found, test, seen)


def overlap(
  dataset: Dataset, other: Dataset, *, size: tuple[int, int] = (48, 48)
) -> tuple[dict[str, Any], list[Pairs]]:
  """Photographs that two sets share.

  Args:
    dataset: a built data set.
    other: another one.
    size: (height, width) at which they are compared.

  Returns:
    (figures, pairs to show): rows of each, 'first' and 'second', with a copy
    in the other, pixel by pixel as grey images of `size`; and with a near
    twin, mirrored or not, where near twins are copies in both, else None.
  """
  here = twins.grey_images(dataset, np.arange(len(dataset)), size)
  there = twins.grey_images(other, np.arange(len(other)), size)
  number: dict[bytes, int] = {}
  ours, theirs = (
    np.array([number.setdefault(row.tobytes(), len(number)) for row in pixels])
    for pixels in (here, there)
  )
  shared = np.intersect1d(ours, theirs)
  figures: dict[str, Any] = {
    'first': {'name': dataset.name, 'examples': len(dataset)},
    'second': {'name': other.name, 'examples': len(other)},
    'compared_at': list(size),
  }
  for side, numbers in (('first', ours), ('second', theirs)):
    figures[side]['exact_copies'] = int(np.isin(numbers, shared).sum())
    figures[side]['twins'] = None
  rows = np.array(
    [
      (np.argmax(ours == n), np.argmax(theirs == n))
      for n in shared[:SHOWN_PAIRS]
    ],
    np.int64,
  ).reshape(-1, 2)
  shown = [_pairs(IN_BOTH, rows, np.ones(len(rows)))]
  if all(map(twins.near_twins_are_copies, (dataset, other))):
    pairs, correlation = twins.pairs_between(here, there, size)
    for column, (side, numbers) in enumerate(
      (('first', ours), ('second', theirs))
    ):
      # An image of one value correlates with nothing, itself included.
      copied = np.isin(numbers, shared)
      copied[pairs[:, column]] = True
      figures[side]['twins'] = int(copied.sum())
    shown = [_pairs(IN_BOTH, pairs, correlation)]
  return figures, [pairs for pairs in shown if len(pairs.rows)]


def protocols(dataset: Dataset) -> list[tuple[str, dict[str, Any]]]:
  """What is audited where nothing is asked for: (name, options) of each.

  The published splits where there are some; and `honest_counterpart`, where
  those are not honest themselves.

  Raises:
    UserError: there is neither.
  """
  published = _published(dataset)
  chosen = [(published, {})] if published else []
  try:
    honest = honest_counterpart(dataset)
  except UserError:
    if not chosen:
      raise
  else:
    chosen += [honest] if honest not in chosen else []
  return chosen


def honest_counterpart(dataset: Dataset) -> tuple[str, dict[str, Any]]:
  """The honest protocol to set beside another, and its options.

  The published splits where there are some that keep people apart, else folds
  that do, or that keep at least copies apart.

  Raises:
    UserError: the set cannot be divided so.
  """
  published = _published(dataset)
  if published and not protocol.resolve(dataset, published).leaks:
    return published, {}
  parts = protocol.parts_apart(dataset)
  if parts < 2:
    raise UserError(
      f'{dataset.name}: all examples are of one person, or copies of one '
      'photograph, so no honest protocol divides them'
    )
  name = 'kfold_subjects' if 'subject' in dataset.table else 'kfold_twins'
  options: dict[str, Any] = {'folds': parts} if parts < 10 else {}
  if parts == 2:  # one trains and one is reported
    options['validation_share'] = 0.0
  protocol.resolve(dataset, name, **options)
  return name, options


def _published(dataset: Dataset) -> str:
  """The protocol that takes the published splits; '' where there is none."""
  splits = set(np.unique(dataset.table['official_split']).tolist())
  if {'train', 'test'} <= splits:
    return 'official'
  if dataset.name in protocol.CHALLENGE and {'train', 'validation'} <= splits:
    return 'fer2013_dev'
  return ''


def _share(mask: np.ndarray) -> float:
  return float(mask.mean()) if len(mask) else 0.0


def _labels_by_image(image, label, count) -> np.ndarray:
  """int (U, K): how many rows of each image carry each label."""
  table = np.zeros((count, int(label.max()) + 1), np.int64)
  np.add.at(table, (image, label), 1)
  return table


def _constant_rows(dataset: Dataset) -> np.ndarray:
  constant = [
    row
    for row, image in enumerate(dataset.each())
    if image.min() == image.max()
  ]
  return np.array(constant, np.int64)


def _first_rows(image: np.ndarray) -> np.ndarray:
  return np.unique(image, return_index=True)[1]


def _pairs(title: str, rows: np.ndarray, correlation: np.ndarray) -> Pairs:
  """Some pairs, evenly over their correlations."""
  order = np.argsort(-correlation, kind='stable')
  if len(order) > SHOWN_PAIRS:
    order = order[
      np.linspace(0, len(order) - 1, SHOWN_PAIRS).round().astype(int)
    ]
  return Pairs(title, rows[order], correlation[order])


def _exact_pairs(image, label, contradicting) -> Pairs:
  """A pair of each group of copies whose labels contradict each other."""
  chosen = []
  for number in np.flatnonzero(contradicting)[:SHOWN_PAIRS]:
    rows = np.flatnonzero(image == number)
    other = rows[label[rows] != label[rows[0]]][0]
    chosen.append((rows[0], other))
  rows = np.array(chosen, np.int64).reshape(-1, 2)
  return Pairs('Exact copies, labels differ', rows, np.ones(len(rows)))


def _crossing_pairs(
  dataset: Dataset, found: twins.Twins, test: np.ndarray, seen: np.ndarray
) -> list[Pairs]:
  """Test rows beside what of them is on the other side."""
  seen_of = {int(found.image[row]): int(row) for row in seen[::-1]}
  tests = np.unique(test)
  exact = [
    (row, seen_of[number])
    for row, number in zip(tests, found.image[tests], strict=True)
    if number in seen_of
  ]
  test_of = {int(found.image[row]): int(row) for row in tests[::-1]}
  near, correlation = [], []
  for (a, b), value in zip(
    found.pairs.tolist(), found.correlation, strict=True
  ):
    for one, other in ((a, b), (b, a)):
      if one in test_of and other in seen_of and one not in seen_of:
        near.append((test_of[one], seen_of[other]))
        correlation.append(value)
  shown = [
    _pairs(
      'In test, and a copy in training or validation',
      np.array(exact, np.int64).reshape(-1, 2),
      np.ones(len(exact)),
    ),
    _pairs(
      'In test, and a near twin in training or validation',
      np.array(near, np.int64).reshape(-1, 2),
      np.array(correlation),
    ),
  ]
  return [pairs for pairs in shown if len(pairs.rows)]


def _nearest_neighbour(
  label: np.ndarray,
  train: np.ndarray,
  test: np.ndarray,
  known: np.ndarray,
  grey: Callable[[np.ndarray], np.ndarray],
) -> dict[str, Any]:
  """Accuracy of one nearest neighbour, and of always naming one class.

  Args:
    label: (N,) of the data set's rows.
    train: rows that train.
    test: (n,) rows.
    known: bool (n,), test examples with a twin in training or validation.
    grey: from rows to their grey images.
  """
  references = np.unique(train)
  queries, back = np.unique(test, return_inverse=True)
  place = nearest.nearest_rows(grey(queries), grey(references))
  right = (label[references[place]] == label[queries])[back]
  majority = np.bincount(label[train]).argmax()
  return {
    'accuracy': float(right.mean()),
    'accuracy_without_seen': float(right[~known].mean())
    if not known.all()
    else None,
    'not_seen': int((~known).sum()),
    'majority_class': float(np.mean(label[test] == majority)),
  }


def require_comparable(dataset: Dataset, other: Dataset) -> None:
  """Raises UserError where two sets cannot be compared image by image."""
  if dataset.is_clips or other.is_clips:
    raise UserError(
      f'{dataset.name} and {other.name} cannot be compared: clips are '
      'compared within their own set only; build the images form'
    )
