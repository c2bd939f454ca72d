"""Protocols: who is on which side, what is refused, what the digest says."""

import dataclasses
import hashlib

import numpy as np
import pytest

from fer_jax import config as config_lib
from fer_jax.data import ledger, protocol, twins
from fer_jax.datasets import fer2013
from fer_jax.errors import UserError


def _images(count, seed=0):
  shape = (count, 12, 12, 1)
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def dev_set(memory_set):
  """400 Training rows, 40 PublicTest; every fifth image has a copy."""
  images = _images(440)
  images[100:140] = images[0:200:5]  # Twins within Training.
  images[400:410] = images[200:210]  # Exact twins of PublicTest.
  # Near twins of PublicTest: brightened.
  images[410:416] = (images[210:216] * 0.8 + 30).astype(np.uint8)
  label = np.arange(440) % 3
  label[100:140] = label[0:200:5]
  return memory_set(
    images,
    label=label,
    official_split=['train'] * 400 + ['validation'] * 40,
  )


@pytest.fixture
def whole_set(memory_set):
  return memory_set(
    _images(60),
    official_split=['train'] * 40 + ['validation'] * 10 + ['test'] * 10,
    name='synthetic_faces',
  )


LEAKS = {
  'official': False,
  'fer2013_dev': False,
  'holdout': False,
  'holdout_images': True,
  'kfold_subjects': False,
  'kfold_twins': False,
  'kfold_images': True,
  'leave_one_subject_out': False,
  'oversample_then_split': True,
  'downsample_then_split': True,
  'evaluate_on_train': True,
}


def test_names():
  assert set(protocol.names()) == set(LEAKS)


def test_official_takes_the_published_splits(whole_set):
  got = protocol.resolve(whole_set, 'official')
  np.testing.assert_array_equal(got.train, np.arange(40))
  np.testing.assert_array_equal(got.validation, np.arange(40, 50))
  assert got.train.dtype == np.int64
  assert list(got.validation_ids) == [f'set/{n:05d}' for n in range(40, 50)]
  assert got.reason


def test_published_splits_are_looked_at_where_people_are_known(whole_set):
  got = protocol.resolve(whole_set, 'official')
  assert got.leaks is None
  assert got.reason.endswith('not looked for; an audit counts them.')
  dropped = protocol.resolve(whole_set, 'official', twins='drop_from_test')
  assert 'not looked for' not in dropped.reason
  assert 'cannot be told' in got.reason
  people = np.array([f'P{n // 2:02d}' for n in range(60)])
  whole_set.table['subject'] = people
  got = protocol.resolve(whole_set, 'official')
  assert got.leaks is False
  assert got.reason.endswith('Nobody in the test trains or selects.')
  # Two of the test's ten are of a person that selects.
  people[50:52] = people[45]
  got = protocol.resolve(whole_set, 'official')
  assert got.leaks is True
  assert 'As published, 2 of 10 test examples are of people' in got.reason
  del whole_set.table['subject']
  whole_set.table['sequence'] = people
  assert protocol.resolve(whole_set, 'official').leaks is True


def test_the_challenge_without_public_test_selects_on_training(memory_set):
  data = memory_set(
    _images(60), official_split=['train'] * 50 + ['test'] * 10, name='fer2013'
  )
  got = protocol.resolve(data, 'official')
  assert 'selects on a stratified part of it, reports PrivateTest' in got.reason
  got = protocol.resolve(data, 'official', validation_share=0.0)
  assert 'selects on nothing, reports' in got.reason


def test_partition_has_nothing_of_the_test_split(whole_set):
  got = protocol.resolve(whole_set, 'official')
  fields = {f.name: getattr(got, f.name) for f in dataclasses.fields(got)}
  arrays = [v for v in fields.values() if isinstance(v, np.ndarray)]
  test_ids = set(whole_set.table['id'][50:])
  assert len(arrays) == 4
  for array in arrays:
    assert not test_ids & set(array.tolist())
    assert not set(range(50, 60)) & set(array.tolist())


