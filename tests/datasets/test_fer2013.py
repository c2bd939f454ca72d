"""FER2013: every accepted form, and every bad row with its line."""

import io
import pathlib
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from fer_jax import datasets
from fer_jax.datasets import fer2013
from fer_jax.errors import UserError

USAGES = ('Training', 'PublicTest', 'PrivateTest')
SPLITS = ('train', 'validation', 'test')
COUNT = 21


def _images() -> np.ndarray:
  draws = np.random.default_rng(7).integers(0, 256, (COUNT, 48, 48, 1))
  return draws.astype(np.uint8)


IMAGES = _images()
LABELS = np.arange(COUNT) % 7
USAGE = np.arange(COUNT) % 3


def _pixels(row: int) -> str:
  return ' '.join(map(str, IMAGES[row].ravel()))


def _rows() -> list[list[str]]:
  return [
    [str(LABELS[row]), _pixels(row), USAGES[USAGE[row]]] for row in range(COUNT)
  ]


def _text(rows, header='emotion,pixels,Usage', end='\n') -> str:
  return end.join([header, *(','.join(row) for row in rows)]) + end


def _build(tmp_path: pathlib.Path, content, name='fer2013.csv', **options):
  path = tmp_path / name
  if isinstance(content, str):
    content = content.encode()
  path.write_bytes(content)
  return datasets.build(
    'fer2013', data_dir=tmp_path / 'data', source=path, **options
  )


def _check(dataset, ids_by_row=True):
  assert len(dataset) == COUNT
  np.testing.assert_array_equal(dataset.table['label'], LABELS)
  assert dataset.table['label'].dtype == np.int32
  expected = np.array(SPLITS)[USAGE]
  np.testing.assert_array_equal(dataset.table['official_split'], expected)
  if ids_by_row:
    ids = [f'fer2013/{row:05d}' for row in range(COUNT)]
    assert dataset.table['id'].tolist() == ids
  for read in (dataset.read, dataset.read_records):
    np.testing.assert_array_equal(np.stack(read(range(COUNT))), IMAGES)


TEXTS = {
  'plain': _text(_rows()),
  'no last line end': _text(_rows()).rstrip('\n'),
  'crlf': _text(_rows(), end='\r\n'),
  'bom': '\ufeff' + _text(_rows()),
  'quoted': _text(
    [[label, f'"{pixels}"', usage] for label, pixels, usage in _rows()],
    header='"emotion","pixels","Usage"',
  ),
  'icml': _text(
    [[label, usage, pixels] for label, pixels, usage in _rows()],
    header='emotion, Usage, pixels',
  ),
  'icml with spaced values': _text(
    [[label, f' {usage}', f' {pixels} '] for label, pixels, usage in _rows()],
    header='emotion, Usage, pixels',
  ),
  'a blank last line': _text(_rows()) + '\n\n',
}


@pytest.mark.parametrize('form', TEXTS)
def test_csv_forms(form, tmp_path):
  _check(_build(tmp_path, TEXTS[form]))


@pytest.mark.parametrize('form', ['zip', 'tar', 'tar.gz', 'csv.gz', 'folder'])
def test_csv_in_an_archive_or_folder(form, tmp_path):
  content = TEXTS['icml'].encode()
  member = 'challenge/icml_face_data.csv'
  path = tmp_path / f'source.{form}'
  if form == 'folder':
    (path / 'challenge').mkdir(parents=True)
    (path / member).write_bytes(content)
    (path / 'train.csv').write_text('not this one')
  elif form == 'zip':
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
      archive.writestr('train.csv', 'not this one')
      archive.writestr(member, content)
  elif form == 'csv.gz':
    import gzip

    path.write_bytes(gzip.compress(content))
  else:
    with tarfile.open(path, 'w:gz' if form == 'tar.gz' else 'w') as archive:
      entry = tarfile.TarInfo(member)
      entry.size = len(content)
      archive.addfile(entry, io.BytesIO(content))
  data_dir = tmp_path / 'data'
  _check(datasets.build('fer2013', data_dir=data_dir, source=path))


def _changed(row: int, column: int, value: str) -> str:
  rows = _rows()
  rows[row][column] = value
  return _text(rows)


