"""CK+: both layouts, images and clips, and everything that is not whole."""

import io
import pathlib
import re
import shutil
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from fer_jax import datasets
from fer_jax.data import resident, resize
from fer_jax.datasets import ckplus
from fer_jax.datasets import dataset as dataset_lib
from fer_jax.errors import UserError

# Sequence: frames, shape of each, label as published (None: unlabelled).
SEQUENCES = {
  ('S005', '001'): (5, (6, 8), 3),
  ('S010', '002'): (4, (7, 9, 3), 7),
  ('S010', '004'): (7, (6, 8), 2),
  ('S011', '001'): (2, (6, 8), None),
}
DISGUST, SURPRISE, CONTEMPT, NEUTRAL = 1, 5, 6, 7


def _pixels(subject: str, number: str, frame: int) -> np.ndarray:
  seed = [int(subject[1:]), int(number), frame]
  shape = SEQUENCES[subject, number][1]
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _grey(subject: str, number: str, frame: int) -> np.ndarray:
  pixels = _pixels(subject, number, frame)
  if pixels.ndim == 3:
    pixels = pixels @ [0.299, 0.587, 0.114]
  return pixels[..., None]


def _write(root: pathlib.Path) -> pathlib.Path:
  for (subject, number), (count, _, label) in SEQUENCES.items():
    stem = f'{subject}_{number}'
    folder = root / 'cohn-kanade-images' / subject / number
    folder.mkdir(parents=True)
    for frame in range(1, count + 1):
      image = Image.fromarray(_pixels(subject, number, frame))
      image.save(folder / f'{stem}_{frame:08d}.png')
    if label is not None:
      folder = root / 'Emotion' / subject / number
      folder.mkdir(parents=True)
      text = f'   {label:.7e}\n'
      (folder / f'{stem}_{count:08d}_emotion.txt').write_text(text)
  return root


@pytest.fixture
def source(tmp_path) -> pathlib.Path:
  return _write(tmp_path / 'in')


def _build(source: pathlib.Path, skip_bad_rows: bool = False, **options):
  return datasets.build(
    'ckplus',
    data_dir=source.parent / 'data',
    source=source,
    skip_bad_rows=skip_bad_rows,
    **options,
  )


def _check_image(image: np.ndarray, subject: str, number: str, frame: int):
  # A colour frame's luma is rounded as Pillow rounds it.
  expected = _grey(subject, number, frame)
  assert image.shape == expected.shape
  np.testing.assert_allclose(image, expected, atol=1)


def test_the_last_three_frames_are_images(source):
  dataset = _build(source)
  expected = [
    ('S005', '001', (3, 4, 5), DISGUST),
    ('S010', '002', (2, 3, 4), SURPRISE),
    ('S010', '004', (5, 6, 7), CONTEMPT),
  ]
  rows = [
    (subject, number, frame, label)
    for subject, number, frames, label in expected
    for frame in frames
  ]
  table = dataset.table
  assert table['id'].tolist() == [
    f'ckplus/{subject}_{number}_{frame:08d}'
    for subject, number, frame, _ in rows
  ]
  assert table['label'].tolist() == [label for *_, label in rows]
  assert table['subject'].tolist() == [subject for subject, *_ in rows]
  assert table['sequence'].tolist() == [f'{s}/{n}' for s, n, *_ in rows]
  assert set(table['official_split']) == {'none'}
  for image, (subject, number, frame, _) in zip(
    dataset.read(range(len(rows))), rows, strict=True
  ):
    _check_image(image, subject, number, frame)
  assert dataset.class_names[:3] == ('angry', 'disgust', 'fear')
  assert dataset.class_names[CONTEMPT] == 'contempt'
  assert len(dataset.class_names) == 7
  assert dataset.notes['layout'] == 'official'
  assert dataset.notes['unlabelled_sequences'] == 1
  assert dataset.notes['short_sequences'] == 0


def test_the_first_frames_are_neutral_on_demand(source):
  dataset = _build(source, neutral=True, last_frames=5)
  frames = [int(name[-8:]) for name in dataset.table['id']]
  # Five of S005/001 would take the neutral frame itself: four are left.
  assert frames == [1, 2, 3, 4, 5, 1, 2, 3, 4, 1, 3, 4, 5, 6, 7]
  labels = [NEUTRAL, *[DISGUST] * 4, NEUTRAL, *[SURPRISE] * 3]
  labels += [NEUTRAL, *[CONTEMPT] * 5]
  assert dataset.table['label'].tolist() == labels
  assert dataset.class_names[NEUTRAL] == 'neutral'
  assert dataset.notes['short_sequences'] == 2


