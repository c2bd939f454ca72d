"""The build on disk, with small builder modules as the sources of examples.

What is read back is compared with the arrays that the module yielded: exact.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import types

import numpy as np
import pytest

from fer_jax import datasets, files
from fer_jax.datasets import building, pictures, records, registry
from fer_jax.datasets import dataset as dataset_lib
from fer_jax.errors import UserError


def _module(make, **attributes) -> types.ModuleType:
  """A builder module whose examples come from `make(source, options, ...)`."""
  module = types.ModuleType('tiny')
  module.__dict__.update(
    CLASS_NAMES=('no', 'yes'),
    VERSION='1.0.0',
    DESCRIPTION='tiny',
    LICENCE='none',
    OPTIONS={'count': 6, 'scale': 0.5, 'clips': False, 'word': 'a'},
    NEEDS_SOURCE=False,
    examples=make,
    **{},
  )
  module.__dict__.update(attributes)
  return module


@pytest.fixture
def register(monkeypatch):
  """Makes a module known as the data set `tiny`."""

  def register(make, **attributes):
    module = _module(make, **attributes)
    monkeypatch.setitem(sys.modules, 'tiny_builder', module)
    monkeypatch.setitem(registry._MODULES, 'tiny', 'tiny_builder')
    return module

  return register


def _image(row: int, channels: int = 1, side: int = 8) -> np.ndarray:
  rng = np.random.default_rng(row)
  return rng.integers(0, 256, (side, side, channels)).astype(np.uint8)


def _example(row: int, **extra):
  return {
    'id': f'tiny/{row}',
    'label': row % 2,
    'official_split': ('train', 'test')[row % 2],
    **extra,
  }


def _grey(source, options, intake):
  for row in range(options['count']):
    yield _example(row, image=_image(row))


def test_images_come_back_in_order(register, tmp_path):
  register(_grey)
  built = datasets.build('tiny', data_dir=tmp_path, count=300)
  index = np.array([299, 0, 17, 17])
  for read in (built.read, built.read_records):
    for row, image in zip(index, read(index), strict=True):
      np.testing.assert_array_equal(image, _image(row))
  assert built.shape == (8, 8, 1)
  assert not built.is_clips
  assert built.table['label'].dtype == np.int32
  assert built.counts()['train'].tolist() == [150, 0]
  assert built.read([]) == built.read_records([]) == []
  with pytest.raises(IndexError):
    built.read([300])
  with pytest.raises(IndexError):
    built.read([-1])


def _ragged(source, options, intake):
  for row in range(options['count']):
    yield _example(row, image=_image(row, side=4 + row % 3))


def _ragged_clips(source, options, intake):
  for row in range(options['count']):
    yield _example(row, frames=np.stack([_image(row)] * (1 + row % 4)))


@pytest.mark.parametrize(
  ('make', 'at_once'),
  # Of one size by their bytes, else by number, of clips by their frames.
  [(_grey, [3, 3, 1]), (_ragged, [4, 3]), (_ragged_clips, [2, 2, 2, 1])],
)
def test_few_pictures_are_in_memory_at_a_time(
  make, at_once, register, tmp_path, monkeypatch
):
  register(make)
  built = datasets.build('tiny', data_dir=tmp_path, count=7)
  monkeypatch.setattr(dataset_lib, '_BYTES_AT_ONCE', 3 * 64 + 1)
  monkeypatch.setattr(dataset_lib, '_PICTURES_AT_ONCE', 4)
  monkeypatch.setattr(dataset_lib, '_FRAMES_AT_ONCE', 9)
  read, counts = built.read, []
  monkeypatch.setattr(
    built, 'read', lambda index: counts.append(len(index)) or read(index)
  )
  for row, image in enumerate(built.each()):
    np.testing.assert_array_equal(image, read([row])[0])
  assert counts == at_once
  counts.clear()
  last, first = built.each([6, 0])
  np.testing.assert_array_equal(last, read([6])[0])
  np.testing.assert_array_equal(first, read([0])[0])
  assert sum(counts) == 2


def test_nothing_is_left_among_temporary_files(register, tmp_path, monkeypatch):
  place = tmp_path / 'temporary'
  place.mkdir()
  monkeypatch.setattr(tempfile, 'tempdir', str(place))
  register(_grey)
  datasets.build('tiny', data_dir=tmp_path)
  datasets.load('tiny', data_dir=tmp_path)
  assert not list(place.iterdir())


def test_a_set_that_makes_itself_is_found_without_the_right_to_write(
  register, tmp_path, monkeypatch
):
  register(_grey)
  built = datasets.build('tiny', data_dir=tmp_path)

  def refuse(folder):
    raise PermissionError(13, 'Permission denied', str(folder))

  monkeypatch.setattr(building, '_locked', refuse)
  found = datasets.load('tiny', data_dir=tmp_path, checksum=built.checksum[:8])
  assert found.root == built.root
  with pytest.raises(UserError, match=f'is {built.checksum[:12]}, not abc'):
    datasets.load('tiny', data_dir=tmp_path, checksum='abc')


def test_ragged_clips_with_every_column(register, tmp_path):
  def clips(source, options, intake):
    for row in range(5):
      frames = [_image(100 * row + t, channels=3) for t in range(2 + row)]
      yield _example(
        row,
        frames=np.stack(frames) if row % 2 else frames,
        subject=f's{row // 2}',
        sequence=f'q{row}',
        votes=[row, 0.5, 2],
      )

  register(clips)
  built = datasets.build('tiny', data_dir=tmp_path)
  assert built.is_clips
  assert built.shape is None
  assert not (built.root / 'pixels.npy').exists()
  assert built.table['frame_count'].tolist() == [2, 3, 4, 5, 6]
  assert built.table['subject'].tolist() == ['s0', 's0', 's1', 's1', 's2']
  assert built.table['sequence'].tolist() == ['q0', 'q1', 'q2', 'q3', 'q4']
  assert built.table['votes'].dtype == np.float32
  assert built.table['votes'][3].tolist() == [3, 0.5, 2]
  for row, clip in enumerate(built.read(np.arange(5))):
    expected = [_image(100 * row + t, channels=3) for t in range(2 + row)]
    np.testing.assert_array_equal(clip, np.stack(expected))


def test_clips_of_one_length_have_the_cache(register, tmp_path):
  def clips(source, options, intake):
    for row in range(3):
      yield _example(row, frames=np.stack([_image(row), _image(9)]))

  register(clips)
  built = datasets.build('tiny', data_dir=tmp_path)
  assert built.shape == (2, 8, 8, 1)
  assert (built.root / 'pixels.npy').exists()
  for cached, stored in zip(
    built.read(range(3)), built.read_records(range(3)), strict=True
  ):
    np.testing.assert_array_equal(cached, stored)


def test_no_object_is_pickled(register, tmp_path):
  register(_grey)
  built = datasets.build('tiny', data_dir=tmp_path)
  with np.load(built.root / 'index.npz', allow_pickle=False) as arrays:
    assert set(arrays.files) == {'id', 'label', 'official_split'}
    assert all(arrays[name].dtype != object for name in arrays.files)
  np.load(built.root / 'pixels.npy', allow_pickle=False)


def test_the_table_is_read_without_decoding(register, tmp_path, monkeypatch):
  register(_grey)
  datasets.build('tiny', data_dir=tmp_path)

  def fail(*_):
    raise AssertionError('decoded')

  monkeypatch.setattr(pictures, 'decode', fail)
  monkeypatch.setattr(dataset_lib, 'tensorflow_datasets', fail)
  assert len(datasets.load('tiny', data_dir=tmp_path).table['id']) == 6


def test_tensorflow_is_never_imported(tmp_path):
  (tmp_path / 'fer2013.csv').write_text(
    'emotion,pixels,Usage\n0,' + '7 ' * 2304 + ',Training\n'
  )
  code = (
    'import sys; from fer_jax import datasets;'
    f'd = datasets.build("fer2013", data_dir="{tmp_path}",'
    f' source="{tmp_path}/fer2013.csv");'
    'd.read_records([0]); assert "tensorflow" not in sys.modules'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def test_options_make_builds_of_their_own(register, tmp_path):
  register(_grey)
  six = datasets.build('tiny', data_dir=tmp_path)
  four = datasets.build('tiny', data_dir=tmp_path, count='4')
  assert (len(six), len(four)) == (6, 4)
  assert six.root != four.root
  assert len(datasets.load('tiny', data_dir=tmp_path, count=4)) == 4
  assert len(datasets.load('tiny', data_dir=tmp_path)) == 6
  assert len(datasets.builds('tiny', data_dir=tmp_path)) == 2


def test_a_build_is_made_once_and_is_deterministic(register, tmp_path):
  made = []

  def counted(source, options, intake):
    made.append(1)
    yield from _grey(source, options, intake)

  register(counted)
  first = datasets.build('tiny', data_dir=tmp_path / 'a')
  datasets.build('tiny', data_dir=tmp_path / 'a')
  assert len(made) == 1
  other = datasets.build('tiny', data_dir=tmp_path / 'b')
  assert first.checksum == other.checksum
  assert first.root.name == other.root.name


def _with_source(source, options, intake):
  for row, letter in enumerate(source.read(source.members[0])):
    if letter == ord('x'):
      intake.reject(f'letter {row}', 'is an x')
      continue
    yield _example(row, image=np.full((4, 4, 1), letter, np.uint8))


def test_each_source_has_its_own_build(register, tmp_path):
  register(_with_source, NEEDS_SOURCE=True)
  data_dir = tmp_path / 'data'
  with pytest.raises(UserError, match='data build --dataset=tiny --source'):
    datasets.load('tiny', data_dir=data_dir)
  source = tmp_path / 'letters'
  source.write_text('abc')
  first = datasets.build('tiny', data_dir=data_dir, source=source)
  assert datasets.load('tiny', data_dir=data_dir).root == first.root
  source.write_text('abd')
  second = datasets.build('tiny', data_dir=data_dir, source=source)
  assert second.root != first.root
  assert second.read([2])[0][0, 0, 0] == ord('d')
  with pytest.raises(UserError, match='2 builds of tiny'):
    datasets.load('tiny', data_dir=data_dir)
  found = datasets.load('tiny', data_dir=data_dir, checksum=first.checksum[:12])
  assert found.read([2])[0][0, 0, 0] == ord('c')


def test_bad_rows_end_a_build_or_are_counted(register, tmp_path):
  register(_with_source, NEEDS_SOURCE=True)
  data_dir = tmp_path / 'data'
  source = tmp_path / 'letters'
  source.write_text('axbxc')
  with pytest.raises(UserError, match='letter 1: is an x; 2 bad rows in all'):
    datasets.build('tiny', data_dir=data_dir, source=source)
  kept = datasets.build(
    'tiny', data_dir=data_dir, source=source, skip_bad_rows=True
  )
  assert kept.table['id'].tolist() == ['tiny/0', 'tiny/2', 'tiny/4']
  assert kept.metadata['skipped_rows'] == 2
  source.write_text('xx')
  for skip in (False, True):
    with pytest.raises(UserError, match=r'is an x'):
      datasets.build(
        'tiny', data_dir=data_dir, source=source, skip_bad_rows=skip
      )


def test_a_source_that_changes_while_read(register, tmp_path):
  source = tmp_path / 'letters'
  source.write_text('abc')

  def changing(opened, options, intake):
    yield from _with_source(opened, options, intake)
    source.write_text('abcd')

  register(changing, NEEDS_SOURCE=True)
  with pytest.raises(UserError, match='changed while it was read'):
    datasets.build('tiny', data_dir=tmp_path / 'data', source=source)
  assert datasets.builds('tiny', data_dir=tmp_path / 'data') == []


@pytest.mark.parametrize(
  ('options', 'reason'),
  [
    ({'cuont': 4}, "no option 'cuont'.*did you mean 'count'"),
    ({'count': 'six'}, "'six' is not a whole number"),
    ({'count': 1.5}, '1.5 is not a whole number'),
    ({'scale': 'nan'}, "'nan' is not a number"),
    ({'clips': 'perhaps'}, 'neither true nor false'),
    ({'word': 3}, '3 is not text'),
  ],
)
def test_options_are_checked(options, reason, register, tmp_path):
  register(_grey)
  with pytest.raises(UserError, match=reason):
    datasets.build('tiny', data_dir=tmp_path, **options)


def test_options_are_typed(register):
  register(_grey)
  given = {'count': '7', 'scale': '1', 'clips': 'True', 'word': 'b'}
  resolved = datasets.resolve_options('tiny', given)
  # No float holds it.
  large = datasets.resolve_options('tiny', {'count': str(2**53 + 1)})
  assert large['count'] == 2**53 + 1
  assert resolved == {'count': 7, 'scale': 1.0, 'clips': True, 'word': 'b'}
  assert isinstance(resolved['scale'], float)


def test_names():
  assert {'fer2013', 'synthetic_faces'} <= set(datasets.names())
  with pytest.raises(UserError, match="did you mean 'fer2013'"):
    datasets.load('fer2103', data_dir='.')


@pytest.mark.parametrize(
  ('change', 'reason'),
  [
    ({'label': 2}, 'label 2'),
    ({'official_split': 'val'}, "split 'val'"),
    ({'id': 'tiny/0'}, 'occurs twice'),
    ({'subject': 'me'}, 'differ from before'),
    ({'image': np.zeros((8, 8, 3), np.uint8)}, 'grey and colour'),
    ({'image': np.zeros((8, 8, 1), np.float32)}, 'float32'),
  ],
)
def test_a_module_that_breaks_the_contract(change, reason, register, tmp_path):
  def broken(source, options, intake):
    yield _example(0, image=_image(0))
    yield {**_example(1, image=_image(1)), **change}

  register(broken)
  with pytest.raises(ValueError, match=reason):
    datasets.build('tiny', data_dir=tmp_path)
  assert os.listdir(tmp_path / 'tiny') == ['.lock']


_SLOW_BUILD = """
import signal, sys, time, types
# A job in the background of a script inherits that it ignores SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
import test_dataset
from fer_jax import datasets, files
from fer_jax.datasets import registry

