"""Writing a build: records, the cache of decoded pixels, and the table."""

import contextlib
import hashlib
import io
import itertools
import json
import pathlib
import shutil
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

import numpy as np

from fer_jax.datasets import pictures
from fer_jax.datasets.dataset import (
  ATTRIBUTE,
  OFFICIAL_SPLITS,
  RECORD_SPLIT,
  tensorflow_datasets,
)
from fer_jax.errors import UserError

_PIXEL_CACHE_LIMIT = 2 << 30
_REQUIRED = ('id', 'label', 'official_split')
_OPTIONAL = ('subject', 'sequence', 'votes')


class Intake:
  """What a builder module reports while it yields examples.

  Attributes:
    notes: JSON-able facts kept with the set.
    rejected: number of bad rows so far.
    first_rejected: what was wrong with the first of them.
    expected: number of rows to come, where known.
  """

  def __init__(self):
    self.notes: dict[str, Any] = {}
    self.rejected = 0
    self.first_rejected = ''
    self.expected: int | None = None

  def reject(self, where: str, why: str) -> None:
    """Records a bad row: the place ('fer.csv line 4'), and what is wrong."""
    self.rejected += 1
    if not self.first_rejected:
      self.first_rejected = f'{where}: {why}'

  def expect(self, count: int) -> None:
    """Says how many rows there will be."""
    self.expected = count


class _Progress:
  """A line on stderr: redrawn on a terminal, else one every ten seconds."""

  def __init__(self, label: str, stream: TextIO | None = None):
    self._label = label
    self._stream = stream or sys.stderr
    self._terminal = self._stream.isatty()
    self._pause = 0.5 if self._terminal else 10.0
    self._began = self._last = time.monotonic()

  def show(self, done: int, expected: int | None, last: bool = False) -> None:
    now = time.monotonic()
    if not last and now - self._last < self._pause:
      return
    self._last = now
    seconds = max(now - self._began, 1e-9)
    of = f' of {expected:,}' if expected and not last else ''
    line = (
      f'{self._label}: {done:,}{of} examples, {seconds:.0f} s, '
      f'{done / seconds:,.0f} a second'
    )
    start, end = ('\r', '\n' if last else '') if self._terminal else ('', '\n')
    self._stream.write(f'{start}{line}{end}')
    self._stream.flush()


def _both_forms(picture: np.ndarray | bytes) -> tuple[np.ndarray, bytes]:
  """A picture decoded and encoded, whichever it came as."""
  if isinstance(picture, bytes):
    return pictures.decode(picture), picture
  picture = np.asarray(picture)
  if (
    picture.dtype != np.uint8
    or picture.ndim != 3
    or picture.shape[-1] not in (1, 3)
  ):
    raise ValueError(
      f'an image is uint8 (H, W, 1 or 3), not {picture.dtype} {picture.shape}'
    )
  return picture, pictures.encode_png(picture)


class _PixelCache:
  """Writes pixels.npy row by row while all rows have one shape."""

  def __init__(self, path: pathlib.Path):
    self._path = path
    self._file = path.open('wb')
    self._rows = 0
    self._bytes = 0
    self._shape: tuple[int, ...] | None = None
    self._mixed = False
    self._write_header()

  @property
  def shape(self) -> tuple[int, ...] | None:
    """The one shape of all rows so far, or None."""
    return None if self._mixed else self._shape

  def _write_header(self) -> None:
    # An .npy header of fixed length: written again when the count is known.
    shape = (self._rows, *(self._shape or ()))
    fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"
    header = fields.ljust(245).encode() + b'\n'
    self._file.write(b'\x93NUMPY\x01\x00' + len(header).to_bytes(2, 'little'))
    self._file.write(header)

  def add(self, pixels: np.ndarray) -> None:
    self._shape = self._shape or pixels.shape
    self._mixed = self._mixed or pixels.shape != self._shape
    self._rows += 1
    self._bytes += pixels.size
    if not self._mixed and self._bytes <= _PIXEL_CACHE_LIMIT:
      self._file.write(np.ascontiguousarray(pixels).data)

  def finish(self) -> None:
    """Ends the file; removes it where it does not hold every row."""
    if self._mixed or self._bytes > _PIXEL_CACHE_LIMIT:
      self.close()
      self._path.unlink()
    else:
      self._file.seek(0)
      self._write_header()
      self.close()

  def close(self) -> None:
    self._file.close()


