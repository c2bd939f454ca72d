"""RAF-DB: both kinds of pictures, attributes, and what is not whole."""

import numpy as np
import pytest
import trees

from fer_jax import datasets
from fer_jax.datasets import rafdb
from fer_jax.errors import UserError

# Name: label as published, gender, race, age.
FACES = {
  'train_00001': (5, 0, 0, 0),
  'train_00002': (1, 1, 1, 1),
  'train_00003': (4, 2, 2, 2),
  'test_0001': (7, 1, 0, 3),
  'test_0002': (4, 0, 2, 4),
}
ROOT = 'RAF/basic'


def _aligned(face: int) -> np.ndarray:
  return trees.pixels(face, (100, 100))


def _original(face: int) -> np.ndarray:
  return trees.pixels(100 + face, (7 + face, 9))


def _labels(faces=FACES) -> bytes:
  lines = [f'{name}.jpg {facts[0]}' for name, facts in faces.items()]
  return '\n'.join([*lines, '']).encode()


def _annotation(facts) -> bytes:
  landmarks = '12.5\t40.25\n' * 5
  return (landmarks + '\n'.join(map(str, facts[1:])) + '\n').encode()


def _files() -> dict[str, bytes]:
  files = {f'{ROOT}/EmoLabel/list_patition_label.txt': _labels()}
  for i, (name, facts) in enumerate(FACES.items()):
    files |= {
      f'{ROOT}/Image/aligned/{name}_aligned.jpg': trees.picture(_aligned(i)),
      f'{ROOT}/Image/original/{name}.jpg': trees.picture(_original(i)),
      f'{ROOT}/Annotation/manual/{name}_manu_attri.txt': _annotation(facts),
      f'{ROOT}/Annotation/auto/{name}_auto_attri.txt': b'1 2',
    }
  return files


def _build(tmp_path, files, form='folder', **options):
  source = trees.write(tmp_path / 'in', files, form)
  return datasets.build(
    'rafdb', data_dir=tmp_path / 'data', source=source, **options
  )


@pytest.mark.parametrize('form', trees.FORMS)
def test_aligned_pictures_with_attributes(form, tmp_path):
  dataset = _build(tmp_path, _files(), form)
  assert dataset.shape == (100, 100, 3)
  assert dataset.table['id'].tolist() == [f'rafdb/{name}' for name in FACES]
  assert [dataset.class_names[label] for label in dataset.table['label']] == [
    'sadness',
    'surprise',
    'happiness',
    'neutral',
    'happiness',
  ]
  assert dataset.table['official_split'].tolist() == ['train'] * 3 + (
    ['test'] * 2
  )
  attributes = {key: list(v) for key, v in dataset.attributes.items()}
  assert attributes == {
    'gender': ['male', 'female', 'unsure', 'female', 'male'],
    'race': ['Caucasian', 'African-American', 'Asian', 'Caucasian', 'Asian'],
    'age': ['0-3', '4-19', '20-39', '40-69', '70+'],
  }
  assert dataset._records[1]['attributes']['age'] in (b'4-19', '4-19')
  for read in (dataset.read, dataset.read_records):
    for i, image in enumerate(read(range(len(FACES)))):
      np.testing.assert_array_equal(image, _aligned(i))


def test_original_pictures_have_any_size(tmp_path):
  files = {k: v for k, v in _files().items() if '/aligned/' not in k}
  dataset = _build(tmp_path, files, images='original')
  assert dataset.shape is None
  for i, image in enumerate(dataset.read(range(len(FACES)))):
    np.testing.assert_array_equal(image, _original(i))


def test_a_set_without_annotations(tmp_path):
  files = {k: v for k, v in _files().items() if 'Annotation' not in k}
  dataset = _build(tmp_path, files)
  assert dataset.attributes == {}
  assert len(dataset) == len(FACES)


def test_the_official_counts():
  counts = {k: sum(v) for k, v in rafdb.OFFICIAL_COUNTS.items()}
  assert counts == {'train': 12_271, 'test': 3_068}


def _without(*parts: str) -> dict[str, bytes]:
  return {
    name: content
    for name, content in _files().items()
    if not any(part in name for part in parts)
  }


def _relabelled(line: str) -> dict[str, bytes]:
  labels = _labels() + line.encode()
  return {**_files(), f'{ROOT}/EmoLabel/list_patition_label.txt': labels}


def _renamed(old: str, new: str, files=None) -> dict[str, bytes]:
  files = files or _files()
  return {name.replace(old, new): content for name, content in files.items()}


SWAPPED = _renamed(
  '/held/',
  '/original/',
  _renamed('/original/', '/aligned/', _renamed('/aligned/', '/held/')),
)
SWAPPED_WITH_NAMES = {
  name.replace('.jpg', '_aligned.jpg')
  if '/aligned/' in name
  else name.replace('_aligned.jpg', '.jpg'): content
  for name, content in SWAPPED.items()
}

