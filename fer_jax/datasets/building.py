"""Building a data set, and finding the builds there are."""

import contextlib
import datetime
import errno
import hashlib
import json
import os
import pathlib
import shlex
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from fer_jax import files
from fer_jax.datasets import sources
from fer_jax.datasets.dataset import (
  Dataset,
  open_build,
  read_metadata,
  tensorflow_datasets,
)
from fer_jax.datasets.records import Intake, RecordWriter, rejection
from fer_jax.datasets.registry import (
  builder_module,
  class_names_of,
  resolve_options,
)
from fer_jax.errors import UserError

# Raised when the layout of a build on disk changes.
_FORMAT = 1
# Below this much free space no build is begun at all.
_LEAST_FREE_BYTES = 64 << 20
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def _key(checksum: str, options: dict[str, Any]) -> str:
  """What tells builds of one version apart, for the path."""
  text = json.dumps([_FORMAT, checksum, options], sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def _root(
  parent: pathlib.Path, module: Any, checksum: str, options: dict[str, Any]
) -> pathlib.Path:
  """Folder of the build of a source with some options."""
  return parent / f'{module.VERSION}-{_key(checksum, _plain(options))}'


def _on_command_line(value: Any) -> str:
  return ','.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _plain(options: dict[str, Any]) -> dict[str, Any]:
  """Options as they look after a round trip through JSON."""
  return json.loads(json.dumps(options))


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """One build at a time in a folder; the lock ends with its process."""
  with (folder / '.lock').open('w') as lock:
    if not files.taken(lock):
      print(f'waiting for another build in {folder}', file=sys.stderr)
      files.taken(lock, wait=True)
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
  class_names = class_names_of(module, options, source)
  intake = Intake()
  writer = RecordWriter(name, folder, class_names, intake, skip_bad_rows)
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
    'tensorflow_datasets': tensorflow_datasets().__version__,
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
  if not module.NEEDS_SOURCE:
    root = _root(parent, module, '', resolved)
    # Without the lock, which takes the right to write.
    if (root / 'dataset.json').exists():
      return open_build(root)
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
  root = _root(parent, module, checksum, options)
  if (root / 'dataset.json').exists():
    dataset = open_build(root)
    skipped = dataset.metadata['skipped_rows']
    if skipped and not skip_bad_rows:
      raise UserError(
        rejection(skipped, dataset.metadata['first_skipped'])
        + f' (as it did in the build at {root})'
      )
    return dataset
  if root.exists():
    raise UserError(f'{root} is not a build of this program; move it away')
  _check_free_space(parent, source.size if source is not None else 0)
  work = parent / f'.building-{root.name.rpartition("-")[2]}'
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
  return open_build(root)


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
    (marker.parent, read_metadata(marker.parent))
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
    checksum: first characters of the source's SHA-256, or of the content's of
      a set that makes itself; needed only where builds of several sources
      stand side by side.
    **options: of the builder, as the build was given them.

  Raises:
    UserError: no such build, more than one, or a damaged one.
  """
  module = builder_module(name)
  resolved = resolve_options(name, options)
  if not module.NEEDS_SOURCE:
    made = build(name, data_dir=data_dir, **options)
    if not made.checksum.startswith(checksum or ''):
      raise UserError(
        f'{name} makes itself; with these options its checksum is '
        f'{made.checksum[:12]}, not {checksum}'
      )
    return made
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
      f' --option={key}={shlex.quote(_on_command_line(resolved[key]))}'
      for key in options
      if resolved[key] != module.OPTIONS[key]
    )
    other = (
      f' ({len(everything)} there with another version, source or options, '
      'which data list names)'
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
  return open_build(found[0][0])