class _Table:
  """Gathers the columns of the index."""

  def __init__(self, class_count: int):
    self._class_count = class_count
    self._columns: dict[str, list] = {}
    self._ids: set[str] = set()

  def add(self, example: dict[str, Any], frame_count: int | None) -> None:
    row = {key: example[key] for key in _REQUIRED}
    row |= {key: example[key] for key in _OPTIONAL if key in example}
    for name, value in example.get('attributes', {}).items():
      row[ATTRIBUTE + name] = str(value)
    if frame_count is not None:
      row['frame_count'] = frame_count
    if not self._columns:
      self._columns = {key: [] for key in row}
    if row.keys() != self._columns.keys():
      raise ValueError(f'{row["id"]}: columns {list(row)} differ from before')
    if row['id'] in self._ids:
      raise ValueError(f'id {row["id"]!r} occurs twice')
    if not 0 <= row['label'] < self._class_count:
      raise ValueError(f'{row["id"]}: label {row["label"]}')
    if row['official_split'] not in OFFICIAL_SPLITS:
      raise ValueError(f'{row["id"]}: split {row["official_split"]!r}')
    self._ids.add(row['id'])
    for key, value in row.items():
      self._columns[key].append(value)

  def __len__(self) -> int:
    return len(self._ids)

  def arrays(self) -> dict[str, np.ndarray]:
    kinds = {'label': np.int32, 'frame_count': np.int32, 'votes': np.float32}
    return {
      key: np.array(values, kinds.get(key, np.str_))
      for key, values in self._columns.items()
    }


def _feature_spec(
  example: dict[str, Any], channels: int, class_names: tuple[str, ...]
) -> dict[str, Any]:
  """TFDS features of a set whose examples look like this one."""
  features = tensorflow_datasets().features
  picture = features.Image(shape=(None, None, channels))
  spec = {
    'id': features.Text(),
    'label': features.ClassLabel(names=list(class_names)),
    'official_split': features.Text(),
  }
  if 'frames' in example:
    spec['frames'] = features.Sequence(picture)
  else:
    spec['image'] = picture
  for column in ('subject', 'sequence'):
    if column in example:
      spec[column] = features.Text()
  if 'attributes' in example:
    names = sorted(example['attributes'])
    spec['attributes'] = features.FeaturesDict(
      {name: features.Text() for name in names}
    )
  if 'votes' in example:
    shape = (len(example['votes']),)
    spec['votes'] = features.Tensor(shape=shape, dtype=np.float32)
  return spec


