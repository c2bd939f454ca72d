"""A data set on disk: how it is registered, built, found and read.

The contract of a builder module
--------------------------------

Each data set is one module of this package, entered in `_MODULES` below. The
module holds no input or output of its own: it turns a source into examples.
It must not import TensorFlow Datasets, and it offers

  CLASS_NAMES: tuple[str, ...]   in label order; or a function
                                 `class_names(options) -> tuple[str, ...]`
                                 where the options decide
  VERSION: str                   'MAJOR.MINOR.PATCH'; raised whenever the same
                                 source and options would give other examples
  DESCRIPTION: str               one line
  LICENCE: str                   one line: where it comes from, what it allows
  OPTIONS: dict[str, default]    all options with their defaults; a default is
                                 a number, string, bool or a tuple of them and
                                 fixes the option's type
  NEEDS_SOURCE: bool             False: the module makes its own examples
  check_options(options)         optional; raises UserError on a bad value
  OFFICIAL_COUNTS                optional; {split: (images per class, ...)}
  CSV_NAMES: tuple[str, ...]     optional; names of the source's own table

  examples(source, options, intake) -> iterator of example dicts

`source` is a `sources.Source`, or None where NEEDS_SOURCE is False. `options`
holds every option. `intake` takes what the module has to say beside the
examples: `intake.reject(where, why)` for a bad row (the row is simply not
yielded; whether that ends the build is decided here), `intake.expect(count)`
for the progress line, and `intake.notes`, a JSON-able dict kept as
`Dataset.notes`.

An example is a dict. All examples of a set have the same keys:

  id              str, stable and unique in the set, e.g. 'fer2013/00012'
  label           int, an index of the class names
  official_split  str: 'train', 'validation', 'test', 'test_unsplit' (a test
                  part that mixes validation and test rows), or 'none'
  image           uint8 array (H, W, C), C 1 or 3; or bytes of a PNG or JPEG
                  file, which are then stored as they came
  frames          instead of `image`, for a clip: uint8 array (T, H, W, C) or
                  a list of T frames, each as `image`; T may differ
  subject         optional str; the person
  sequence        optional str; the recording
  votes           optional float sequence (V,): annotators per category

Arrays are stored as PNG. Options and the source's checksum are in the path of
a build, so a build is never mistaken for another one.

A build on disk
---------------

  DATA_DIR/NAME/VERSION-KEY/
    dataset.json    what it is, and the sizes and SHA-256 of the other files;
                    written last inside the folder
    index.npz       the table, one array per column, no pickled objects
    pixels.npy      decoded images, where all have one shape: a cache of the
                    records, checked against its SHA-256 before its first use
    records/        what TensorFlow Datasets wrote (ArrayRecord)

It is made in a sibling folder `.building-KEY` and renamed when whole, under a
lock, so that an interrupted build is never read and the next one starts clean.
"""

import contextlib
import dataclasses
import datetime
import difflib
import errno
import fcntl
import functools
import hashlib
import importlib
import io
import itertools
import json
import os
import pathlib
import shutil
import sys
import time
import types
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

import numpy as np

from fer_jax.datasets import pictures, sources
from fer_jax.errors import UserError

_MODULES = {
  'fer2013': 'fer_jax.datasets.fer2013',
  'synthetic_faces': 'fer_jax.datasets.synthetic_faces',
}

# Raised when the layout of a build on disk changes.
_FORMAT = 1
# TFDS keeps `all` for itself; one ordered split carries every row.
_SPLIT = 'examples'
_PIXEL_CACHE_LIMIT = 2 << 30
# Below this much free space no build is begun at all.
_LEAST_FREE_BYTES = 64 << 20
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# The official splits a row may be of, in the order of tables.
OFFICIAL_SPLITS = ('train', 'validation', 'test', 'test_unsplit', 'none')
_REQUIRED = ('id', 'label', 'official_split')
_OPTIONAL = ('subject', 'sequence', 'votes')