def slow(source, options, intake):
  for example in test_dataset._grey(source, options, intake):
    yield example
    if example['id'] == 'tiny/3':
      print('half', file=sys.__stdout__, flush=True)
      time.sleep(600)

sys.modules['tiny_builder'] = test_dataset._module(slow)
registry._MODULES['tiny'] = 'tiny_builder'
datasets.build('tiny', data_dir={data_dir!r})
"""


@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_build_is_never_read(how, register, tmp_path):
  code = _SLOW_BUILD.format(
    tests=str(pathlib.Path(__file__).parent), data_dir=str(tmp_path)
  )
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  assert process.stdout is not None
  assert process.stdout.readline() == 'half\n'
  process.send_signal(how)
  process.wait(timeout=60)
  process.stdout.close()
  register(_grey)
  assert datasets.builds('tiny', data_dir=tmp_path) == []
  built = datasets.build('tiny', data_dir=tmp_path)
  assert len(built) == 6
  built.verify()
  assert not list((tmp_path / 'tiny').glob('.building-*'))


def test_two_builds_at_once_make_one(register, tmp_path):
  code = _SLOW_BUILD.format(
    tests=str(pathlib.Path(__file__).parent), data_dir=str(tmp_path)
  ).replace('time.sleep(600)', 'time.sleep(2)')
  process = subprocess.Popen(
    [sys.executable, '-c', code],
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  )
  assert process.stdout is not None
  assert process.stdout.readline() == 'half\n'

  def never(source, options, intake):
    raise AssertionError('built twice')
    yield

  register(never)
  assert len(datasets.build('tiny', data_dir=tmp_path)) == 6
  assert process.wait(timeout=60) == 0
  process.stdout.close()


def _built(register, tmp_path):
  register(_grey)
  return datasets.build('tiny', data_dir=tmp_path)


def test_a_cut_or_changed_file_is_found(register, tmp_path):
  root = _built(register, tmp_path).root
  record = next(root.glob('records/tiny/1.0.0/*array_record*'))
  whole = record.read_bytes()
  record.write_bytes(whole[:-1])
  with pytest.raises(UserError, match=r'array_record.* is missing or cut'):
    datasets.load('tiny', data_dir=tmp_path)
  record.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
  with pytest.raises(UserError, match='is damaged'):
    datasets.load('tiny', data_dir=tmp_path).verify()
  record.write_bytes(whole)
  index = root / 'index.npz'
  content = bytearray(index.read_bytes())
  content[100] ^= 1
  index.write_bytes(content)
  with pytest.raises(UserError, match=r'index.npz is damaged; delete'):
    datasets.load('tiny', data_dir=tmp_path)
  (root / 'dataset.json').write_text('{')
  with pytest.raises(UserError, match=r'dataset.json is damaged; delete'):
    datasets.load('tiny', data_dir=tmp_path)


@pytest.mark.parametrize(
  ('field', 'value', 'said'),
  [
    ('name', "'", r"is damaged.* a build of \"'\", in the folder of 'tiny'"),
    ('version', 'a' * 300, r'records is damaged \(there is no .*dataset_info'),
    ('version', '\U0001f600', r'records is damaged \(there is no'),
  ],
)
def test_a_name_that_no_folder_has(field, value, said, register, tmp_path):
  root = _built(register, tmp_path).root
  metadata = json.loads((root / 'dataset.json').read_text())
  (root / 'dataset.json').write_text(json.dumps(metadata | {field: value}))
  with pytest.raises(UserError, match=said):
    dataset_lib.open_build(root).read_records([0])


def test_a_damaged_cache_gives_way_to_the_records(register, tmp_path, capsys):
  root = _built(register, tmp_path).root
  content = bytearray((root / 'pixels.npy').read_bytes())
  content[-1] ^= 1
  (root / 'pixels.npy').write_bytes(content)
  built = datasets.load('tiny', data_dir=tmp_path)
  np.testing.assert_array_equal(built.read([5])[0], _image(5))
  assert 'pixels.npy is damaged' in capsys.readouterr().err
  (root / 'pixels.npy').unlink()
  built = datasets.load('tiny', data_dir=tmp_path)
  np.testing.assert_array_equal(built.read([5])[0], _image(5))
  with pytest.raises(UserError, match=r'pixels.npy is missing; delete .*again'):
    built.verify()


def test_a_build_can_be_moved(register, tmp_path):
  _built(register, tmp_path / 'a')
  (tmp_path / 'a').rename(tmp_path / 'b')
  built = datasets.load('tiny', data_dir=tmp_path / 'b')
  np.testing.assert_array_equal(built.read_records([5])[0], _image(5))


def test_not_enough_disk(register, tmp_path, monkeypatch):
  register(_grey)
  with monkeypatch.context() as context:
    usage = types.SimpleNamespace(free=5_000_000)
    context.setattr(building.shutil, 'disk_usage', lambda _: usage)
    with pytest.raises(UserError, match='5 MB free, the build needs about'):
      datasets.build('tiny', data_dir=tmp_path)

  # /dev/full gives ENOSPC on the first write.
  full = records._PixelCache

  def on_full_disk(path):
    path.symlink_to('/dev/full')
    return full(path)

  with monkeypatch.context() as context:
    context.setattr(records, '_PixelCache', on_full_disk)
    with pytest.raises(UserError, match=r'no space left in .*nothing was kept'):
      datasets.build('tiny', data_dir=tmp_path, count=5000)
  assert datasets.builds('tiny', data_dir=tmp_path) == []
  assert len(datasets.build('tiny', data_dir=tmp_path)) == 6


def test_a_disk_without_locks(register, tmp_path, monkeypatch):
  register(_grey)

  def flock(file, how):
    raise OSError(37, 'No locks available')

  monkeypatch.setattr(files.fcntl, 'flock', flock)
  with pytest.raises(UserError, match=r'cannot lock .*tiny/\.lock: No locks'):
    datasets.build('tiny', data_dir=tmp_path)


def test_progress_goes_to_stderr_alone(register, tmp_path, capfd):
  register(_grey)
  datasets.build('tiny', data_dir=tmp_path)
  out, err = capfd.readouterr()
  assert out == ''
  assert 'building tiny: 6 examples' in err


def test_metadata_says_what_was_built(register, tmp_path):
  def noting(source, options, intake):
    intake.notes['layout'] = 'csv'
    yield from _with_source(source, options, intake)

  register(noting, NEEDS_SOURCE=True)
  source = tmp_path / 'letters'
  source.write_text('abc')
  built = datasets.build('tiny', data_dir=tmp_path / 'd', source=source)
  metadata = json.loads((built.root / 'dataset.json').read_text())
  assert metadata['source'] == {'name': 'letters', 'kind': 'file', 'bytes': 3}
  # FIPS 180-2, appendix B.1.
  assert built.checksum.startswith('ba7816bf8f01cfea414140de5dae2223')
  assert built.notes == {'layout': 'csv'}
  assert built.class_names == ('no', 'yes')
  assert time.strptime(metadata['built'][:10], '%Y-%m-%d')