BROKEN = {
  'no labels': (_without('EmoLabel'), 'no EmoLabel/list_patition_label.txt'),
  'labels twice': (
    {**_files(), 'compound/EmoLabel/list_patition_label.txt': _labels()},
    'several EmoLabel/list_patition_label.txt: RAF/basic/.*, compound/'),
  'an empty list': (
    {**_files(), f'{ROOT}/EmoLabel/list_patition_label.txt': b'\n'},
    'list_patition_label.txt: no labels in it'),
  'label 0': (_relabelled('test_0003.jpg 0'), "line 6: label '0'; 1 to 7 are"),
  'label 8': (_relabelled('test_0003.jpg 8'), "line 6: label '8'; 1 to 7 are"),
  'label word': (_relabelled('test_0003.jpg x'), "line 6: label 'x'; 1 to 7"),
  'a name twice': (
    _relabelled('test_0002.jpg 3'), 'line 6: test_0002.jpg occurs twice'),
  'another name': (
    _relabelled('face_0002.jpg 3'), "line 6: 'face_0002.jpg 3'; a name and a"),
  'no label': (_relabelled('test_0003.jpg'), "line 6: 'test_0003.jpg'; a name"),
  'a label without a picture': (
    _without('aligned/train_00003'),
    r'no Image/aligned/train_00003_aligned.jpg; 1 of 5 labelled pictures are'),
  'no pictures': (
    _without('/aligned/'),
    r'no Image/aligned/train_00001_aligned.jpg; 5 of 5 .* extracted in part'),
  'packed pictures': (
    {**_without('/aligned/'), f'{ROOT}/Image/aligned.zip': b'x'},
    'Image/aligned.zip must be unpacked first, into a folder Image/aligned'),
  'packed annotations': (
    {**_without('/manual/'), f'{ROOT}/Annotation/manual.zip': b'x'},
    'Annotation/manual.zip must be unpacked first'),
  'a picture without a label': (
    {**_files(), f'{ROOT}/Image/aligned/test_0009_aligned.jpg': b'x'},
    r'test_0009_aligned.jpg: no label in EmoLabel/list_.* 0 others of Image'),
  'swapped folders': (
    SWAPPED, 'Image/aligned holds train_00001.jpg, a name of original pict'),
  'swapped pictures': (
    SWAPPED_WITH_NAMES, 'train_00001_aligned.jpg: 9x7 pixels where aligned '
    'pictures have 100x100; are Image/aligned and Image/original swapped'),
  'an annotation less': (
    _without('manual/test_0001'),
    r'no Annotation/manual/test_0001_manu_attri.txt, nor for 0 other pict'),
}  # fmt: skip


@pytest.mark.parametrize('what', BROKEN)
def test_a_set_that_is_not_whole(what, tmp_path):
  files, reason = BROKEN[what]
  with pytest.raises(UserError, match=reason):
    _build(tmp_path, files)


def test_aligned_pictures_for_original_ones(tmp_path):
  reason = 'Image/original holds train_00001_aligned.jpg, a name of aligned'
  with pytest.raises(UserError, match=reason):
    _build(tmp_path, SWAPPED, images='original')


LANDMARKS = b'1\t2\n' * 5
BAD = {
  'not a picture': ('Image/aligned/test_0001_aligned.jpg', b'hello', 'not a p'),
  'another size': (
    'Image/aligned/test_0001_aligned.jpg',
    trees.picture(trees.pixels(1)),
    '5x6 pixels where 100x100 are expected',
  ),
  'gender': (
    'Annotation/manual/test_0001_manu_attri.txt',
    LANDMARKS + b'3\n0\n0\n',
    "gender '3'; 0 to 2 are expected",
  ),
  'age': (
    'Annotation/manual/test_0001_manu_attri.txt',
    LANDMARKS + b'1\n0\n-1\n',
    "age '-1'; 0 to 4 are expected",
  ),
  'lines': (
    'Annotation/manual/test_0001_manu_attri.txt',
    LANDMARKS + b'1\n0\n',
    '7 lines where 8 are expected: 5 landmarks, gender, race, age',
  ),
}


@pytest.mark.parametrize('what', BAD)
def test_a_bad_picture_is_named_and_may_be_skipped(what, tmp_path):
  name, content, reason = BAD[what]
  files = {**_files(), f'{ROOT}/{name}': content}
  with pytest.raises(UserError, match=f'{name}: {reason}'):
    _build(tmp_path, files)
  dataset = _build(tmp_path, files, skip_bad_rows=True)
  assert dataset.table['id'].tolist() == [
    f'rafdb/{name}' for name in FACES if name != 'test_0001'
  ]
  assert dataset.attributes['age'].tolist() == ['0-3', '4-19', '20-39', '70+']


def test_a_first_picture_of_absurd_length_is_a_bad_row(tmp_path, monkeypatch):
  name = f'{ROOT}/Image/aligned/train_00001_aligned.jpg'
  content = trees.picture(_aligned(0))
  # All others are shorter than that.
  files = {**_files(), name: content + bytes(40_000)}
  monkeypatch.setattr(rafdb.layout, 'LONGEST_PICTURE_FILE', len(content) + 999)
  read = rafdb.sources.Source.read

  def bounded(self, member):
    assert member != name, 'read'
    return read(self, member)

  monkeypatch.setattr(rafdb.sources.Source, 'read', bounded)
  with pytest.raises(UserError, match=r'train_00001_aligned.jpg: a picture fi'):
    _build(tmp_path, files)
  assert len(_build(tmp_path, files, skip_bad_rows=True)) == len(FACES) - 1


def test_options_are_checked():
  with pytest.raises(UserError, match="is 'both', expected aligned or origin"):
    datasets.resolve_options('rafdb', {'images': 'both'})
