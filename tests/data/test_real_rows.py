"""FER2013's own rows, of which much is known beforehand."""

import os
import pathlib

import numpy as np
import pytest

from fer_jax import datasets
from fer_jax.data import audit, protocol, twins

pytestmark = pytest.mark.real_data


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
  """The challenge's file, built; its twins are found once and kept beside."""
  source = pathlib.Path(os.environ.get('FER2013_CSV', ''))
  if not source.is_file():
    pytest.skip('real_data: FER2013_CSV names no file')
  return datasets.build(
    'fer2013', source=source, data_dir=tmp_path_factory.mktemp('fer2013')
  )


def test_what_is_built_is_the_file(rows):
  counts, official = rows.counts(), rows.official_counts()
  for split, found in counts.items():
    np.testing.assert_array_equal(found, official[split])
  assert {'train', 'validation'} <= set(counts)
  # The first row of the challenge's file begins 70 80 82 72.
  assert rows.read([0])[0].ravel()[:4].tolist() == [70, 80, 82, 72]
  some = np.arange(0, len(rows), 97)
  for cached, stored in zip(
    rows.read(some), rows.read_records(some), strict=True
  ):
    np.testing.assert_array_equal(cached, stored)


def test_copies_between_the_published_splits(rows):
  """280 exact twins and 13.6 % near ones."""
  split = rows.table['official_split']
  training = np.flatnonzero(split == 'train')
  public = np.flatnonzero(split == 'validation')
  found = twins.find(rows)
  assert twins.near_twins_are_copies(rows)
  assert found.exact_among(public, training).sum() == 280
  share = found.near_among(public, training).mean()
  assert share == pytest.approx(0.136, abs=5e-4)
  got = protocol.resolve(rows, 'fer2013_dev')
  assert not found.any_among(got.validation, got.train).any()
  assert len(got.validation) == 2872


def test_what_the_audit_says_of_them(rows):
  figures, _ = audit.of_dataset(rows)
  assert 0 < figures['constant_images'] <= 12
  _, lists = protocol.open_all(rows, run='audit', name='fer2013_dev')
  seen = audit.of_protocol(rows, lists)[0]['share_of_test_seen']
  assert round(seen['exact_copy'] * 3589) == 280
  assert seen['twin'] == pytest.approx(0.136, abs=5e-4)