def test_digest_is_of_names_and_ordered_ids(whole_set):
  digest = hashlib.sha256(b'synthetic_faces\0official\0')
  bounds = {'train': (0, 40), 'validation': (40, 50), 'test': (50, 60)}
  for name, (start, stop) in bounds.items():
    digest.update(f'{name}\0{stop - start}\0'.encode())
    ids = '\n'.join(f'set/{n:05d}' for n in range(start, stop))
    digest.update(ids.encode() + b'\0')
  got = protocol.resolve(whole_set, 'official')
  assert got.digest == digest.hexdigest()
  # A test id alone changes it.
  whole_set.table['id'] = whole_set.table['id'].copy()
  whole_set.table['id'][55] = 'set/99999'
  assert protocol.resolve(whole_set, 'official').digest != got.digest


def test_official_without_test_names_the_other_protocol(dev_set):
  with pytest.raises(UserError, match=r'has none; .*fer2013_dev'):
    protocol.resolve(dev_set, 'official')


@pytest.mark.parametrize('name', ['official', 'fer2013_dev'])
def test_mixed_test_folder_is_refused(memory_set, name):
  data = memory_set(
    _images(9), official_split=['train'] * 6 + ['test_unsplit'] * 3
  )
  with pytest.raises(UserError, match='validation from test'):
    protocol.resolve(data, name)


def test_unknown_names_and_options(whole_set):
  with pytest.raises(UserError, match="did you mean 'official'"):
    protocol.resolve(whole_set, 'oficial')
  with pytest.raises(UserError, match="takes no option 'folds', which is 3"):
    protocol.resolve(whole_set, 'official', folds=3)
  with pytest.raises(UserError, match="no option 'flods'"):
    protocol.resolve(whole_set, 'official', flods=3)
  with pytest.raises(UserError, match='for fer2013 and ferplus, not synth'):
    protocol.resolve(whole_set, 'fer2013_dev')


def test_dev_is_a_stratified_tenth_with_twins_on_one_side(dev_set):
  got = protocol.resolve(dev_set, 'fer2013_dev')
  assert sorted([*got.train, *got.validation]) == list(range(400))
  label = dev_set.table['label']
  expected = np.round(np.bincount(label[:400]) / 10)
  np.testing.assert_array_equal(np.bincount(label[got.validation]), expected)
  found = twins.find(dev_set)
  assert not found.any_among(got.validation, got.train).any()


def test_dev_depends_on_the_seed_alone(dev_set):
  first = protocol.resolve(dev_set, 'fer2013_dev', seed=0)
  again = protocol.resolve(dev_set, 'fer2013_dev', seed=0)
  other = protocol.resolve(dev_set, 'fer2013_dev', seed=1)
  np.testing.assert_array_equal(first.validation, again.validation)
  assert first.digest == again.digest != other.digest
  overlap = np.intersect1d(first.validation, other.validation)
  assert len(overlap) < len(first.validation) / 2


def test_dev_does_not_read_the_test_pixels_when_grouping(dev_set):
  first = protocol.resolve(dev_set, 'fer2013_dev')
  for row in range(400, 440):
    dev_set.images[row] = dev_set.images[row - 400]
  dev_set.checksum = 'other'
  again = protocol.resolve(dev_set, 'fer2013_dev')
  np.testing.assert_array_equal(first.validation, again.validation)


def test_test_slices_leave_out_twins(dev_set):
  opened = protocol.open_test(dev_set, 'fer2013_dev', run='run')
  np.testing.assert_array_equal(opened.index, np.arange(400, 440))
  assert opened.digest == protocol.resolve(dev_set, 'fer2013_dev').digest
  rows = {k: set(opened.index[v]) for k, v in opened.slices.items()}
  assert rows['all'] == set(range(400, 440))
  assert rows['without_exact_twins'] == set(range(410, 440))
  assert rows['without_twins'] == set(range(416, 440))


def test_opening_is_in_the_ledger_before_ids_are_given(whole_set):
  ledger.path(whole_set).mkdir()
  with pytest.raises(UserError, match='cannot write the ledger'):
    protocol.open_test(whole_set, 'official', run='run')
  ledger.path(whole_set).rmdir()
  opened = protocol.open_test(whole_set, 'official', run='run')
  (entry,) = ledger.read(whole_set, ledger.OPENED)
  assert (entry['run'], entry['digest']) == ('run', opened.digest)
  assert list(opened.slices) == ['all']


