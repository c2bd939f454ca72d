"""Anyone's folders: splits, classes, subjects, and what has no place there."""

import io
import unicodedata

import numpy as np
import pytest
import trees
from PIL import Image

from fer_jax import datasets
from fer_jax.errors import UserError

# With a split folder and without, in the order of their paths.
SPLIT_PLACES = (
  'Valid/sad/1.png',
  'test/happy/1.png',
  'training/happy/1.png',
  'training/happy/b c.png',
  'training/sad/1.png',
)
PLACES = ('angry/1.png', 'angry/2.png', 'happy/1.png', 'sad/1.png')


def _image(row: int, channels=3) -> np.ndarray:
  return trees.pixels(row, channels=channels)


def _files(places, base='') -> dict[str, bytes]:
  return {
    base + place: trees.picture(_image(row)) for row, place in enumerate(places)
  }


def _build(tmp_path, files, form='folder', **options):
  source = trees.write(tmp_path / 'in', files, form)
  return datasets.build(
    'image_folder', data_dir=tmp_path / 'data', source=source, **options
  )


@pytest.mark.parametrize('base', ['', 'my/faces/'])
@pytest.mark.parametrize('form', trees.FORMS)
def test_splits_and_classes(form, base, tmp_path):
  files = {**_files(SPLIT_PLACES, base), f'{base}readme.txt': b'hello'}
  dataset = _build(tmp_path, files, form)
  assert dataset.class_names == ('happy', 'sad')
  assert dataset.table['id'].tolist() == [
    f'image_folder/{place}' for place in SPLIT_PLACES
  ]
  assert dataset.table['label'].tolist() == [1, 0, 0, 0, 1]
  assert dataset.table['official_split'].tolist() == [
    'validation',
    'test',
    'train',
    'train',
    'train',
  ]
  for row, image in enumerate(dataset.read(range(5))):
    np.testing.assert_array_equal(image, _image(row))
  assert 'subject' not in dataset.table
  assert dataset.notes['other_files'] == 1


@pytest.mark.parametrize('base', ['', 'my/faces/'])
def test_classes_alone(base, tmp_path):
  dataset = _build(tmp_path, _files(PLACES, base), 'zip')
  assert dataset.class_names == ('angry', 'happy', 'sad')
  assert set(dataset.table['official_split']) == {'none'}
  again = datasets.load('image_folder', data_dir=tmp_path / 'data')
  assert again.class_names == dataset.class_names


def test_classes_in_an_order_of_ones_own(tmp_path):
  dataset = _build(tmp_path, _files(PLACES), classes='sad,angry,happy')
  assert dataset.class_names == ('sad', 'angry', 'happy')
  assert dataset.table['label'].tolist() == [1, 1, 2, 0]


def test_class_folders_that_differ_in_capitals_alone_are_refused(tmp_path):
  files = _files(('Angry/1.png', 'angry/2.png', 'sad/1.png'))
  with pytest.raises(UserError, match="'Angry' and 'angry' differ in capitals"):
    _build(tmp_path, files, 'zip')


@pytest.mark.parametrize('channels', [1, 3])
def test_photographs_are_turned_as_their_camera_noted(tmp_path, channels):
  files = _files(PLACES)
  kept = trees.picture(_image(0, channels))
  files[PLACES[0]] = kept
  for row, orientation in ((1, 6), (2, 3), (3, 99)):
    exif = Image.Exif()
    exif[274] = orientation
    buffer = io.BytesIO()
    image = Image.open(io.BytesIO(trees.picture(_image(row, channels))))
    image.save(buffer, 'PNG', exif=exif)
    files[PLACES[row]] = buffer.getvalue()
  dataset = _build(tmp_path, files, channels=channels)
  # 6: held so that what is up lies to the right.
  expected = [
    _image(0, channels),
    np.rot90(_image(1, channels), -1),
    np.rot90(_image(2, channels), 2),
    _image(3, channels),
  ]
  for image, wanted in zip(dataset.read(range(4)), expected, strict=True):
    np.testing.assert_array_equal(image, wanted)
  for image, wanted in zip(
    dataset.read_records(range(4)), expected, strict=True
  ):
    np.testing.assert_array_equal(image, wanted)


def test_grey_pictures(tmp_path):
  files = _files(PLACES[1:])
  files[PLACES[0]] = trees.picture(_image(9, channels=1))
  dataset = _build(tmp_path, files, channels=1)
  assert dataset.shape == (6, 5, 1)
  np.testing.assert_array_equal(dataset.read([0])[0], _image(9, channels=1))


def _subjects(places=PLACES, header='subject,file') -> bytes:
  lines = [f'person {row // 2},{place}' for row, place in enumerate(places)]
  return '\n'.join([header, *lines, '']).encode()