def _pixel(value: str) -> str:
  return ' '.join([*_pixels(4).split()[:-1], value])


BAD = {
  'too few pixels': (
    _changed(4, 1, _pixels(4).rsplit(' ', 1)[0]),
    r'2,303 pixels where 2,304 \(48x48\) are expected',
  ),
  'too many pixels': (_changed(4, 1, f'{_pixels(4)} 1'), '2,305 pixels'),
  'no pixels': (_changed(4, 1, ''), '0 pixels where'),
  'above 255': (_changed(4, 1, _pixel('256')), '256 is outside 0 to 255'),
  'far above': (_changed(4, 1, _pixel('9' * 30)), 'is outside 0 to 255'),
  'negative': (_changed(4, 1, _pixel('-1')), "'-1' is outside 0 to 255"),
  'a word': (_changed(4, 1, _pixel('abc')), "'abc' is not a whole number"),
  'a fraction': (_changed(4, 1, _pixel('7.5')), "'7.5' is not a whole number"),
  'a tab-joined sign': (_changed(4, 1, _pixel('+7')), 'not a whole number'),
  'label 7': (_changed(4, 0, '7'), "unknown label '7'; 0 to 6"),
  'label word': (_changed(4, 0, 'happy'), "unknown label 'happy'"),
  'label empty': (_changed(4, 0, ''), "unknown label ''"),
  'usage': (_changed(4, 2, 'Test'), "unknown usage 'Test'; Training, Public"),
  'a field more': (_changed(4, 2, 'Training,x'), '4 fields where 3'),
  'a field less': (_changed(4, 2, '').replace(',\n', '\n'), '2 fields where 3'),
  'open quote': (_changed(4, 1, '"' + _pixels(4)), 'not a csv row'),
  'second header': (
    _changed(4, 0, 'X').replace(
      f'X,{_pixels(4)},{USAGES[USAGE[4]]}', 'emotion,pixels,Usage'
    ),
    'a second header line',
  ),
  'a huge field': (_changed(4, 1, '1 ' * 300_000), 'a line of over 131,072'),
}


@pytest.mark.parametrize('what', BAD)
def test_a_bad_row_is_named_and_may_be_skipped(what, tmp_path):
  content, reason = BAD[what]
  line = r'fer2013.csv line 6 \(data row 5\): '
  with pytest.raises(UserError, match=line + f'.*{reason}'):
    _build(tmp_path, content)
  assert datasets.builds('fer2013', data_dir=tmp_path / 'data') == []
  dataset = _build(tmp_path, content, skip_bad_rows=True)
  kept = np.delete(np.arange(COUNT), 4)
  assert dataset.metadata['skipped_rows'] == 1
  # Ids stay those of the file's rows: the fifth is missing, none has moved.
  ids = [f'fer2013/{row:05d}' for row in kept]
  assert dataset.table['id'].tolist() == ids
  np.testing.assert_array_equal(
    np.stack(dataset.read(range(len(kept)))), IMAGES[kept]
  )
  # The skipping build is not handed to who did not ask for skipping.
  with pytest.raises(UserError, match=reason):
    _build(tmp_path, content)


def test_all_bad_rows_are_counted(tmp_path):
  rows = _rows()
  for row in (2, 9, 20):
    rows[row][0] = '9'
  with pytest.raises(UserError, match=r'line 4 .*; 3 bad rows in all'):
    _build(tmp_path, _text(rows))


def test_a_cut_file_says_so(tmp_path):
  whole = _text(_rows())
  with pytest.raises(UserError, match=r'line 22 .*is the file cut\?'):
    _build(tmp_path, whole[:-300])
  with pytest.raises(UserError, match=r"usage 'PrivateTe'.*is the file cut\?"):
    _build(tmp_path, whole[:-3])


@pytest.mark.parametrize(
  ('content', 'reason'),
  [
    ('', 'an empty file'),
    ('emotion,pixels,Usage\n', 'a header and no rows'),
    ('emotion,pixels\n0,1 2\n', "no column 'usage'"),
    ('emotion;pixels;Usage\n', "no column 'emotion'"),
    ('emotion,pixels,Usage,usage\n', "'usage' occurs twice"),
    (_text(_rows()).split('\n', 1)[1], "no column 'emotion'"),
    ('emotion,pixels,Usage\n'.encode('utf-16'), 'not a UTF-8 text'),
    (bytes(range(128, 256)) * 20, 'line 1'),
    (_changed(0, 0, 'x').split('\n', 2)[0] + '\n\n\n', 'no rows'),
  ],
)
def test_what_is_no_table(content, reason, tmp_path):
  with pytest.raises(UserError, match=reason):
    _build(tmp_path, content)