# Compositions: one set of 40 people, some photographs twice.


@pytest.fixture
def people(memory_set):
  """240 images of 40 people in 3 classes; 20 images have an exact copy.

  The copies are of the same person, but of `kfold_images` nothing is safe.
  """
  images = _images(240, seed=5)
  images[220:] = images[:20]
  subject = np.array([f'P{n % 40:02d}' for n in range(240)])
  subject[220:] = subject[:20]
  return memory_set(
    images,
    label=np.arange(240) % 3,
    official_split=['none'] * 240,
    subject=subject,
    name='synthetic_faces',
  )


def _rows_of(data, name, **options):
  _, lists = protocol.open_all(data, name, run='test', **options)
  return lists.train, lists.validation, lists.test


@pytest.mark.parametrize(
  'name', sorted(set(LEAKS) - {'official', 'fer2013_dev'})
)
def test_every_protocol_says_whether_it_leaks(people, name):
  got = protocol.resolve(people, name)
  assert got.leaks == LEAKS[name]
  assert got.reason.endswith('.')
  assert got.facts()['leaks'] == LEAKS[name]
  # What the flag says is so: no copy and no person on two sides, or some.
  train, validation, test = _rows_of(people, name)
  subject, found = people.table['subject'], twins.known(people)
  seen = np.concatenate([train, validation])
  shared = np.isin(subject[test], subject[seen]).any()
  copied = found.exact_among(test, seen).any()
  assert (shared or copied) == LEAKS[name]


@pytest.mark.parametrize(
  'name', ['kfold_subjects', 'kfold_twins', 'kfold_images']
)
def test_folds_cover_every_example_once(people, name):
  tests = []
  for fold in range(5):
    train, validation, test = _rows_of(people, name, folds=5, fold=fold)
    together = np.sort(np.concatenate([train, validation, test]))
    np.testing.assert_array_equal(together, np.arange(240))
    tests.append(test)
  np.testing.assert_array_equal(np.sort(np.concatenate(tests)), np.arange(240))


def test_how_many_folds_there_are(people):
  assert protocol.fold_count(people, 'kfold_subjects', folds=3) == 3
  assert protocol.fold_count(people, 'leave_one_subject_out') == 40
  with pytest.raises(UserError, match='official has no folds; ') as refused:
    protocol.fold_count(people, 'official')
  listed = str(refused.value).rpartition(' are ')[2].split(', ')
  assert set(listed) == {
    'kfold_subjects',
    'kfold_twins',
    'kfold_images',
    'leave_one_subject_out',
  }
  with pytest.raises(UserError, match='none can be scored out of fold'):
    protocol.fold_count(people, 'evaluate_on_train')
  assert protocol.parts_apart(people) == 40


def test_options_that_are_not_given_are_those_of_the_config():
  section = config_lib.get_base().data
  for field in dataclasses.fields(protocol.Settings):
    if field.name in section and field.name != 'name':
      assert field.default == section[field.name], field.name
  assert protocol.Settings().seed == 0


def test_how_often_the_tests_of_all_folds_hold_an_example(people):
  def coverage(name, **options):
    return protocol.fold_coverage(people, name, **options)

  once = {'folds': 5, 'several': 0, 'none': 0}
  assert coverage('kfold_subjects', folds=5, fold=3, inner_folds=2) == once
  assert coverage('leave_one_subject_out') == once | {'folds': 40}
  # Each of the five reports what trained without its own part.
  reported = coverage('evaluate_on_train', folds=5, validation_share=0.0)
  assert reported == once | {'several': 240}
  # Of a tenth that trains most are in none.
  few = coverage('evaluate_on_train', folds=5, train_share=0.1)
  tests = [
    _rows_of(people, 'evaluate_on_train', folds=5, train_share=0.1, fold=f)[2]
    for f in range(5)
  ]
  assert few['none'] == 240 - len(np.unique(np.concatenate(tests))) > 0
  dropped = coverage('kfold_images', folds=5, twins='drop_copies_from_test')
  tests = [
    _rows_of(people, 'kfold_images', folds=5, fold=f)[2] for f in range(5)
  ]
  place = {row: fold for fold, test in enumerate(tests) for row in test}
  apart = sum(place[n] != place[220 + n] for n in range(20))
  assert dropped == once | {'none': 2 * apart}
  assert apart > 0
  assert coverage('holdout') is None
  assert ledger.read(people, ledger.OPENED) == []


