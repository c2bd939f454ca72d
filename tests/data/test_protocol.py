"""Protocols: who is on which side, what is refused, what the digest says."""

import dataclasses
import hashlib

import numpy as np
import pytest

from fer_jax import datasets
from fer_jax.data import ledger, protocol, twins
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


def test_names():
  assert protocol.names() == ('official', 'fer2013_dev')


def test_official_takes_the_published_splits(whole_set):
  got = protocol.resolve(whole_set, 'official')
  np.testing.assert_array_equal(got.train, np.arange(40))
  np.testing.assert_array_equal(got.validation, np.arange(40, 50))
  assert got.train.dtype == np.int64
  assert list(got.validation_ids) == [f'set/{n:05d}' for n in range(40, 50)]
  assert got.leaks is False
  assert got.reason


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
  with pytest.raises(UserError, match="no option 'folds'"):
    protocol.resolve(whole_set, 'official', folds=3)
  with pytest.raises(UserError, match='for fer2013, not synthetic_faces'):
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


def test_share_of_groups_with_many_labels():
  rng = np.random.default_rng(0)
  label = rng.integers(0, 4, 1000)
  group = rng.integers(0, 700, 1000)
  ids = np.array([f'{n:04d}' for n in range(1000)])
  drawn = protocol.stratified_share(ids, label, group, share=0.2, seed=3)
  expected = np.round(np.bincount(label) * 0.2)
  np.testing.assert_array_equal(np.bincount(label[drawn]), expected)
  assert not set(group[drawn]) & set(group[~drawn])
  # The order of the rows does not matter.
  mixed = rng.permutation(1000)
  again = protocol.stratified_share(
    ids[mixed], label[mixed], group[mixed], share=0.2, seed=3
  )
  np.testing.assert_array_equal(drawn[mixed], again)


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


def test_real_rows(fer2013_csv, tmp_path):
  """real_data: 280 exact twins and 13.6 % near ones, known beforehand."""
  data = datasets.build('fer2013', source=fer2013_csv, data_dir=tmp_path)
  split = data.table['official_split']
  training = np.flatnonzero(split == 'train')
  public = np.flatnonzero(split == 'validation')
  found = twins.find(data)
  assert found.exact_among(public, training).sum() == 280
  share = found.any_among(public, training).mean()
  assert share == pytest.approx(0.136, abs=5e-4)
  got = protocol.resolve(data, 'fer2013_dev')
  assert not found.any_among(got.validation, got.train).any()
  assert len(got.validation) == 2872