@pytest.mark.parametrize(
  ('count', 'expected'),
  [
    (0, ([1, 2, 3, 4, 5], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7])),
    (4, ([1, 2, 4, 5], [1, 2, 3, 4], [1, 3, 5, 7])),
    (2, ([1, 5], [1, 4], [1, 7])),
    (6, ([1, 2, 3, 4, 5], [1, 2, 3, 4], [1, 2, 3, 5, 6, 7])),
  ],
)
def test_clips_go_from_neutral_to_apex(source, count, expected):
  dataset = _build(source, form='clips', frames=count)
  names = [('S005', '001'), ('S010', '002'), ('S010', '004')]
  assert dataset.is_clips
  assert dataset.table['id'].tolist() == [f'ckplus/{s}_{n}' for s, n in names]
  assert dataset.table['sequence'].tolist() == [f'{s}/{n}' for s, n in names]
  assert dataset.table['label'].tolist() == [DISGUST, SURPRISE, CONTEMPT]
  lengths = [len(frames) for frames in expected]
  assert dataset.table['frame_count'].tolist() == lengths
  for clip, name, frames in zip(
    dataset.read(range(3)), names, expected, strict=True
  ):
    for image, frame in zip(clip, frames, strict=True):
      _check_image(image, *name, frame)


def test_clips_reach_a_batch_with_their_masks(source, monkeypatch):
  _build(source, form='clips', frames=6)
  dataset = datasets.load(
    'ckplus', data_dir=source.parent / 'data', form='clips', frames=6
  )
  # Memory is bounded by frames: here by those of one clip.
  monkeypatch.setattr(dataset_lib, '_FRAMES_AT_ONCE', 6)
  read, counts = dataset.read, []
  monkeypatch.setattr(
    dataset, 'read', lambda index: counts.append(len(index)) or read(index)
  )
  arrays = resident.load_resident(
    dataset, np.array([2, 0, 1]), image_size=(5, 4), channels=1
  )
  assert counts == [1, 1, 1]
  assert arrays['image'].shape == (3, 6, 5, 4, 1)
  lengths = np.array([6, 5, 4])
  np.testing.assert_array_equal(
    arrays['frame_mask'], np.arange(6) < lengths[:, None]
  )
  assert arrays['label'].tolist() == [CONTEMPT, DISGUST, SURPRISE]
  for row, stored in enumerate(dataset.read([2, 0, 1])):
    fitted = resize.convert(stored, size=(5, 4), channels=1)
    np.testing.assert_array_equal(arrays['image'][row, : len(stored)], fitted)
    assert not arrays['image'][row, len(stored) :].any()


def _archive(source: pathlib.Path, form: str) -> pathlib.Path:
  path = source.parent / f'ck.{form}'
  files = [p for p in source.rglob('*') if p.is_file()]
  if form == 'zip':
    with zipfile.ZipFile(path, 'w') as archive:
      for file in files:
        archive.write(file, f'CK+/{file.relative_to(source)}')
  else:
    with tarfile.open(path, 'w:gz') as archive:
      archive.add(source, '.')
  return path


@pytest.mark.parametrize('form', ['zip', 'tar.gz', 'deeper'])
def test_wherever_the_layout_lies(source, form):
  plain = _build(source)
  if form == 'deeper':
    # The two downloads, unpacked side by side into folders of their own.
    path = source.parent / 'out'
    shutil.move(source / 'Emotion', path / 'Emotion_labels' / 'Emotion')
    shutil.move(
      source / 'cohn-kanade-images', path / 'ck' / 'Cohn-Kanade-Images'
    )
    (path / 'ReadMe.txt').write_text('hello')
    (path / 'FACS' / 'S005').mkdir(parents=True)
    (path / 'FACS' / 'S005' / 'S005_001_00000005_facs.txt').write_text('1')
  else:
    path = _archive(source, form)
  dataset = _build(path)
  assert dataset.table['id'].tolist() == plain.table['id'].tolist()
  assert dataset.metadata['content'] == plain.metadata['content']


EMOTION = 'Emotion/S005/001/S005_001_00000005_emotion.txt'
FRAMES = 'cohn-kanade-images/S005/001'


def _rename(old: str, new: str):
  def change(root):
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)

  return change


