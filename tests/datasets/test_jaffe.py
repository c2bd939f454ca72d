"""JAFFE: names, archives and pictures that are not of the set."""

import io
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from fer_jax import datasets
from fer_jax.errors import UserError

# In the order of their names.
NAMES = {
  'KA.AN1.39': 0,
  'KA.DI3.44': 1,
  'KA.FE2.46': 2,
  'KL.HA1.158': 3,
  'KL.NE3.157': 6,
  'YM.SA1.64': 4,
  'YM.SU2.59': 5,
}


def _tiff(shade: int, size=(256, 256), mode='L') -> bytes:
  buffer = io.BytesIO()
  color = shade if mode == 'L' else (shade, shade, shade)
  Image.new(mode, size, color).save(buffer, 'TIFF')
  return buffer.getvalue()


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
  root = tmp_path / 'in'
  (root / 'jaffe').mkdir(parents=True)
  for shade, name in enumerate(NAMES):
    (root / 'jaffe' / f'{name}.tiff').write_bytes(_tiff(shade))
  (root / 'jaffe' / 'README_FIRST.txt').write_text('hello')
  return root


def _build(source: pathlib.Path, **options):
  return datasets.build(
    'jaffe', data_dir=source.parent / 'data', source=source, **options
  )


@pytest.mark.parametrize('form', ['folder', 'zip', 'tar'])
def test_names_tell_person_and_expression(source, form):
  path = source
  if form == 'zip':
    path = source.parent / 'jaffe.zip'
    with zipfile.ZipFile(path, 'w') as archive:
      for file in (source / 'jaffe').iterdir():
        archive.write(file, f'data/{file.name}')
  elif form == 'tar':
    path = source.parent / 'jaffe.tar'
    with tarfile.open(path, 'w') as archive:
      archive.add(source / 'jaffe', 'jaffe')
  dataset = _build(path)
  table = dataset.table
  assert table['id'].tolist() == [f'jaffe/{name}' for name in NAMES]
  assert table['label'].tolist() == list(NAMES.values())
  assert table['subject'].tolist() == [name[:2] for name in NAMES]
  assert set(table['official_split']) == {'none'}
  assert 'sequence' not in table
  assert dataset.shape == (256, 256, 1)
  assert [image.max() for image in dataset.read(range(7))] == list(range(7))
  assert dataset.class_names == (
    'angry', 'disgust', 'fear', 'happy', 'sad', 'surprise', 'neutral'
  )  # fmt: skip
  assert dataset.notes['other_files'] == 1


def test_published_counts(source):
  # AN 30, DI 29, FE 32, HA 31, SA 31, SU 30, NE 30: 213 pictures.
  published = _build(source).official_counts()['none']
  assert published.tolist() == [30, 29, 32, 31, 31, 30, 30]
  assert published.sum() == 213


@pytest.mark.parametrize(
  ('name', 'content', 'reason'),
  [
    ('KA.XX1.39.tiff', _tiff(1), 'a name such as KA.AN1.39.tiff is expected'),
    ('KA.AN.39.tiff', _tiff(1), 'a name such as'),
    ('KA.AN1.39.tiff.bmp', _tiff(1), 'a name such as'),
    ('face.png', _tiff(1), 'a name such as'),
    ('copy/KA.AN1.39.tiff', _tiff(1), 'a second copy of this picture'),
    ('KM.AN1.17.tiff', _tiff(1, (256, 255)), '256x255 pixels where 256x256'),
    ('KM.AN1.17.tiff', b'hello', 'not a picture file'),
    ('KM.AN1.17.tiff', b'', 'an empty file'),
  ],
  ids=range(8),
)
def test_a_bad_file_is_named_and_may_be_skipped(source, name, content, reason):
  path = source / 'jaffe' / name
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(content)
  with pytest.raises(UserError) as caught:
    _build(source)
  assert str(caught.value).startswith(f'jaffe/{name}: ')
  assert reason in str(caught.value)
  dataset = _build(source, skip_bad_rows=True)
  assert len(dataset) == len(NAMES)
  assert dataset.metadata['skipped_rows'] == 1


def test_a_grey_picture_saved_as_colour_becomes_grey(source):
  (source / 'jaffe' / 'KM.AN1.17.tif').write_bytes(_tiff(77, mode='RGB'))
  dataset = _build(source)
  row = dataset.table['id'].tolist().index('jaffe/KM.AN1.17')
  assert np.unique(dataset.read([row])[0]).tolist() == [77]


def test_a_folder_of_something_else(tmp_path):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'readme.txt').write_text('hello')
  with pytest.raises(UserError, match=r'no picture in it; .* KA.AN1.39.tiff'):
    _build(tmp_path / 'in')