def test_folds_of_people_keep_people_and_inner_validation_apart(people):
  subject = people.table['subject']
  for fold in range(5):
    sides = _rows_of(people, 'kfold_subjects', folds=5, fold=fold)
    names = [set(subject[rows]) for rows in sides]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    assert not names[1] & names[2]
    assert len(sides[1]) >= 12


def test_nested_folds_select_on_every_other_person_once(people):
  outer = {'folds': 4, 'fold': 1, 'inner_folds': 3}
  tests, selected = set(), []
  for inner in range(3):
    train, validation, test = _rows_of(
      people, 'kfold_subjects', **outer, inner_fold=inner
    )
    tests.add(tuple(test))
    selected.append(validation)
    assert len(train) + len(validation) + len(test) == 240
  assert len(tests) == 1
  both = np.sort(np.concatenate([*selected, np.array(next(iter(tests)))]))
  np.testing.assert_array_equal(both, np.arange(240))
  with pytest.raises(UserError, match='inner_fold is 3; allowed is less than'):
    protocol.resolve(people, 'kfold_subjects', inner_folds=3, inner_fold=3)


def test_leaving_one_person_out(people):
  train, validation, test = _rows_of(people, 'leave_one_subject_out', fold=7)
  assert set(people.table['subject'][test]) == {'P07'}
  assert (
    'P07' not in people.table['subject'][np.concatenate([train, validation])]
  )
  reason = protocol.resolve(people, 'leave_one_subject_out', fold=7).reason
  assert reason == (
    'Subject P07 is reported. Every person is on one side, in training or in '
    'test.'
  )
  # One of P08's photographs shows P07 as well.
  people.table['sequence'] = np.arange(240).astype(str)
  people.table['sequence'][[7, 8]] = 'both'
  reason = protocol.resolve(people, 'leave_one_subject_out', fold=7).reason
  linked = np.sum(people.table['subject'] == 'P08')
  assert f'{linked} examples of others, who share' in reason
  with pytest.raises(UserError, match='40 subjects, 0 to 39'):
    protocol.resolve(people, 'leave_one_subject_out', fold=40)


def test_fewer_people_than_folds_and_no_people(people, whole_set):
  with pytest.raises(UserError, match=r'has 40 groups .* fewer than the 50'):
    protocol.resolve(people, 'kfold_subjects', folds=50)
  with pytest.raises(
    UserError, match='fold is 5; allowed is less than folds, 5'
  ):
    protocol.resolve(people, 'kfold_subjects', folds=5, fold=5)
  with pytest.raises(UserError, match='does not say who is in its images'):
    protocol.resolve(whole_set, 'kfold_subjects')


def test_hold_out_takes_its_share_of_every_class(people):
  for name in ('holdout', 'holdout_images'):
    train, validation, test = _rows_of(
      people, name, test_share=0.25, validation_share=0.2
    )
    assert len(train) + len(validation) + len(test) == 240
    assert abs(len(test) - 60) <= (6 if name == 'holdout' else 0)
    assert abs(len(validation) - 36) <= (6 if name == 'holdout' else 0)
    counts = np.bincount(people.table['label'][test])
    assert np.ptp(counts) <= (6 if name == 'holdout' else 0)


def test_no_validation_where_none_is_asked_for(people):
  got = protocol.resolve(people, 'holdout_images', validation_share=0.0)
  assert len(got.validation) == 0
  assert len(got.train) == 192