def _copy(old: str, new: str):
  def change(root):
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(root / old, root / new)

  return change


def _labelled(text: str):
  return lambda root: (root / EMOTION).write_text(text)


def _only(name: str):
  def change(root):
    shutil.rmtree(root / FRAMES)
    (root / FRAMES).mkdir()
    (root / FRAMES / name).write_text('hello')

  return change


def _remove(name: str):
  def change(root):
    path = root / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()

  return change


BROKEN = {
  'label without its sequence': (
    _remove(FRAMES), EMOTION, 'a label without frames'),
  'label without its subject': (
    _remove('cohn-kanade-images/S005'), EMOTION, 'with pictures is expected'),
  'sequence without pictures': (
    _only('notes.txt'), EMOTION, f'{FRAMES} with pictures is expected'),
  'no number': (
    _labelled('happy\n'), f'{EMOTION} line 1', "'happy' is no emotion"),
  'no whole number': (_labelled('3.5'), EMOTION, "'3.5' is no emotion"),
  'emotion 8': (_labelled('8.0e+00'), EMOTION, 'a whole number of 0 to 7'),
  'negative': (_labelled('-1'), EMOTION, "'-1' is no emotion"),
  'not a number': (_labelled('nan'), EMOTION, "'nan' is no emotion"),
  'two numbers': (_labelled('3\n4\n'), EMOTION, '2 lines where one number'),
  'empty': (_labelled(''), EMOTION, '0 lines where one number'),
  'neutral': (_labelled('0.0000000e+00'), EMOTION, 'the label is 0 (neutral)'),
  'foreign picture': (
    _rename(f'{FRAMES}/S005_001_00000002.png', f'{FRAMES}/face.png'),
    f'{FRAMES}/face.png', 'no subject and sequence can be read'),
  'frame in another folder': (
    _copy(f'{FRAMES}/S005_001_00000002.png',
          'cohn-kanade-images/S010/004/S005_001_00000002.png'),
    'S010/004/S005_001_00000002.png', 'no subject and sequence'),
  'subject without its number': (
    _rename('cohn-kanade-images/S005', 'cohn-kanade-images/anna'),
    'cohn-kanade-images/anna/001/S005_001_00000001.png', 'no subject'),
  'foreign label': (
    _rename(EMOTION, 'Emotion/S005/001/label.txt'),
    'Emotion/S005/001/label.txt', 'no subject and sequence can be read'),
  'labels without their folders': (
    _rename(EMOTION, 'Emotion/S005_001_00000005_emotion.txt'),
    'Emotion/S005_001_00000005_emotion.txt', 'no subject and sequence'),
  'gap': (
    _remove(f'{FRAMES}/S005_001_00000003.png'),
    f'{FRAMES}/S005_001_00000004.png', 'frame 3 is missing before it'),
  'first frame missing': (
    _remove(f'{FRAMES}/S005_001_00000001.png'),
    f'{FRAMES}/S005_001_00000002.png', 'frame 1 is missing before it'),
  'last frame missing': (
    _remove(f'{FRAMES}/S005_001_00000005.png'),
    EMOTION, 'the label of frame 5, but the last frame of sequence S005/001 is'
    ' 4'),
  'a frame too many': (
    _copy(f'{FRAMES}/S005_001_00000005.png', f'{FRAMES}/S005_001_00000006.png'),
    EMOTION, 'S005/001 is 6'),
  'frame twice': (
    _copy(f'{FRAMES}/S005_001_00000003.png', f'{FRAMES}/S005_001_3.png'),
    f'{FRAMES}/S005_001_3.png', f'frame 3 is {FRAMES}/S005_001_00000003.png'),
  'frame 0': (
    _copy(f'{FRAMES}/S005_001_00000003.png', f'{FRAMES}/S005_001_00000000.png'),
    f'{FRAMES}/S005_001_00000000.png', 'frames are counted from 1'),
  'two labels': (
    _copy(EMOTION, 'Emotion/S005/001/S005_001_00000004_emotion.txt'),
    EMOTION, 'a second label of sequence S005/001, beside Emotion/S005/001/'
    'S005_001_00000004_emotion.txt'),
  'no labels': (_remove('Emotion'), 'in', 'no folder Emotion in it'),
  'no images': (
    _remove('cohn-kanade-images'), 'in', 'no folder cohn-kanade-images in it'),
}  # fmt: skip


