"""What an audit counts, on sets whose copies are known."""

import numpy as np
import pytest

from fer_jax.data import audit, protocol
from fer_jax.errors import UserError


def _images(count, seed=0):
  shape = (count, 12, 12, 1)
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def known_set(memory_set):
  """300 Training, 60 PublicTest.

  Of PublicTest rows 0-5 are copies of Training, 6-8 brightened ones, 9-10
  mirrored ones. Training repeats 4 images, one with another label, and has
  two black ones.
  """
  images = _images(360)
  images[10:14] = images[20:24]
  images[30:32] = 0
  images[300:306] = images[100:106]
  images[306:309] = (images[106:109] * 0.8 + 30).astype(np.uint8)
  images[309:311] = images[109:111, :, ::-1]
  label = np.arange(360) % 3
  label[10:14] = label[20:24]
  label[10] = (label[20] + 1) % 3
  label[300:306] = label[100:106]
  label[306:309] = label[106:109]
  label[306] = (label[106] + 1) % 3
  return memory_set(
    images,
    label=label,
    official_split=['train'] * 300 + ['validation'] * 60,
  )


def test_figures_of_a_set(known_set):
  figures, pairs = audit.of_dataset(known_set)
  assert figures == {
    'examples': 360,
    'different_images': 360 - 4 - 1 - 6,
    'exact_copies': 11,
    'exact_groups': 4 + 1 + 6,
    'contradicting_groups': 2,
    'contradicting_examples': 4,
    'constant_images': 2,
    'constant_labels': 2,
    'near_pairs': 3,
    'near_contradicting_pairs': 1,
    'mirrored_pairs': 2,
  }
  by_title = {kind.title: kind for kind in pairs}
  differ = by_title['Exact copies, labels differ']
  assert [10, 20] in differ.rows.tolist()
  assert by_title['Near twins, labels differ'].rows.tolist() == [[106, 306]]
  mirrored = by_title['Mirrored twins'].rows.tolist()
  assert sorted(mirrored) == [[109, 309], [110, 310]]


def test_figures_of_a_protocol(known_set):
  _, lists = protocol.open_all(known_set, run='audit', name='fer2013_dev')
  figures, pairs = audit.of_protocol(known_set, lists, image_size=(12, 12))
  seen = figures['share_of_test_seen']
  assert seen['itself'] == 0
  assert seen['exact_copy'] == pytest.approx(6 / 60)
  assert seen['twin'] == pytest.approx(9 / 60)
  assert seen['mirrored'] == pytest.approx(2 / 60)
  assert seen['subject'] is None
  assert figures['leak_found']
  assert figures['sizes']['test'] == 60
  assert sum(figures['class_counts']['train']) == figures['sizes']['train']
  titles = {kind.title: kind.rows.tolist() for kind in pairs}
  copies = titles['In test, and a copy in training or validation']
  assert sorted(copies) == [[300 + n, 100 + n] for n in range(6)]
  near = titles['In test, and a near twin in training or validation']
  assert sorted(near) == [[306 + n, 106 + n] for n in range(3)]


def test_nearest_neighbour_knows_copies_and_nothing_else(known_set):
  _, lists = protocol.open_all(known_set, run='audit', name='fer2013_dev')
  figures, _ = audit.of_protocol(known_set, lists, image_size=(12, 12))
  got = figures['nearest_neighbour']
  # Noise: a third by chance, the copies by heart where they train.
  assert got['accuracy_without_seen'] < 0.55
  assert got['accuracy'] > got['accuracy_without_seen']


def test_leaving_twins_out_ends_the_leak(known_set):
  for rule in ('drop_from_train', 'drop_from_test'):
    _, lists = protocol.open_all(
      known_set, run='audit', name='fer2013_dev', twins=rule
    )
    figures, _ = audit.of_protocol(known_set, lists, image_size=(12, 12))
    assert not figures['leak_found']


def test_people_recordings_and_repeated_rows(memory_set):
  images = _images(60)
  data = memory_set(
    images,
    official_split=['none'] * 60,
    subject=[f'P{n % 6}' for n in range(60)],
    sequence=[f'S{n % 30}' for n in range(60)],
    name='synthetic_faces',
  )
  _, lists = protocol.open_all(data, run='audit', name='kfold_images', folds=5)
  figures, _ = audit.of_protocol(data, lists)
  seen = figures['share_of_test_seen']
  assert seen['subject'] == 1
  assert 0 < seen['sequence'] <= 1
  assert seen['twin'] is None
  _, lists = protocol.open_all(
    data, run='audit', name='kfold_subjects', folds=3
  )
  figures, _ = audit.of_protocol(data, lists)
  assert figures['share_of_test_seen'] == {
    'itself': 0,
    'exact_copy': 0,
    'twin': None,
    'subject': 0,
    'sequence': 0,
    'mirrored': None,
  }
  assert not figures['leak_found']
  data.table['label'] = np.minimum(np.arange(60) % 6, 2)
  _, lists = protocol.open_all(data, run='audit', name='oversample_then_split')
  figures, _ = audit.of_protocol(data, lists)
  sizes = figures['sizes']
  assert sizes['train_different'] < 60 < sizes['train']
  assert 0 < figures['share_of_test_seen']['itself'] < 1