def test_oversampling_first_puts_copies_on_both_sides(memory_set):
  """P4's arithmetic: 7 x the largest, a tenth of it rounded up is test."""
  counts = [80, 30, 13]
  label = np.repeat([0, 1, 2], counts)
  data = memory_set(_images(123), label=label)
  train, validation, test = _rows_of(
    data, 'oversample_then_split', test_share=0.1, validation_share=0.0
  )
  assert len(validation) == 0
  assert len(train) + len(test) == 240
  assert len(test) == 24
  everything = np.concatenate([train, test])
  np.testing.assert_array_equal(np.bincount(label[everything]), [80, 80, 80])
  shared = np.isin(test, train)
  # Of the smallest class nearly every test row has itself in training.
  assert shared[label[test] == 2].mean() > 0.9
  assert not shared[label[test] == 0].any()


def test_the_official_counts_give_the_papers_test_sets(memory_set):
  """P4's 6,293 of 62,923; of P3's four classes a fifth of 4 x 4,953."""
  counts = np.sum(list(fer2013.OFFICIAL_COUNTS.values()), axis=0)
  four = counts[[0, 3, 4, 6]]
  for name, share, of_class, tested, trained in (
    ('oversample_then_split', 0.1, counts, 6293, 56630),
    ('downsample_then_split', 0.2, four, 3963, 15849),
  ):
    data = memory_set(
      [None] * of_class.sum(),  # no pixel decides
      label=np.repeat(np.arange(len(of_class)), of_class),
      class_names=fer2013.CLASS_NAMES[: len(of_class)],
    )
    options = {'test_share': share, 'validation_share': 0.0}
    train, _, test = _rows_of(data, name, **options)
    assert (len(test), len(train)) == (tested, trained)


def test_downsampling_first_cuts_to_the_smallest(memory_set):
  label = np.repeat([0, 1, 2], [80, 30, 13])
  data = memory_set(_images(123), label=label)
  train, validation, test = _rows_of(
    data, 'downsample_then_split', test_share=0.2, validation_share=0.0
  )
  assert len(test) == 8  # a fifth of 39, rounded up
  assert len(np.unique(np.concatenate([train, validation, test]))) == 39


def test_a_reason_tells_what_was_done_to_the_lists(people, whole_set):
  balanced = protocol.resolve(people, 'kfold_subjects', balance='oversample')
  assert 'training list alone is balanced (oversample)' in balanced.reason
  reported = protocol.resolve(people, 'evaluate_on_train', validation_share=0.0)
  assert 'are of the very examples that trained' in reported.reason
  whole_set.table['official_split'] = np.array(['train'] * 50 + ['test'] * 10)
  for share, said in (
    (0.1, 'a stratified part of train does'),
    (0.0, 'nothing does'),
  ):
    carved = protocol.resolve(whole_set, 'official', validation_share=share)
    assert said in carved.reason


def test_balance_is_of_the_training_list_alone(people):
  people.table['label'] = np.minimum(np.arange(240) % 6, 2)
  plain = _rows_of(people, 'kfold_subjects', folds=4)
  more = _rows_of(people, 'kfold_subjects', folds=4, balance='oversample')
  fewer = _rows_of(people, 'kfold_subjects', folds=4, balance='downsample')
  label = people.table['label']
  assert np.ptp(np.bincount(label[plain[0]])) > 20
  for lists in (more, fewer):
    assert np.ptp(np.bincount(label[lists[0]])) == 0
    np.testing.assert_array_equal(lists[1], plain[1])
    np.testing.assert_array_equal(lists[2], plain[2])
    assert set(lists[0]) <= set(plain[0])
  assert (
    protocol.resolve(people, 'kfold_subjects', balance='oversample').leaks
    is False
  )


def test_a_share_of_the_training_list_trains(people):
  people.table['label'] = np.minimum(np.arange(240) % 6, 2)
  plain = _rows_of(people, 'kfold_subjects', folds=4)
  half = _rows_of(people, 'kfold_subjects', folds=4, train_share=0.5)
  tenth = _rows_of(people, 'kfold_subjects', folds=4, train_share=0.1)
  label = people.table['label']
  np.testing.assert_array_equal(
    np.bincount(label[half[0]]), np.round(0.5 * np.bincount(label[plain[0]]))
  )
  assert set(tenth[0]) < set(half[0]) < set(plain[0])
  for lists in (half, tenth):
    np.testing.assert_array_equal(lists[1], plain[1])
    np.testing.assert_array_equal(lists[2], plain[2])
  partition = protocol.resolve(people, 'kfold_subjects', train_share=0.1)
  assert '10 % of the training list trains' in partition.reason
  balanced = _rows_of(
    people, 'kfold_subjects', folds=4, train_share=0.5, balance='oversample'
  )
  assert set(balanced[0]) == set(half[0])
  with pytest.raises(UserError, match='train_share is 0; allowed is a share'):
    protocol.resolve(people, 'kfold_subjects', train_share=0)
  with pytest.raises(UserError, match='no training example of class'):
    protocol.resolve(people, 'kfold_subjects', train_share=0.01)