@pytest.mark.parametrize('base', ['', 'my/faces/'])
def test_subjects(base, tmp_path):
  files = {**_files(PLACES, base), 'who.csv': _subjects()}
  dataset = _build(tmp_path, files, subjects='who.csv')
  expected = ['person 0', 'person 0', 'person 1', 'person 1']
  assert dataset.table['subject'].tolist() == expected


def test_accents_may_be_written_in_either_way(tmp_path):
  composed, parted = (
    unicodedata.normalize(way, 'fröhlich') for way in ('NFC', 'NFD')
  )
  places = (f'{parted}/é.png', 'sad/1.png')
  given = [place.replace(parted, composed) for place in places]
  files = _files(places) | {'who.csv': _subjects(given)}
  dataset = _build(tmp_path, files, subjects='who.csv', classes=('sad', parted))
  assert dataset.class_names == ('sad', composed)
  assert dataset.table['id'][0] == f'image_folder/{given[0]}'


SUBJECT_FAULTS = {
  'no csv': (None, r"no who.csv in it, the csv of the option 'subjects'"),
  'no column': (_subjects(header='subject,name'), "column 'file' is missing"),
  'an unknown file': (
    _subjects([*PLACES, 'sad/9.png']),
    "who.csv line 6: no picture 'sad/9.png'; a path as 'angry/1.png'"),
  'a file twice': (
    _subjects([*PLACES, PLACES[1]]),
    "who.csv line 6: 'angry/2.png' occurs twice"),
  'a file less': (
    _subjects(PLACES[:3]), "who.csv: no row for the picture 'sad/1.png'; 1 pi"),
  'no subject': (
    _subjects().replace(b'person 1', b''), "line 4: no subject of 'happy/1.p"),
}  # fmt: skip


@pytest.mark.parametrize('what', SUBJECT_FAULTS)
def test_subjects_of_other_pictures(what, tmp_path):
  table, reason = SUBJECT_FAULTS[what]
  files = _files(PLACES) | ({} if table is None else {'who.csv': table})
  with pytest.raises(UserError, match=reason):
    _build(tmp_path, files, subjects='who.csv')


LAYOUT_FAULTS = {
  'no pictures': (
    {'readme.txt': b'x'}, {}, 'no pictures in it; folders <split>/<class>'),
  'a picture in no folder': (
    _files([*PLACES, 'cover.png']), {}, 'cover.png: a picture in no class'),
  'a picture beside the classes': (
    _files([*SPLIT_PLACES, 'test/1.png']), {}, 'test/1.png: a picture in no c'),
  'both layouts': (
    _files([*SPLIT_PLACES, 'angry/1.png']), {},
    'angry/1.png is in another layout or another folder than Valid/sad/1.png'),
  'two places': (
    _files([*PLACES, 'more/happy/5.png']), {},
    'more/happy/5.png is in another layout or another folder than angry/1'),
  'a folder too deep': (
    _files([*SPLIT_PLACES, 'test/sad/more/1.png']), {},
    'test/sad/more/1.png is in another layout or another folder than Valid'),
  'one class': (
    _files(['sad/1.png', 'sad/2.png']), {}, 'pictures of one class alone, sad'),
  'a class that is not there': (
    _files(PLACES), {'classes': ('angry', 'happy', 'sad', 'fear')},
    "no pictures of class 'fear' of the option 'classes'; there are angry, "),
  'a class that is not named': (
    _files(PLACES), {'classes': ('angry', 'sad')},
    "the option 'classes' lacks the class folder 'happy'; it is angry,sad"),
}  # fmt: skip


@pytest.mark.parametrize('what', LAYOUT_FAULTS)
def test_what_has_no_place(what, tmp_path):
  files, options, reason = LAYOUT_FAULTS[what]
  with pytest.raises(UserError, match=reason):
    _build(tmp_path, files, **options)


def test_a_bad_picture_is_named_and_may_be_skipped(tmp_path):
  files = {**_files(PLACES), 'happy/1.png': b'hello', 'sad/2.heic': b'hello'}
  with pytest.raises(UserError, match=r'happy/1.png: not a picture.*; 2 bad'):
    _build(tmp_path, files)
  dataset = _build(tmp_path, files, skip_bad_rows=True)
  assert dataset.table['label'].tolist() == [0, 0, 2]
  del files['happy/1.png']
  with pytest.raises(UserError, match=r'sad/2.heic: .* not read; .jpg, .jpeg'):
    _build(tmp_path / 'again', files)


@pytest.mark.parametrize(
  ('options', 'reason'),
  [
    ({'channels': 2}, "'channels' of image_folder is 2, expected 1 or 3"),
    ({'classes': 'sad,sad'}, "'classes' of image_folder is sad,sad, expected"),
    ({'classes': 'sad'}, 'at least two names, each once'),
  ],
)
def test_options_are_checked(options, reason):
  with pytest.raises(UserError, match=reason):
    datasets.resolve_options('image_folder', options)