class RecordWriter:
  """Turns a module's examples into TFDS records, the cache and the table."""

  def __init__(
    self,
    name: str,
    folder: pathlib.Path,
    class_names: tuple[str, ...],
    intake: Intake,
    skip_bad_rows: bool,
  ):
    self._name = name
    self._folder = folder
    self._class_names = class_names
    self._intake = intake
    self._skip_bad_rows = skip_bad_rows
    self._progress = _Progress(f'building {name}')
    self._channels: int | None = None
    self._content = hashlib.sha256()
    self.table = _Table(len(class_names))
    self.cache = _PixelCache(folder / 'pixels.npy')

  @property
  def content(self) -> str:
    """SHA-256 over ids, labels, splits, shapes and pixels, in order."""
    return self._content.hexdigest()

  def _prepare(self, example: dict[str, Any]) -> dict[str, Any]:
    """Enters one example everywhere; gives back its TFDS form."""
    clip = 'frames' in example
    pictures = list(example['frames']) if clip else [example['image']]
    if not pictures:
      raise ValueError(f'{example["id"]}: a clip without frames')
    arrays, encoded = zip(*map(_both_forms, pictures), strict=True)
    self._channels = self._channels or arrays[0].shape[-1]
    if any(array.shape[-1] != self._channels for array in arrays):
      raise ValueError(f'{example["id"]}: grey and colour images in one set')
    pixels = np.stack(arrays) if clip else arrays[0]
    self.table.add(example, len(arrays) if clip else None)
    self.cache.add(pixels)
    key = [example['id'], int(example['label']), example['official_split']]
    self._content.update(json.dumps([*key, *pixels.shape]).encode())
    self._content.update(np.ascontiguousarray(pixels).data)
    record = {
      key: example[key] for key in (*_REQUIRED, *_OPTIONAL) if key in example
    }
    if 'votes' in record:
      record['votes'] = np.asarray(record['votes'], np.float32)
    if 'attributes' in example:
      record['attributes'] = {
        name: str(value) for name, value in example['attributes'].items()
      }
    # TFDS passes on encoded files only; an array would call TensorFlow.
    files = [io.BytesIO(picture) for picture in encoded]
    return {**record, **({'frames': files} if clip else {'image': files[0]})}

  def _records(
    self, examples: Iterator[dict[str, Any]]
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    intake = self._intake
    for example in examples:
      # A build that has failed only reads on, to count all bad rows.
      if not intake.rejected or self._skip_bad_rows:
        yield len(self.table), self._prepare(example)
      self._progress.show(len(self.table), intake.expected)
    if intake.rejected and not self._skip_bad_rows:
      raise UserError(rejection(intake.rejected, intake.first_rejected))

  def write(self, examples: Iterator[dict[str, Any]], version: str) -> None:
    """Writes all examples.

    Raises:
      UserError: there is none, or one was bad and none may be skipped.
    """
    records = self._records(examples)
    first = next(records, None)
    if first is None:
      raise UserError(
        f'the source of {self._name} holds no usable example'
        + (f' ({self._intake.first_rejected})' if self._intake.rejected else '')
      )
    assert self._channels is not None
    spec = _feature_spec(first[1], self._channels, self._class_names)
    _write_records(
      self._name,
      version,
      spec,
      itertools.chain([first], records),
      self._folder / 'records',
    )
    self.cache.finish()
    self._progress.show(len(self.table), None, last=True)


def _write_records(
  name: str,
  version: str,
  spec: dict[str, Any],
  records: Iterator[tuple[int, dict[str, Any]]],
  folder: pathlib.Path,
) -> None:
  """Lets TFDS write (key, example) pairs as ArrayRecord, in their order."""
  tfds = tensorflow_datasets()
  failure: list[BaseException] = []

  def generate() -> Iterator[tuple[int, dict[str, Any]]]:
    # TFDS may rewrap what a generator raises; the original is kept for us.
    try:
      yield from records
    except BaseException as error:
      failure.append(error)
      raise

  class Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self):
      """Does nothing: TFDS would ask its servers for a set of this name, where
      it may, and leave an empty folder among the temporary ones."""

  # TFDS' own AdhocBuilder would do, but it imports TensorFlow.
  class Records(  # pyright: ignore[reportGeneralTypeIssues]
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # pyright: ignore[reportCallIssue]
  ):
    VERSION = tfds.core.Version(version)

    def _info(self):
      return Info(
        builder=self,
        description=name,
        features=tfds.features.FeaturesDict(spec),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return {RECORD_SPLIT: generate()}

    def _generate_examples(self):
      raise NotImplementedError  # abstract in TFDS; `generate` is used

  Records.name = name
  builder = Records(data_dir=folder, file_format='array_record')
  tfds.disable_progress_bar()
  try:
    # TFDS prints its own account on stdout.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare()
  except Exception:
    if failure:
      raise failure[0] from None
    raise
  finally:
    tfds.enable_progress_bar()
  # TFDS leaves an empty folder for downloads.
  shutil.rmtree(folder / 'downloads', ignore_errors=True)


def rejection(count: int, first: str) -> str:
  if count == 1:
    return f'{first}; --skip_bad_rows leaves such rows out'
  return f'{first}; {count:,} bad rows in all; --skip_bad_rows leaves them out'
