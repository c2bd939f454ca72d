"""OAHEGA: class folders, and a data.csv that has to be of the same pictures."""

import numpy as np
import pytest
import trees

from fer_jax import datasets
from fer_jax.datasets import oahega
from fer_jax.errors import UserError

# Two of each class, of different sizes.
PLACES = [
  f'{class_name}/{number}.png'
  for class_name in oahega.CLASS_NAMES
  for number in (1, 2)
]


def _image(row: int) -> np.ndarray:
  return trees.pixels(row, (6 + row, 5))


def _files() -> dict[str, bytes]:
  return {
    f'dataset/{place}': trees.picture(_image(row))
    for row, place in enumerate(PLACES)
  }


def _table(places=PLACES, header=',path,label') -> bytes:
  lines = [
    f'{row},{place},{place.split("/")[-2]}' for row, place in enumerate(places)
  ]
  return '\n'.join([header, *lines, '']).encode()


def _build(tmp_path, files, form='folder', **options):
  source = trees.write(tmp_path / 'in', files, form)
  return datasets.build(
    'oahega', data_dir=tmp_path / 'data', source=source, **options
  )


def _check(dataset):
  assert dataset.table['id'].tolist() == [f'oahega/{p}' for p in PLACES]
  assert dataset.table['label'].tolist() == [row // 2 for row in range(12)]
  assert set(dataset.table['official_split']) == {'none'}
  for row, image in enumerate(dataset.read(range(12))):
    np.testing.assert_array_equal(image, _image(row))


@pytest.mark.parametrize('form', trees.FORMS)
def test_class_folders(form, tmp_path):
  dataset = _build(tmp_path, _files(), form)
  _check(dataset)
  assert dataset.notes == {'data_csv': False}


@pytest.mark.parametrize(
  'table',
  [
    _table(),
    _table(reversed(PLACES)),
    _table([f'dataset/{place}' for place in PLACES]),
    _table([f'C:/x/{place}' for place in PLACES]).replace(b'/', b'\\'),
    b'label,path\n'
    + b''.join(b'%s,%s\n' % tuple(p.encode().split(b'/')) for p in PLACES),
  ],
  ids=['class/file', 'another order', 'outer folder', 'windows', 'file'],
)
def test_a_data_csv_of_the_same_pictures(table, tmp_path):
  dataset = _build(tmp_path, {**_files(), 'data.csv': table})
  _check(dataset)
  assert dataset.notes == {'data_csv': True}


def test_a_grey_picture_becomes_rgb(tmp_path):
  grey = trees.pixels(3, channels=1)
  files = {**_files(), 'dataset/Angry/1.png': trees.picture(grey)}
  dataset = _build(tmp_path, files)
  np.testing.assert_array_equal(dataset.read([2])[0], np.repeat(grey, 3, -1))


def _without(part: str) -> dict[str, bytes]:
  return {k: v for k, v in _files().items() if part not in k}


BROKEN = {
  'a class less': (_without('/Sad/'), 'no folder Sad with pictures in it'),
  'a class twice': (
    {**_files(), 'copy/Sad/1.png': b'x'}, 'several folders Sad: copy/Sad, '),
  'extracted in part': (
    {**_without('Sad/2'), 'data.csv': _table()},
    'data.csv line 11: no picture Sad/2.png; was the set extracted in part'),
  'a row less': (
    {**_files(), 'data.csv': _table(PLACES[:-1])},
    'data.csv: no row for the picture Surprise/2.png; 1 pictures are without'),
  'a row twice': (
    {**_files(), 'data.csv': _table([*PLACES, PLACES[0]])},
    'data.csv line 14: Ahegao/1.png occurs twice'),
  'another label': (
    {**_files(), 'data.csv': _table().replace(b'Sad/1.png,Sad',
                                              b'Sad/1.png,Happy')},
    "data.csv line 10: label Happy of 'Sad/1.png', which is in another folder"),
  'an unknown label': (
    {**_files(), 'data.csv': _table().replace(b',Sad\n', b',Fear\n')},
    "data.csv line 10: unknown label 'Fear'; Ahegao, Angry, Happy"),
  'no column': (
    {**_files(), 'data.csv': _table(header='n,path,class')},
    "data.csv line 1: column 'label' is missing"),
}  # fmt: skip


@pytest.mark.parametrize('what', BROKEN)
def test_a_set_that_is_not_whole(what, tmp_path):
  files, reason = BROKEN[what]
  with pytest.raises(UserError, match=reason):
    _build(tmp_path, files)


@pytest.mark.parametrize(
  ('name', 'content', 'reason', 'kept'),
  [
    ('dataset/Happy/1.png', b'hello', 'not a picture file', 11),
    (
      'dataset/cover.png',
      trees.picture(_image(0)),
      'a picture outside the folders Ahegao, Angry',
      12,
    ),
  ],
)
def test_a_bad_picture_is_named_and_may_be_skipped(
  name, content, reason, kept, tmp_path
):
  files = {**_files(), name: content}
  with pytest.raises(UserError, match=f'{name}: {reason}'):
    _build(tmp_path, files)
  dataset = _build(tmp_path, files, skip_bad_rows=True)
  assert len(dataset) == kept
  assert dataset.metadata['skipped_rows'] == 1