def test_every_text_of_a_pixel():
  # Python's int is the reference for 0 to 255, plain and zero-padded.
  for value in range(256):
    for text in (str(value), f'{value:03d}'):
      row = f'{text} ' * 2304
      assert set(fer2013.parse_pixels(row.encode())) == {value}


def _write_folders(root: pathlib.Path, prefixed: bool) -> None:
  names = {0: 'train', 1: 'test', 2: 'test'}
  for row in range(COUNT):
    folder = root / names[USAGE[row]] / fer2013.CLASS_NAMES[LABELS[row]]
    folder.mkdir(parents=True, exist_ok=True)
    stem = f'{USAGES[USAGE[row]]}_{row:03d}' if prefixed else f'{row:03d}'
    Image.fromarray(IMAGES[row, ..., 0]).save(folder / f'{stem}.png')


def _by_pixels(dataset) -> np.ndarray:
  """The row of IMAGES that each example shows."""
  images = np.stack(dataset.read(range(len(dataset))))
  same = (images[:, None] == IMAGES[None]).all(axis=(2, 3, 4))
  assert (same.sum(axis=1) == 1).all()
  return same.argmax(axis=1)


@pytest.mark.parametrize('form', ['folder', 'deeper', 'zip', 'tar.gz'])
def test_folder_form(form, tmp_path):
  root = tmp_path / 'in'
  _write_folders(root, prefixed=True)
  source = root
  if form == 'deeper':
    source = tmp_path / 'out'
    source.mkdir()
    root.rename(source / 'archive')
  elif form == 'zip':
    source = tmp_path / 'in.zip'
    with zipfile.ZipFile(source, 'w') as archive:
      for path in sorted(root.rglob('*.png'), reverse=True):
        archive.write(path, path.relative_to(root))
  elif form == 'tar.gz':
    source = tmp_path / 'in.tar.gz'
    with tarfile.open(source, 'w:gz') as archive:
      archive.add(root, 'fer')
  dataset = datasets.build('fer2013', data_dir=tmp_path / 'd', source=source)
  rows = _by_pixels(dataset)
  assert sorted(rows) == list(range(COUNT))
  np.testing.assert_array_equal(dataset.table['label'], LABELS[rows])
  np.testing.assert_array_equal(
    dataset.table['official_split'], np.array(SPLITS)[USAGE[rows]]
  )
  assert dataset.table['id'][0] == 'fer2013/test/angry/PrivateTest_014.png'
  assert not dataset.test_is_unsplit


def test_a_test_folder_without_prefixes_stays_unsplit(tmp_path):
  _write_folders(tmp_path / 'in', prefixed=False)
  dataset = datasets.build(
    'fer2013', data_dir=tmp_path / 'd', source=tmp_path / 'in'
  )
  rows = _by_pixels(dataset)
  expected = np.where(USAGE[rows] == 0, 'train', 'test_unsplit')
  np.testing.assert_array_equal(dataset.table['official_split'], expected)
  assert dataset.test_is_unsplit
  official = dataset.official_counts()
  assert official['test_unsplit'].sum() == 7178
  assert set(official) == {'train', 'test_unsplit'}


def test_jpeg_files_are_stored_as_they_came(tmp_path):
  folder = tmp_path / 'in' / 'train' / 'Happiness'
  folder.mkdir(parents=True)
  path = folder / 'x.JPG'
  Image.fromarray(IMAGES[0, ..., 0]).save(path, 'JPEG', quality=70)
  dataset = datasets.build(
    'fer2013', data_dir=tmp_path / 'd', source=tmp_path / 'in'
  )
  assert dataset.table['label'].tolist() == [3]
  assert dataset._records[0]['image'] == path.read_bytes()
  with Image.open(path) as image:
    np.testing.assert_array_equal(dataset.read([0])[0][..., 0], image)