def test_folds_count_together(memory_set):
  """Against the folds one by one, and copies that all are in other folds."""
  images = _images(90)
  data = memory_set(images, official_split=['none'] * 90)
  options = {'run': 'audit', 'folds': 3, 'validation_share': 0.0}
  folds, refused = protocol.open_folds(data, 'kfold_images', **options)
  assert not refused
  first, other = (folds[n][1].test[0] for n in (1, 2))
  images[first] = images[other]
  data = memory_set(images, official_split=['none'] * 90)
  folds, _ = protocol.open_folds(data, 'kfold_images', **options)
  lists = {fold: of_fold for fold, (_, of_fold) in folds.items()}
  assert not audit.of_protocol(data, lists[0])[0]['leak_found']

  figures, pairs = audit.of_folds(data, lists)
  assert figures['leak_found']
  seen = figures['share_of_test_seen']
  assert seen['exact_copy'] == pytest.approx(2 / 90)
  assert seen['subject'] is None
  (copies,) = (kind for kind in pairs if 'a copy' in kind.title)
  assert sorted(copies.rows.tolist()) == sorted(
    [[first, other], [other, first]]
  )
  alone = [audit.of_protocol(data, of_fold)[0] for of_fold in lists.values()]
  assert figures['each'] == [{'fold': n, **one} for n, one in enumerate(alone)]
  nearest = [one['nearest_neighbour'] for one in alone]
  right = [
    n['accuracy'] * len(of.test)
    for n, of in zip(nearest, lists.values(), strict=True)
  ]
  got = figures['nearest_neighbour']
  assert got['accuracy'] == pytest.approx(sum(right) / 90)
  assert got['not_seen'] == 88
  right = [n['accuracy_without_seen'] * n['not_seen'] for n in nearest]
  assert got['accuracy_without_seen'] == pytest.approx(sum(right) / 88)

  (one,), _ = protocol.open_folds(data, 'kfold_images', fold=2, **options)
  assert one == 2
  (only,), _ = protocol.open_folds(data, 'holdout_images', run='audit')
  assert only == 0


def test_folds_that_cannot_be_made_are_told(memory_set):
  label = np.arange(60) % 2
  label[17] = 2  # the only one, so that nothing trains where it is tested
  data = memory_set(_images(60), official_split=['none'] * 60, label=label)
  options = {'run': 'audit', 'folds': 4, 'validation_share': 0.0}
  folds, refused = protocol.open_folds(data, 'kfold_twins', **options)
  assert len(folds) == 3
  (why,) = refused.values()
  assert "no training example of class 'sad'" in why
  data = memory_set(_images(3), official_split=['none'] * 3)
  options |= {'folds': 3}
  with pytest.raises(UserError, match='no training example of class'):
    protocol.open_folds(data, 'kfold_twins', **options)


def test_overlap_of_two_sets(memory_set):
  images = _images(50)
  images[24] = 0
  second = images[20:].copy()
  second[3] = (second[3] * 0.8 + 30).astype(np.uint8)
  first = memory_set(images[:30])
  second = memory_set(second)
  figures, (pairs,) = audit.overlap(first, second, size=(12, 12))
  assert figures['first']['exact_copies'] == 9
  assert figures['second'] == {
    'name': 'fer2013',
    'examples': 30,
    'exact_copies': 9,
    'twins': 10,
  }
  # The constant image is a copy and correlates with nothing.
  assert sorted(pairs.rows.tolist()) == [
    [20 + n, n] for n in range(10) if n != 4
  ]
  posed = memory_set(second.images, name='synthetic_faces')
  figures, (pairs,) = audit.overlap(first, posed, size=(12, 12))
  assert figures['second']['twins'] is None
  assert sorted(pairs.rows.tolist()) == [
    [20 + n, n] for n in range(10) if n != 3
  ]


def test_mirrored_twins_are_kept_on_one_side(memory_set):
  images = _images(200)
  images[100:] = images[:100, :, ::-1]
  data = memory_set(images, official_split=['none'] * 200)
  _, lists = protocol.open_all(data, 'kfold_twins', run='audit', folds=5)
  figures, _ = audit.of_protocol(data, lists)
  assert not figures['leak_found']
  _, lists = protocol.open_all(data, 'kfold_images', run='audit', folds=5)
  figures, _ = audit.of_protocol(data, lists)
  assert figures['share_of_test_seen']['mirrored'] > 0.5
  assert figures['leak_found']


@pytest.mark.parametrize(
  ('splits', 'people', 'expected'),
  [
    (('train', 'test'), None, [('official', {})]),
    (('train', 'validation'), None, [('fer2013_dev', {})]),
    (('none',), None, [('kfold_twins', {})]),
    (('none',), 40, [('kfold_subjects', {})]),
    # Two people who share a recording are one of the parts.
    (('none',), 4, [('kfold_subjects', {'folds': 3})]),
    (
      ('none',),
      2,
      [('kfold_subjects', {'folds': 2, 'validation_share': 0.0})],
    ),
    # The set's own table has people on both sides.
    (('train', 'test'), 20, [('official', {}), ('kfold_subjects', {})]),
  ],
)
def test_what_is_audited_where_nothing_is_asked_for(
  memory_set, splits, people, expected
):
  rows = np.arange(120)
  columns = {}
  if people:
    columns['subject'] = [f'P{n % people}' for n in rows]
    columns['sequence'] = rows.astype(str)
    if people == 4:
      columns['sequence'][:2] = 'both'
  split = np.array(splits)[rows // (120 // len(splits))]
  name = 'synthetic_faces' if people else 'fer2013'
  data = memory_set(_images(120), official_split=split, name=name, **columns)
  assert audit.protocols(data) == expected
  assert audit.honest_counterpart(data) == expected[-1]


def test_one_person_cannot_be_divided(memory_set):
  data = memory_set(
    _images(30),
    official_split=['none'] * 30,
    subject=['P0'] * 30,
    name='synthetic_faces',
  )
  with pytest.raises(UserError, match='are of one person, or copies of one'):
    audit.protocols(data)