def names() -> tuple[str, ...]:
  """Names of all data sets."""
  return tuple(_MODULES)


def default_data_dir() -> pathlib.Path:
  """Where builds live: FER_JAX_DATA, or fer_jax_data in the home folder."""
  named = os.environ.get('FER_JAX_DATA')
  return pathlib.Path(named) if named else pathlib.Path.home() / 'fer_jax_data'


def _nearest(word: str, known: Sequence[str]) -> str:
  near = difflib.get_close_matches(word, known, n=1)
  return f'; did you mean {near[0]!r}?' if near else ''


def builder_module(name: str) -> types.ModuleType:
  """The module that makes the examples of a data set.

  Raises:
    UserError: no such data set.
  """
  if name not in _MODULES:
    raise UserError(
      f'no data set {name!r}; there are {", ".join(_MODULES)}'
      f'{_nearest(name, list(_MODULES))}'
    )
  return importlib.import_module(_MODULES[name])


def _coerce(name: str, option: str, default: Any, value: Any) -> Any:
  """An option's value in the type of its default."""
  where = f'option {option!r} of {name}'
  if isinstance(default, tuple):
    if isinstance(value, str):
      value = [part for part in value.split(',') if part]
    if not isinstance(value, (list, tuple)):
      raise UserError(f'{where}: {value!r} is not a list')
    kind = default[0] if default else ''
    return tuple(_coerce(name, option, kind, part) for part in value)
  if isinstance(default, bool):
    words = {'true': True, 'false': False, '1': True, '0': False}
    found = words.get(str(value).lower())
    if found is None:
      raise UserError(f'{where}: {value!r} is neither true nor false')
    return found
  if isinstance(default, (int, float)):
    kind = type(default)
    try:
      number = float(value)
      if isinstance(value, bool) or not np.isfinite(number):
        raise ValueError
      if kind is int and number != int(number):
        raise ValueError
    except (TypeError, ValueError):
      what = 'a whole number' if kind is int else 'a number'
      raise UserError(f'{where}: {value!r} is not {what}') from None
    return (
      int(value)
      if isinstance(value, (int, str)) and kind is int
      else kind(number)
    )
  if not isinstance(value, str):
    raise UserError(f'{where}: {value!r} is not text')
  return value


def resolve_options(name: str, given: dict[str, Any]) -> dict[str, Any]:
  """All options of a data set: the given ones, typed, over the defaults.

  Args:
    name: data set.
    given: values as such or as text from a command line.

  Raises:
    UserError: unknown option or a value that it does not take.
  """
  module = builder_module(name)
  allowed = module.OPTIONS
  options = dict(allowed)
  for option, value in given.items():
    if option not in allowed:
      offer = f'it takes {", ".join(allowed)}' if allowed else 'it takes none'
      raise UserError(
        f'{name} has no option {option!r}; {offer}'
        f'{_nearest(option, list(allowed))}'
      )
    options[option] = _coerce(name, option, allowed[option], value)
  if hasattr(module, 'check_options'):
    module.check_options(options)
  return options


def _class_names(module: types.ModuleType, options: dict) -> tuple[str, ...]:
  if hasattr(module, 'class_names'):
    return tuple(module.class_names(options))
  return tuple(module.CLASS_NAMES)