def test_reporting_what_trained(people):
  train, _, test = _rows_of(people, 'evaluate_on_train', folds=5, fold=2)
  np.testing.assert_array_equal(np.sort(train), test)
  with pytest.raises(UserError, match='in the test of several folds'):
    protocol.fold_count(people, 'evaluate_on_train', folds=5)
  # Its test is no list of its own, of which anything could be left out.
  for rule in protocol.TWIN_RULES[1:]:
    with pytest.raises(UserError, match=rf"takes no option 'twins'.*{rule}"):
      protocol.resolve(people, 'evaluate_on_train', twins=rule)
  protocol.resolve(people, 'evaluate_on_train', twins='keep')


def test_facts_of_folds_are_of_all_of_them(people):
  for name, said in (
    ('kfold_subjects', 'Every person is on one side'),
    ('evaluate_on_train', 'The figures are of the very examples that trained'),
  ):
    facts = [
      protocol.resolve(people, name, folds=4, fold=fold).facts()
      for fold in (1, 3)
    ]
    together = protocol.facts_of_folds(facts, 4)
    assert together['reason'].startswith(f'2 of 4 folds are reported. {said}')
    assert together['options'] == {'folds': 4}
    assert together['digests'] == [one['digest'] for one in facts]
    assert 'digest' not in together
    assert together['leaks'] == facts[0]['leaks']
    whole = protocol.facts_of_folds(facts, 2)['reason']
    assert whole.startswith(f'All folds are reported. {said}')
    assert protocol.facts_of_folds(facts[1:], 4) == facts[1]


@pytest.mark.parametrize(
  ('rule', 'train', 'test'),
  [
    ('keep', 400, 40),
    ('drop_from_train', 400 - 16, 40),
    ('drop_copies_from_test', 400, 30),
    ('drop_from_test', 400, 24),
  ],
)
def test_rules_for_twins(dev_set, rule, train, test):
  _, lists = protocol.open_all(dev_set, 'fer2013_dev', run='test', twins=rule)
  kept = len(lists.train) + len(lists.validation)
  if rule == 'drop_from_train':
    # 16 images of Training are in PublicTest; none of them has a copy there
    # in Training, so nothing else goes.
    assert kept == train
    found = twins.find(dev_set)
    both = np.concatenate([lists.validation, lists.test])
    assert not found.any_among(lists.train, both).any()
  else:
    assert kept == train
  assert len(lists.test) == test
  assert lists.leaks is False


def test_bad_values_are_named(people):
  with pytest.raises(
    UserError, match="balance is 'ovresample'; allowed is one"
  ):
    protocol.resolve(people, 'holdout', balance='ovresample')
  with pytest.raises(
    UserError, match="twins is 'drop'; allowed is one of keep"
  ):
    protocol.resolve(people, 'holdout', twins='drop')


def test_a_class_that_only_the_test_has(memory_set):
  label = np.zeros(30, int)
  label[29] = 1
  data = memory_set(_images(30), label=label, name='synthetic_faces')
  # Its one example goes where a row is missing: to the test.
  with pytest.raises(UserError, match="no training example of class 'happy'"):
    protocol.resolve(data, 'holdout', seed=0, test_share=0.5)


def test_official_carves_a_validation_where_none_is_published(memory_set):
  data = memory_set(
    _images(100),
    official_split=['train'] * 80 + ['test'] * 20,
    name='synthetic_faces',
  )
  got = protocol.resolve(data, 'official')
  # A tenth of 27, 27 and 26, each to the nearest whole row.
  counts = np.bincount(data.table['label'][got.validation])
  np.testing.assert_array_equal(counts, [3, 3, 3])
  # A fixed list: the same on every machine, as its digest says.
  assert got.digest.startswith('b0ec550a70573ab9')
  both = np.sort(np.concatenate([got.train, got.validation]))
  np.testing.assert_array_equal(both, np.arange(80))