def _image_file(size=(48, 48), color=None, form='PNG') -> bytes:
  buffer = io.BytesIO()
  image = Image.new('RGB' if color else 'L', size, color or 9)
  image.save(buffer, form)
  return buffer.getvalue()


def test_a_grey_picture_saved_as_colour_becomes_grey(tmp_path):
  folder = tmp_path / 'in' / 'train' / 'sad'
  folder.mkdir(parents=True)
  (folder / 'x.png').write_bytes(_image_file(color=(77, 77, 77)))
  dataset = datasets.build(
    'fer2013', data_dir=tmp_path / 'd', source=tmp_path / 'in'
  )
  assert dataset.shape == (48, 48, 1)
  assert (dataset.read([0])[0] == 77).all()


def test_grey_in_colour_is_its_green_channel_within_a_tolerance(tmp_path):
  place = {'data_dir': tmp_path / 'd', 'source': tmp_path / 'in'}
  folder = tmp_path / 'in' / 'train' / 'sad'
  folder.mkdir(parents=True)
  # Not the luma, 82: what the files were before they were saved in colour.
  (folder / 'x.png').write_bytes(_image_file(color=(70, 86, 86)))
  assert (datasets.build('fer2013', **place).read([0])[0] == 86).all()
  (folder / 'x.png').write_bytes(_image_file(color=(69, 86, 86)))
  with pytest.raises(UserError, match='a colour picture where a grey one is'):
    datasets.build('fer2013', **place)


def test_a_file_of_absurd_length_is_a_bad_row(tmp_path, monkeypatch):
  folder = tmp_path / 'in' / 'train' / 'sad'
  folder.mkdir(parents=True)
  (folder / 'x.png').write_bytes(_image_file() + bytes(9_000))
  monkeypatch.setattr(fer2013.layout, 'LONGEST_PICTURE_FILE', 8_000)
  with pytest.raises(UserError, match=r'x.png: a picture file of 9,\d+ bytes'):
    datasets.build('fer2013', data_dir=tmp_path / 'd', source=tmp_path / 'in')


BAD_FILES = {
  'unknown class': (
    'train/bored/x.png', _image_file(), "unknown class folder 'bored'"),
  'unknown split': (
    'valid/happy/x.png', _image_file(), 'outside train|test/<class>/'),
  'not an image': ('train/happy/x.png', b'hello', 'not a picture file'),
  'a text file': ('train/happy/notes.txt', b'hello', 'not a picture file'),
  'an empty file': ('train/happy/x.png', b'', 'an empty file'),
  'cut': ('train/happy/x.png', _image_file()[:60], 'a damaged picture'),
  'wrong size': (
    'train/happy/x.png', _image_file((50, 48)), '50x48 pixels where 48x48'),
  'colour': (
    'train/happy/x.png', _image_file(color=(200, 0, 0)), 'a colour picture'),
  'absurd': (
    'train/happy/x.png', _image_file((8000, 8000), form='PNG'), 'absurd size'),
  'a test file in train': (
    'train/happy/PublicTest_1.png', _image_file(), "in the folder 'train'"),
}  # fmt: skip


@pytest.mark.parametrize('what', BAD_FILES)
def test_a_bad_file_is_named_and_may_be_skipped(what, tmp_path):
  name, content, reason = BAD_FILES[what]
  _write_folders(tmp_path / 'in', prefixed=True)
  path = tmp_path / 'in' / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  place = {'data_dir': tmp_path / 'd', 'source': tmp_path / 'in'}
  with pytest.raises(UserError) as caught:
    datasets.build('fer2013', **place)
  assert name in str(caught.value)
  assert reason in str(caught.value)
  dataset = datasets.build('fer2013', **place, skip_bad_rows=True)
  assert len(dataset) == COUNT
  assert dataset.metadata['skipped_rows'] == 1
  assert reason in dataset.metadata['first_skipped']


def test_a_folder_of_something_else(tmp_path):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'readme.md').write_text('hello')
  with pytest.raises(UserError, match=r'neither fer2013.csv nor .* folders'):
    datasets.build('fer2013', data_dir=tmp_path / 'd', source=tmp_path / 'in')