class Intake:
  """What a builder module reports while it yields examples.

  Attributes:
    notes: JSON-able facts kept with the set.
    rejected: number of bad rows so far.
    first_rejected: what was wrong with the first of them.
    expected: number of rows to come, where known.
    read: number of rows seen, good or bad, where the module counts them.
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


@dataclasses.dataclass(eq=False)
class Dataset:
  """A built data set: a table in memory, images on disk.

  Attributes:
    name: which data set.
    version: of its builder.
    checksum: SHA-256 of the source; of the content where there is no source.
    class_names: in label order.
    root: folder of the build.
    options: all builder options.
    table: columns of N rows: `id` (text), `label` (int32), `official_split`
      (text), for clips `frame_count` (int32), and where the source has them
      `subject`, `sequence` (text) and `votes` (float32, N x V).
    notes: facts from the builder, e.g. 'test_unsplit'.
    metadata: everything in dataset.json.
  """

  name: str
  version: str
  checksum: str
  class_names: tuple[str, ...]
  root: pathlib.Path
  options: dict[str, Any]
  table: dict[str, np.ndarray]
  notes: dict[str, Any]
  metadata: dict[str, Any]

  def __len__(self) -> int:
    return len(self.table['id'])

  @property
  def is_clips(self) -> bool:
    """Whether a row is a clip (T, H, W, C) rather than an image (H, W, C)."""
    return 'frame_count' in self.table

  @property
  def shape(self) -> tuple[int, ...] | None:
    """The one shape of all rows, or None where they differ."""
    shape = self.metadata['shape']
    return tuple(shape) if shape else None

  @property
  def test_is_unsplit(self) -> bool:
    """Whether validation and test rows are mixed, so none may select."""
    return bool(np.any(self.table['official_split'] == 'test_unsplit'))

  def counts(self) -> dict[str, np.ndarray]:
    """Rows per class, (K,) int64, of every official split that has any."""
    split, label = self.table['official_split'], self.table['label']
    return {
      name: np.bincount(label[split == name], minlength=len(self.class_names))
      for name in OFFICIAL_SPLITS
      if np.any(split == name)
    }

  def official_counts(self) -> dict[str, np.ndarray]:
    """What `counts` gives for the source as published; {} where not known."""
    module = builder_module(self.name)
    published = {
      name: np.asarray(counts)
      for name, counts in getattr(module, 'OFFICIAL_COUNTS', {}).items()
    }
    if published and self.test_is_unsplit:
      mixed = published.pop('validation') + published.pop('test')
      published['test_unsplit'] = mixed
    return published

  def read(self, index: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Images or clips of some rows, as stored.

    Args:
      index: (n,) row numbers in the table.

    Returns:
      n uint8 arrays, (H, W, C) or (T, H, W, C).

    Raises:
      IndexError: a row number outside the set.
    """
    rows = np.asarray(index, np.int64).reshape(-1)
    if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
      raise IndexError(f'{self.name} has rows 0 to {len(self) - 1}')
    if self._pixels is not None:
      return list(self._pixels[rows])
    return self.read_records(rows)

  def read_records(self, index: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """As `read`, always from the ArrayRecord files."""
    rows = [int(row) for row in index]
    records = self._records.__getitems__(rows) if rows else []
    if self.is_clips:
      return [
        np.stack([pictures.decode(frame) for frame in record['frames']])
        for record in records
      ]
    return [pictures.decode(record['image']) for record in records]

  def verify(self) -> None:
    """Compares every file of the build with its recorded SHA-256.

    Raises:
      UserError: a file differs.
    """
    for name, known in self.metadata['files'].items():
      if sources.sha256_of(self.root / name) != known['sha256']:
        raise UserError(
          f'{self.root / name} is damaged (its SHA-256 differs from the '
          f'recorded one); delete {self.root} and build again'
        )

  @functools.cached_property
  def _pixels(self) -> np.ndarray | None:
    """The decoded cache, mapped into memory, or None."""
    known = self.metadata['files'].get('pixels.npy')
    if known is None:
      return None
    path = self.root / 'pixels.npy'
    if (
      not path.exists()
      or path.stat().st_size != known['bytes']
      or sources.sha256_of(path) != known['sha256']
    ):
      print(
        f'{path} is damaged; reading the records instead, which is slower',
        file=sys.stderr,
      )
      return None
    return np.load(path, mmap_mode='r', allow_pickle=False)

  @functools.cached_property
  def _records(self) -> Any:
    """TFDS data source whose images stay encoded."""
    tfds = _tfds()

    # Decoded by us: TFDS warns about a missing OpenCV otherwise.
    class Encoded(tfds.decode.SkipDecoding):
      def decode_batch_example_np(self, frames: Any) -> Any:
        return frames

    folder = self.root / 'records' / self.name / self.version
    column = 'frames' if self.is_clips else 'image'
    return tfds.builder_from_directory(folder).as_data_source(
      split=_SPLIT, decoders={column: Encoded()}
    )


def _tfds() -> types.ModuleType:
  # Imported late: it takes half a second that most commands do not need.
  import tensorflow_datasets

  return tensorflow_datasets


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
  features = _tfds().features
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
  if 'votes' in example:
    shape = (len(example['votes']),)
    spec['votes'] = features.Tensor(shape=shape, dtype=np.float32)
  return spec


class _Writer:
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
      raise UserError(_rejection(intake.rejected, intake.first_rejected))

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
  tfds = _tfds()
  failure: list[BaseException] = []

  def generate() -> Iterator[tuple[int, dict[str, Any]]]:
    # TFDS may rewrap what a generator raises; the original is kept for us.
    try:
      yield from records
    except BaseException as error:
      failure.append(error)
      raise

  # TFDS' own AdhocBuilder would do, but it imports TensorFlow.
  class Records(  # pyright: ignore[reportGeneralTypeIssues]
    tfds.core.GeneratorBasedBuilder,
    skip_registration=True,  # pyright: ignore[reportCallIssue]
  ):
    VERSION = tfds.core.Version(version)

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        description=name,
        features=tfds.features.FeaturesDict(spec),
        disable_shuffling=True,
      )

    def _split_generators(self, dl_manager):
      del dl_manager
      return {_SPLIT: generate()}

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