def test_manifest_names_every_id(people):
  options = {'folds': 5, 'fold': 1}
  partition, lists = protocol.open_all(
    people, 'kfold_subjects', run='audit', **options
  )
  people.facts = lambda: {'name': people.name}
  written = protocol.manifest(people, partition, lists)
  for side in ('train', 'validation', 'test'):
    ids = people.table['id'][getattr(lists, side)]
    assert written[side] == ids.tolist()
  assert written['protocol'] == partition.facts()
  assert written['protocol']['options'] == options
  assert written['settings']['fold'] == 1
  assert (
    partition.digest
    == protocol.resolve(people, 'kfold_subjects', **options).digest
  )


def test_opening_everything_is_in_the_ledger(people):
  partition, _ = protocol.open_all(people, 'holdout', run='me')
  (entry,) = ledger.read(people, ledger.AUDITED)
  assert (entry['run'], entry['digest']) == ('me', partition.digest)
  assert ledger.read(people, ledger.OPENED) == []


def test_sets_that_name_nobody_cannot_be_told(memory_set):
  """Three all but equal frames a recording, and no name of anyone."""
  data = memory_set(
    _images(60), official_split=['none'] * 60, name='synthetic_faces'
  )
  for name in ('holdout', 'kfold_twins'):
    got = protocol.resolve(data, name)
    assert got.leaks is None
    assert 'cannot be told' in got.reason
  assert protocol.resolve(data, 'kfold_images').leaks is True
  web = memory_set(_images(60), official_split=['none'] * 60, name='fer2013')
  assert protocol.resolve(web, 'kfold_twins').leaks is False


def test_the_reported_training_list_is_the_balanced_one(people):
  people.table['label'] = np.minimum(np.arange(240) % 6, 2)
  partition, lists = protocol.open_all(
    people, 'evaluate_on_train', run='test', balance='downsample'
  )
  assert 'The training list is balanced (downsample).' in partition.reason
  np.testing.assert_array_equal(np.sort(lists.train), lists.test)


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'folds': 1}, 'folds is 1; allowed is a whole number of at least 2'),
    ({'fold': -1}, 'fold is -1; allowed is a whole number of at least 0'),
    ({'inner_folds': -3}, 'inner_folds is -3; allowed is 0, or'),
    ({'inner_folds': 1}, 'inner_folds is 1; allowed is 0, or'),
    ({'validation_share': -0.1}, 'validation_share is -0.1; allowed'),
    ({'inner_folds': 3, 'validation_share': 0.2}, 'one of them sets apart'),
  ],
)
def test_ranges_are_checked_for_whoever_calls(people, options, said):
  with pytest.raises(UserError, match=said):
    protocol.resolve(people, 'kfold_subjects', **options)
  with pytest.raises(
    UserError, match=r'test_share is 1\.5; allowed is a share'
  ):
    protocol.configure('holdout', test_share=1.5)


def test_what_selects_is_never_empty_where_a_share_is_asked_for(memory_set):
  """Eight people of 21 pictures: none of them is a tenth."""
  data = memory_set(
    _images(168),
    official_split=['none'] * 168,
    subject=[f'P{n % 8}' for n in range(168)],
    name='synthetic_faces',
  )
  train, validation, test = _rows_of(data, 'kfold_subjects', folds=2)
  assert (len(train), len(validation), len(test)) == (63, 21, 84)


def test_the_reason_counts_what_is_there(dev_set):
  whole = protocol.resolve(dev_set, 'fer2013_dev').reason
  assert '7.8 %' in whole
  dev_set.name = 'ferplus'
  assert '7.8 %' not in protocol.resolve(dev_set, 'fer2013_dev').reason


def test_the_reason_has_the_share_that_was_asked_for(people):
  partition = protocol.resolve(people, 'holdout', test_share=0.125)
  assert 'A stratified 12.5 % of all examples' in partition.reason
