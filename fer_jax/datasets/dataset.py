"""A built data set: how it is opened and read.

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

import dataclasses
import functools
import importlib
import math
import os
import pathlib
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fer_jax import files, forms
from fer_jax.datasets import pictures, sources
from fer_jax.datasets.registry import builder_module, official_counts_of
from fer_jax.errors import UserError

# TFDS keeps `all` for itself; one ordered split carries every row.
RECORD_SPLIT = 'examples'
# What the columns of the table that hold attributes begin with.
ATTRIBUTE = 'attribute.'
# What `each` has in memory at a time: of pictures of one size as many as fit;
# of others, each of which may be a photograph of 36 MB, so many, or frames of
# clips, which are smaller.
_BYTES_AT_ONCE = 1 << 26
_PICTURES_AT_ONCE = 32
_FRAMES_AT_ONCE = 512
# What dataset.json holds, whatever the version.
_METADATA = {
  'name': forms.text,
  'version': forms.text,
  'checksum': forms.text,
  'source': forms.optional({'name': forms.text}),
  'options': {'*': forms.anything},
  'class_names': [forms.text],
  'rows': forms.count,
  'shape': forms.optional([forms.count]),
  'skipped_rows': forms.count,
  'first_skipped': forms.text,
  'notes': {'*': forms.anything},
  'built': forms.text,
  'files': {
    'index.npz': {'bytes': forms.count, 'sha256': forms.text},
    '*': {'bytes': forms.count, 'sha256': forms.text},
  },
}
# The official splits a row may be of, in the order of tables.
OFFICIAL_SPLITS = ('train', 'validation', 'test', 'test_unsplit', 'none')


def tensorflow_datasets() -> types.ModuleType:
  """TFDS, imported late: half a second that most commands do not need."""
  return importlib.import_module('tensorflow_datasets')


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
      `subject`, `sequence`, `attribute.NAME` (text) and `votes` (float32,
      N x V).
    notes: facts from the builder, e.g. 'test_unsplit'.
    metadata: everything in dataset.json.
    rows: (N,) rows of the build behind those of the table, for a view of a
      part of it; None where the table is the whole build.
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
  rows: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.table['id'])

  def facts(self) -> dict[str, Any]:
    """What travels with every result: which examples it is of.

    `notes` has what the builder left out by rule, and how many.
    """
    return {
      'name': self.name,
      'version': self.version,
      'checksum': self.checksum,
      'options': self.options,
      'notes': self.notes,
      'skipped_rows': self.metadata['skipped_rows'],
      'examples': len(self),
    }

  @property
  def is_clips(self) -> bool:
    """Whether a row is a clip (T, H, W, C) rather than an image (H, W, C)."""
    return 'frame_count' in self.table

  @property
  def shape(self) -> tuple[int, ...] | None:
    """The one shape of all rows, or None where they differ."""
    shape = self.metadata['shape']
    return tuple(shape) if shape else None

  def build(self) -> 'Dataset':
    """The whole build that this is a view of, or the set itself."""
    return self if self.rows is None else open_build(self.root)

  @property
  def attributes(self) -> dict[str, np.ndarray]:
    """(N,) texts of every attribute, by its name."""
    return {
      column.removeprefix(ATTRIBUTE): values
      for column, values in self.table.items()
      if column.startswith(ATTRIBUTE)
    }

  def with_classes(self, class_names: Sequence[str]) -> 'Dataset':
    """The examples of some classes alone, labelled in the order given.

    Args:
      class_names: of this set, each once.

    Raises:
      UserError: a class that this set does not have or has no example of,
        fewer than two, or one given twice.
    """
    wanted = tuple(class_names)
    for name in wanted:
      if name not in self.class_names:
        parts = tuple(name.split(','))
        several = set(parts) <= set(self.class_names)
        raise UserError(
          f'{self.name} has no class {name!r}; it has '
          f'{", ".join(self.class_names)}'
          + (f'; several are a tuple, {parts}' if several else '')
        )
    if len(set(wanted)) < max(len(wanted), 2):
      raise UserError(
        f'classes {", ".join(wanted)}: at least two, each once, are expected'
      )
    new_label = np.full(len(self.class_names), -1, np.int32)
    for label, name in enumerate(wanted):
      new_label[self.class_names.index(name)] = label
    label = new_label[self.table['label']]
    kept = np.flatnonzero(label >= 0)
    table = {column: values[kept] for column, values in self.table.items()}
    table['label'] = label[kept]
    absent = [n for k, n in enumerate(wanted) if k not in table['label']]
    if absent:
      raise UserError(f'{self.name} has no example of {", ".join(absent)}')
    # Votes that are not by class could pass for such where classes are fewer.
    votes = table.pop('votes', None)
    if votes is not None and votes.shape[-1] == len(self.class_names):
      order = [self.class_names.index(name) for name in wanted]
      table['votes'] = votes[:, order]
    return dataclasses.replace(
      self,
      class_names=wanted,
      table=table,
      rows=kept if self.rows is None else self.rows[kept],
    )

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
    """What `counts` gives for the source as published; {} where not known.

    Of a view they are those of its classes.
    """
    module = builder_module(self.name)
    whole = self.metadata['class_names']
    columns = [whole.index(name) for name in self.class_names]
    published = {
      name: np.asarray(counts)[columns]
      for name, counts in official_counts_of(module, self.options).items()
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
      return list(self._pixels[self._stored(rows)])
    return self.read_records(rows)

  def each(
    self, index: Sequence[int] | np.ndarray | None = None
  ) -> Iterator[np.ndarray]:
    """As `read`, one after the other, few in memory at a time.

    Args:
      index: (n,) row numbers in the table; None for all of them.
    """
    rows = np.arange(len(self)) if index is None else np.asarray(index)
    if self.shape:
      step = _BYTES_AT_ONCE // math.prod(self.shape)
    elif self.is_clips:
      step = _FRAMES_AT_ONCE // int(self.table['frame_count'].max())
    else:
      step = _PICTURES_AT_ONCE
    step = max(step, 1)
    for start in range(0, len(rows), step):
      yield from self.read(rows[start : start + step])

  def _stored(self, rows: np.ndarray) -> np.ndarray:
    return rows if self.rows is None else self.rows[rows]

  def read_records(self, index: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """As `read`, always from the ArrayRecord files.

    Raises:
      UserError: they are damaged.
    """
    rows = [int(row) for row in self._stored(np.asarray(index, np.int64))]
    try:
      records = self._records.__getitems__(rows) if rows else []
      if self.is_clips:
        return [
          np.stack([pictures.decode(frame) for frame in record['frames']])
          for record in records
        ]
      return [pictures.decode(record['image']) for record in records]
    # Of ArrayRecord's checksums, and of what its damage leaves of a picture.
    except (RuntimeError, ValueError) as error:
      raise UserError(
        f'{self.root}/records is damaged ({error}); delete {self.root} and '
        'build again'
      ) from error

  def verify(self) -> None:
    """Compares every file of the build with its recorded SHA-256.

    Raises:
      UserError: a file is missing or differs.
    """
    for name, known in self.metadata['files'].items():
      path = self.root / name
      if not path.exists():
        wrong = 'is missing'
      elif sources.sha256_of(path) != known['sha256']:
        wrong = 'is damaged (its SHA-256 differs from the recorded one)'
      else:
        continue
      raise UserError(f'{path} {wrong}; delete {self.root} and build again')

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
    tfds = tensorflow_datasets()

    # Decoded by us: TFDS warns about a missing OpenCV otherwise.
    class Encoded(tfds.decode.SkipDecoding):
      def decode_batch_example_np(self, frames: Any) -> Any:
        return frames

    folder = self.root / 'records' / self.name / self.version
    if not os.path.isfile(folder / 'dataset_info.json'):
      raise ValueError(f'there is no {folder}/dataset_info.json')
    column = 'frames' if self.is_clips else 'image'
    return tfds.builder_from_directory(folder).as_data_source(
      split=RECORD_SPLIT, decoders={column: Encoded()}
    )


def read_metadata(root: pathlib.Path) -> dict[str, Any]:
  """What dataset.json says.

  Raises:
    UserError: it is damaged.
  """
  path = root / 'dataset.json'
  try:
    metadata = files.read_json(path)
    wrong = forms.misfit(metadata, _METADATA)
    if not wrong and any(map(_leads_outside, metadata['files'])):
      wrong = 'files are named outside the build'
    if not wrong and metadata['name'] != root.absolute().parent.name:
      wrong = (
        f'it is a build of {metadata["name"]!r}, in the folder of '
        f'{root.absolute().parent.name!r}'
      )
  except UserError as error:
    wrong = str(error)
  if wrong:
    raise UserError(
      f'{path} is damaged; delete {root} and build again: {wrong}'
    )
  return metadata


def _leads_outside(name: str) -> bool:
  place = pathlib.PurePath(name)
  return place.is_absolute() or '..' in place.parts


def open_build(root: pathlib.Path) -> Dataset:
  """Opens a build after checking that its files are there and whole.

  Raises:
    UserError: a file is missing, cut or changed.
  """
  metadata = read_metadata(root)
  rebuild = f'delete {root} and build again'
  written = metadata['files']
  for name, known in written.items():
    path = root / name
    # The cache is optional: without it the records are read.
    if name == 'pixels.npy':
      continue
    if not path.exists() or path.stat().st_size != known['bytes']:
      raise UserError(f'{path} is missing or cut; {rebuild}')
    # Records are large, and each checks itself when it is read. TFDS takes the
    # names of classes to import from the others.
    is_small = name == 'index.npz' or path.suffix == '.json'
    if is_small and sources.sha256_of(path) != known['sha256']:
      raise UserError(f'{path} is damaged; {rebuild}')
  index = root / 'index.npz'
  table = files.read_npz(index)
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