def _rejection(count: int, first: str) -> str:
  if count == 1:
    return f'{first}; --skip_bad_rows leaves such rows out'
  return f'{first}; {count:,} bad rows in all; --skip_bad_rows leaves them out'


def _key(checksum: str, options: dict[str, Any]) -> str:
  """What tells builds of one version apart, for the path."""
  text = json.dumps([_FORMAT, checksum, options], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _plain(options: dict[str, Any]) -> dict[str, Any]:
  """Options as they look after a round trip through JSON."""
  return json.loads(json.dumps(options))


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """One build at a time in a folder; the lock ends with its process."""
  with (folder / '.lock').open('w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      print(f'waiting for another build in {folder}', file=sys.stderr)
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _check_free_space(folder: pathlib.Path, needed: int) -> None:
  free = shutil.disk_usage(folder).free
  needed = max(needed, _LEAST_FREE_BYTES)
  if free < needed:
    raise UserError(
      f'{folder}: {free / 1e6:,.0f} MB free, the build needs about '
      f'{needed / 1e6:,.0f} MB'
    )


def _no_space(folder: pathlib.Path) -> str:
  return f'no space left in {folder}; nothing was kept of this build'


def _files(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
  """Size and SHA-256 of every file of a build."""
  return {
    str(path.relative_to(folder)): {
      'bytes': path.stat().st_size,
      'sha256': sources.sha256_of(path),
    }
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def _fill(
  folder: pathlib.Path,
  name: str,
  source: sources.Source | None,
  checksum: str,
  options: dict[str, Any],
  skip_bad_rows: bool,
) -> None:
  """Makes a whole build inside a folder."""
  module = builder_module(name)
  class_names = _class_names(module, options)
  intake = Intake()
  writer = _Writer(name, folder, class_names, intake, skip_bad_rows)
  try:
    writer.write(module.examples(source, options, intake), module.VERSION)
  finally:
    writer.cache.close()
  table = writer.table.arrays()
  np.savez(folder / 'index.npz', allow_pickle=False, **table)
  if source is not None and source.checksum() != checksum:
    raise UserError(f'{source.path} changed while it was read; build again')
  metadata = {
    'format': _FORMAT,
    'name': name,
    'version': module.VERSION,
    'checksum': checksum if source is not None else writer.content,
    'content': writer.content,
    'source': None if source is None else source.describe(),
    'options': _plain(options),
    'class_names': list(class_names),
    'rows': len(table['id']),
    'shape': writer.cache.shape,
    'skipped_rows': intake.rejected,
    'first_skipped': intake.first_rejected,
    'notes': intake.notes,
    'built': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'tensorflow_datasets': _tfds().__version__,
    'files': _files(folder),
  }
  text = json.dumps(metadata, indent=2) + '\n'
  (folder / 'dataset.json').write_text(text)


def build(
  name: str,
  *,
  data_dir: str | os.PathLike[str],
  source: str | os.PathLike[str] | None = None,
  skip_bad_rows: bool = False,
  **options: Any,
) -> Dataset:
  """Builds a data set, or finds the whole build of the same source.

  Args:
    name: data set.
    data_dir: folder of all builds.
    source: what the user downloaded; None for a set that makes itself.
    skip_bad_rows: leave bad rows out, and count them, rather than fail.
    **options: of the builder; see its OPTIONS.

  Raises:
    UserError: unknown name or option, an unusable source, no space.
  """
  module = builder_module(name)
  resolved = resolve_options(name, options)
  if module.NEEDS_SOURCE and source is None:
    raise UserError(f'{name} is built from a source; give its path (--source)')
  if not module.NEEDS_SOURCE and source is not None:
    raise UserError(f'{name} makes itself; it takes no source')
  parent = pathlib.Path(data_dir).expanduser() / name
  try:
    parent.mkdir(parents=True, exist_ok=True)
    with _locked(parent), contextlib.ExitStack() as stack:
      opened = None
      if source is not None:
        opened = stack.enter_context(sources.Source(source, spool_dir=parent))
      return _build_locked(name, parent, opened, resolved, skip_bad_rows)
  except OSError as error:
    if error.errno in _FULL_DISK:
      raise UserError(_no_space(parent)) from error
    if isinstance(error, (PermissionError, NotADirectoryError)):
      raise UserError(f'{error.filename}: {error.strerror}') from error
    if isinstance(error, FileExistsError):
      raise UserError(f'{error.filename} is not a folder') from error
    raise


def _build_locked(
  name: str,
  parent: pathlib.Path,
  source: sources.Source | None,
  options: dict[str, Any],
  skip_bad_rows: bool,
) -> Dataset:
  for stale in parent.glob('.building-*'):
    print(f'removing an interrupted build: {stale}', file=sys.stderr)
    shutil.rmtree(stale)
  module = builder_module(name)
  checksum = source.checksum() if source is not None else ''
  key = _key(checksum, _plain(options))
  root = parent / f'{module.VERSION}-{key}'
  if (root / 'dataset.json').exists():
    dataset = _open(root)
    skipped = dataset.metadata['skipped_rows']
    if skipped and not skip_bad_rows:
      raise UserError(
        _rejection(skipped, dataset.metadata['first_skipped'])
        + f' (as it did in the build at {root})'
      )
    return dataset
  if root.exists():
    raise UserError(f'{root} is not a build of this program; move it away')
  _check_free_space(parent, source.size if source is not None else 0)
  work = parent / f'.building-{key}'
  work.mkdir()
  try:
    _fill(work, name, source, checksum, options, skip_bad_rows)
    work.rename(root)
  except UserError:
    raise
  except Exception as error:
    # The C++ writer below TFDS gives a full disk as text alone.
    if any(os.strerror(number) in str(error) for number in _FULL_DISK):
      raise UserError(_no_space(parent)) from error
    raise
  finally:
    shutil.rmtree(work, ignore_errors=True)
  return _open(root)


def _metadata(root: pathlib.Path) -> dict[str, Any]:
  """What dataset.json says.

  Raises:
    UserError: it is damaged.
  """
  try:
    metadata = json.loads((root / 'dataset.json').read_text())
    # All that is asked of it before the set is opened.
    for key in ('version', 'checksum', 'options', 'files', 'built', 'rows'):
      metadata[key]
  except (ValueError, KeyError, TypeError):
    raise UserError(
      f'{root}/dataset.json is damaged; delete {root} and build again'
    ) from None
  return metadata


def _open(root: pathlib.Path) -> Dataset:
  """Opens a build after checking that its files are there and whole.

  Raises:
    UserError: a file is missing, cut or changed.
  """
  metadata = _metadata(root)
  rebuild = f'delete {root} and build again'
  files = metadata['files']
  for name, known in files.items():
    path = root / name
    # The cache is optional: without it the records are read.
    if name == 'pixels.npy':
      continue
    if not path.exists() or path.stat().st_size != known['bytes']:
      raise UserError(f'{path} is missing or cut; {rebuild}')
  index = root / 'index.npz'
  if sources.sha256_of(index) != files['index.npz']['sha256']:
    raise UserError(f'{index} is damaged; {rebuild}')
  with np.load(index, allow_pickle=False) as arrays:
    table = {column: arrays[column] for column in arrays.files}
  return Dataset(
    name=metadata['name'],
    version=metadata['version'],
    checksum=metadata['checksum'],
    class_names=tuple(metadata['class_names']),
    root=root,
    options=metadata['options'],
    table=table,
    notes=metadata['notes'],
    metadata=metadata,
  )


def builds(
  name: str, *, data_dir: str | os.PathLike[str]
) -> list[tuple[pathlib.Path, dict[str, Any]]]:
  """Folder and metadata of every build of a data set, oldest first.

  Builds of any version and of any options; nothing but dataset.json is read.

  Raises:
    UserError: unknown name, or a damaged dataset.json.
  """
  builder_module(name)
  parent = pathlib.Path(data_dir).expanduser() / name
  # A folder that starts with a dot is a build under way.
  found = [
    (marker.parent, _metadata(marker.parent))
    for marker in sorted(parent.glob('[!.]*/dataset.json'))
  ]
  return sorted(found, key=lambda build: build[1]['built'])


def load(
  name: str,
  *,
  data_dir: str | os.PathLike[str],
  checksum: str | None = None,
  **options: Any,
) -> Dataset:
  """Opens a built data set; one that makes itself is built where absent.

  Args:
    name: data set.
    data_dir: folder of all builds.
    checksum: first characters of the source's SHA-256; needed only where
      builds of several sources stand side by side.
    **options: of the builder, as the build was given them.

  Raises:
    UserError: no such build, more than one, or a damaged one.
  """
  module = builder_module(name)
  resolved = resolve_options(name, options)
  if not module.NEEDS_SOURCE:
    return build(name, data_dir=data_dir, **options)
  everything = builds(name, data_dir=data_dir)
  found = [
    (root, metadata)
    for root, metadata in everything
    if metadata['version'] == module.VERSION
    and metadata['options'] == _plain(resolved)
    and metadata['checksum'].startswith(checksum or '')
  ]
  if not found:
    extra = ''.join(
      f' --option={key}={value}' for key, value in options.items()
    )
    other = (
      f' ({len(everything)} there with another version, source or options)'
      if everything
      else ''
    )
    raise UserError(
      f'no build of {name} in {data_dir}{other}; make one with: python -m '
      f'fer_jax data build --dataset={name} --source=PATH '
      f'--data_dir={data_dir}{extra}'
    )
  if len(found) > 1:
    offers = ', '.join(
      f'{metadata["checksum"][:12]} from {metadata["source"]["name"]}'
      for _, metadata in found
    )
    raise UserError(
      f'{data_dir} holds {len(found)} builds of {name} ({offers}); name one by '
      'its checksum, or delete the others'
    )
  return _open(found[0][0])