@pytest.mark.parametrize('what', BROKEN)
def test_what_is_not_whole_is_named_in_one_line(source, what):
  change, place, reason = BROKEN[what]
  change(source)
  with pytest.raises(UserError) as caught:
    _build(source)
  message = str(caught.value)
  assert place in message.split(': ')[0]
  assert reason in message
  assert '\n' not in message
  assert datasets.builds('ckplus', data_dir=source.parent / 'data') == []


@pytest.mark.parametrize(
  'what', ['gap', 'emotion 8', 'label without its sequence']
)
def test_a_sequence_that_is_not_whole_may_be_skipped(source, what):
  BROKEN[what][0](source)
  dataset = _build(source, skip_bad_rows=True)
  assert set(dataset.table['sequence']) == {'S010/002', 'S010/004'}
  assert dataset.metadata['skipped_rows'] == 1
  assert dataset.notes['unlabelled_sequences'] == 1


@pytest.mark.parametrize('what', ['two labels', 'no labels', 'foreign picture'])
def test_what_cannot_be_told_is_not_skipped(source, what):
  BROKEN[what][0](source)
  with pytest.raises(UserError, match=re.escape(BROKEN[what][2])):
    _build(source, skip_bad_rows=True)


def test_a_packed_half_is_pointed_out(source):
  shutil.rmtree(source / 'cohn-kanade-images')
  (source / 'extended-cohn-kanade-images.zip').write_bytes(b'PK')
  with pytest.raises(UserError, match='; unpack extended-cohn'):
    _build(source)


def _png(size, color) -> bytes:
  buffer = io.BytesIO()
  Image.new('L', size, color).save(buffer, 'PNG')
  return buffer.getvalue()


def test_a_bad_frame_may_be_skipped(source):
  bad = f'{FRAMES}/S005_001_00000004.png'
  (source / bad).write_bytes(b'hello')
  with pytest.raises(UserError, match=f'{bad}: not a picture file'):
    _build(source)
  dataset = _build(source, skip_bad_rows=True)
  frames = [int(name[-8:]) for name in dataset.table['id']]
  assert frames == [3, 5, 2, 3, 4, 5, 6, 7]
  assert dataset.metadata['skipped_rows'] == 1


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    (b'hello', 'not a picture file; the clip is left out'),
    (_png((8, 7), 3), '8x7 pixels where 8x6 are expected; the clip'),
  ],
  ids=['not a picture', 'another size'],
)
def test_a_bad_frame_costs_its_clip(source, content, reason):
  bad = f'{FRAMES}/S005_001_00000004.png'
  (source / bad).write_bytes(content)
  with pytest.raises(UserError, match=f'{bad}: {reason}'):
    _build(source, form='clips')
  dataset = _build(source, form='clips', skip_bad_rows=True)
  assert dataset.table['subject'].tolist() == ['S010', 'S010']
  # Frames that are not asked for are not looked at.
  assert len(_build(source, form='clips', frames=2)) == 3


# ---------------------------------------------------------------------------
# Class folders


FOLDERS = {
  'anger/S010_004_00000017': 0,
  'anger/S010_004_00000018': 0,
  'contempt/S138_008_00000007': 6,
  'disgust/S005_001_00000009': 1,
  'fear/S011_003_00000012': 2,
  'happy/S010_006_00000013': 3,
  'sadness/S011_002_00000020': 4,
  'surprise/S010_002_00000012': 5,
}


def _write_folders(root: pathlib.Path, names=tuple(FOLDERS)) -> pathlib.Path:
  for shade, name in enumerate(names):
    path = root / 'CK+48' / f'{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_png((48, 48), shade))
  return root


@pytest.mark.parametrize('form', ['folder', 'zip', 'tar.gz'])
def test_class_folders_tell_subject_and_sequence(tmp_path, form):
  root = _write_folders(tmp_path / 'in')
  dataset = _build(root if form == 'folder' else _archive(root, form))
  table = dataset.table
  stems = [name.split('/')[1] for name in FOLDERS]
  assert table['id'].tolist() == [f'ckplus/{stem}' for stem in stems]
  assert table['label'].tolist() == list(FOLDERS.values())
  assert table['subject'].tolist() == [stem[:4] for stem in stems]
  assert table['sequence'][0] == 'S010/004'
  assert set(table['official_split']) == {'none'}
  assert [image.max() for image in dataset.read(range(8))] == list(range(8))
  assert dataset.shape == (48, 48, 1)
  assert dataset.notes['subjects_known'] is True


def test_class_folders_without_such_names_have_no_subjects(tmp_path):
  names = [f'{name.split("/")[0]}/{n}' for n, name in enumerate(FOLDERS)]
  dataset = _build(_write_folders(tmp_path / 'in', names))
  assert dataset.table['id'][0] == 'ckplus/anger/0.png'
  assert dataset.table['label'].tolist() == list(FOLDERS.values())
  assert not {'subject', 'sequence'} & set(dataset.table)
  assert dataset.notes['subjects_known'] is False


def test_names_of_both_kinds_are_refused(tmp_path):
  root = _write_folders(tmp_path / 'in', [*FOLDERS, 'fear/17', 'happy/18'])
  with pytest.raises(UserError, match=r'CK\+48/fear/17.png: no subject in'):
    _build(root)


def test_a_sequence_of_two_classes_is_refused(tmp_path):
  root = _write_folders(
    tmp_path / 'in', [*FOLDERS, 'sadness/S010_004_00000016']
  )
  with pytest.raises(
    UserError, match=r'sadness/S010_004_00000016.png: sequence S010/004 has a'
  ):
    _build(root)


@pytest.mark.parametrize(
  'options',
  [{'form': 'clips'}, {'last_frames': 1}, {'neutral': True}],
  ids=str,
)
def test_class_folders_have_no_whole_sequences(tmp_path, options):
  root = _write_folders(tmp_path / 'in')
  (option,) = options
  with pytest.raises(UserError, match=f"option '{option}'.* and no others"):
    _build(root, **options)


@pytest.mark.parametrize(
  ('name', 'content', 'reason'),
  [
    ('bored/S010_004_00000019.png', _png((48, 48), 1), "class folder 'bored'"),
    ('fear/S010_005_00000019.png', _png((48, 50), 1), '48x50 pixels where'),
    ('fear/S010_005_00000019.png', b'hello', 'not a picture file'),
    ('x/fear/S011_003_00000012.png', _png((48, 48), 1), 'a second copy'),
  ],
  ids=['class', 'size', 'not a picture', 'copy'],
)
def test_a_bad_picture_may_be_skipped(tmp_path, name, content, reason):
  root = _write_folders(tmp_path / 'in')
  path = root / 'CK+48' / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  with pytest.raises(UserError) as caught:
    _build(root)
  assert f'CK+48/{name}: ' in str(caught.value)
  assert reason in str(caught.value)
  assert len(_build(root, skip_bad_rows=True)) == len(FOLDERS)


def test_a_folder_of_something_else(tmp_path):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'face.png').write_bytes(_png((48, 48), 1))
  with pytest.raises(UserError, match='neither the folders cohn-kanade-images'):
    _build(tmp_path / 'in')


# ---------------------------------------------------------------------------
# Options


@pytest.mark.parametrize(
  ('options', 'part'),
  [
    ({'form': 'video'}, "'form' of ckplus is 'video', expected images or clip"),
    ({'last_frames': 0}, "'last_frames' of ckplus is 0, expected at least 1"),
    ({'form': 'clips', 'frames': 1}, "'frames' of ckplus is 1"),
    ({'form': 'clips', 'frames': -2}, "'frames' of ckplus is -2"),
    ({'form': 'clips', 'neutral': True}, 'it is for form images'),
    ({'form': 'clips', 'last_frames': 1}, 'it is for form images'),
    ({'frames': 8}, 'it is for form clips'),
  ],
)
def test_bad_options_are_refused_in_one_line(options, part):
  with pytest.raises(UserError) as caught:
    datasets.resolve_options('ckplus', options)
  assert part in str(caught.value)
  assert '\n' not in str(caught.value)


def test_published_counts_follow_the_options(source):
  # Lucey et al., table 3: anger, disgust, fear, happy, sadness, surprise,
  # contempt; CK+48 has three frames of each.
  sequences = np.array([45, 59, 25, 69, 28, 83, 18])

  def published(**options):
    return ckplus.official_counts(ckplus.OPTIONS | options)

  assert published(form='clips') == {'none': tuple(sequences)}
  assert published() == {'none': (135, 177, 75, 207, 84, 249, 54)}
  assert published(last_frames=1, neutral=True)['none'] == (*sequences, 327)
  assert published(last_frames=9) == {}
  built = _build(source, form='clips').official_counts()
  np.testing.assert_array_equal(built['none'], sequences)
