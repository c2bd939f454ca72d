"""What the user downloaded: a file, a folder or an archive, read as members.

Nothing is ever extracted by name. A zip and a plain tar are read in place; a
compressed tar, or a single gzipped file, is unpacked once into an unnamed
temporary file, so that its members can be read in any order and disk rather
than memory pays for it.
"""

import bz2
import contextlib
import gzip
import hashlib
import io
import lzma
import os
import pathlib
import shutil
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from fer_jax.errors import UserError

# An archive that unpacks to more than this, at more than this ratio, is no
# data set. (A csv packs 3 to 1; pictures hardly at all; blank ones far more.)
MAX_UNPACKED_BYTES = 256 << 30
_SUSPECT_BYTES = 1 << 30
_SUSPECT_RATIO = 200
# Members of one archive; the largest face sets have half of it.
MAX_MEMBERS = 1 << 20
# The longest extended header of a tar: it holds a name.
_LONGEST_HEADER = 1 << 16
# What a zip says of where it was made. Some programs there separate folders by
# backslashes, which no name has there.
_WINDOWS = 0
_CHUNK = 1 << 20
_COMPRESSIONS = {
  b'\x1f\x8b': gzip.open,
  b'BZh': bz2.open,
  b'\xfd7zXZ\x00': lzma.open,
}
_DAMAGE = (
  EOFError,
  OSError,
  RuntimeError,
  NotImplementedError,
  # Of an LZMA dictionary of gigabytes, which a few bytes can ask for.
  MemoryError,
  # Of a member's name, which a zip has twice.
  UnicodeDecodeError,
  tarfile.TarError,
  zipfile.BadZipFile,
  zlib.error,
  lzma.LZMAError,
)


def sha256_of(path: str | os.PathLike[str]) -> str:
  """SHA-256 of a file, in hexadecimal."""
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def composed(name: str) -> str:
  """A name whose accents are letters of their own (Unicode's form C).

  Some systems keep `ö` as `o` with two dots (form D): the same name to whoever
  reads it, and another one to a program.
  """
  return unicodedata.normalize('NFC', name)


def _is_litter(name: str) -> bool:
  """Files that systems and file managers leave, in no data set's layout."""
  parts = name.split('/')
  return any(
    part.startswith('.') or part == '__MACOSX' for part in parts
  ) or parts[-1].lower() in ('thumbs.db', 'desktop.ini')


def _check_text(path: pathlib.Path, name: str) -> None:
  """Refuses a name that no UTF-8 file, of ids for one, could hold."""
  if not name.isascii() and any('\ud800' <= c <= '\udfff' for c in name):
    raise UserError(f'{path}: the name {name!r} is not UTF-8; rename it')


def _check_name(archive: pathlib.Path, name: str) -> None:
  """Refuses a member that unpacking would write outside its folder."""
  parts = name.replace('\\', '/').split('/')
  drive = len(parts[0]) == 2 and parts[0].endswith(':')
  if '..' in parts or parts[0] == '' or drive or '\x00' in name:
    raise UserError(
      f'{archive}: member {name!r} would be written outside its folder; '
      'the archive is refused'
    )


class Source:
  """A file, a folder or an archive, open for reading by member.

  Use as a context manager. A single file is a source of one member, its own
  name.

  Attributes:
    path: as the user gave it.
    kind: 'file', 'folder', 'zip' or 'tar'.
    size: bytes of all members, unpacked.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    *,
    spool_dir: str | os.PathLike[str] | None = None,
  ):
    """Opens a source.

    Args:
      path: file, folder or archive.
      spool_dir: folder for the temporary file that a compressed tar needs.

    Raises:
      UserError: missing, empty, unreadable, damaged or refused.
    """
    self.path = pathlib.Path(path).expanduser()
    self._spool_dir = spool_dir
    self._stack = contextlib.ExitStack()
    self._sizes: dict[str, int] = {}
    self._openers: dict[str, Any] = {}
    self.kind = 'file'
    if not self.path.exists():
      raise UserError(f'{self.path}: no such file or folder')
    try:
      if self.path.is_dir():
        self.kind = 'folder'
        self._list_folder()
      elif self.path.is_file():
        self._list_file()
      else:
        raise UserError(f'{self.path} is neither a file nor a folder')
    except PermissionError as error:
      self.close()
      raise UserError(f'{error.filename or self.path}: not readable') from None
    except BaseException:
      self.close()
      raise
    if not self._sizes:
      self.close()
      raise UserError(f'{self.path}: an empty {self.kind}')
    self.size = sum(self._sizes.values())

  def __enter__(self) -> 'Source':
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def close(self) -> None:
    self._stack.close()

  @property
  def members(self) -> list[str]:
    """Sorted names with forward slashes, `composed`; system litter left out."""
    return sorted(self._sizes)

  def member_size(self, name: str) -> int:
    """Bytes of a member, unpacked."""
    return self._sizes[name]

  def label(self, name: str) -> str:
    """How a message calls a member."""
    return self.path.name if self.kind == 'file' else name

  def checksum(self) -> str:
    """SHA-256 of the file, or of a folder's sorted names and contents."""
    if self.kind != 'folder':
      return sha256_of(self.path)
    whole = hashlib.sha256()
    for name in self.members:
      with self.open(name) as file:
        content = hashlib.file_digest(file, 'sha256').hexdigest()
      whole.update(f'{content}  {name}\n'.encode())
    return whole.hexdigest()

  def describe(self) -> dict[str, Any]:
    """What a build records of its source."""
    return {'name': self.path.name, 'kind': self.kind, 'bytes': self.size}

  @contextlib.contextmanager
  def open(self, name: str) -> 'Iterator[io.BufferedReader[_Guarded]]':
    """A member's content as a buffered binary stream.

    Raises:
      UserError: damaged, encrypted or unreadable.
    """
    with self._damage_is_user_error(name):
      raw = self._openers[name]()
    with raw, io.BufferedReader(_Guarded(self, name, raw), _CHUNK) as stream:
      yield stream

  def read(self, name: str) -> bytes:
    """A member's whole content; see `open`."""
    with self._damage_is_user_error(name), self._openers[name]() as file:
      return file.read()

  @contextlib.contextmanager
  def _damage_is_user_error(self, name: str) -> Iterator[None]:
    try:
      yield
    except _DAMAGE as error:
      where = self.path / name if self.kind == 'folder' else self.path
      inside = f', member {name!r}' if self.kind in ('zip', 'tar') else ''
      raise UserError(f'{where}{inside}: cannot be read ({error})') from None

  def _list_folder(self) -> None:
    def unreadable(error: OSError) -> None:
      raise UserError(f'{error.filename}: cannot be read ({error.strerror})')

    seen: dict[str, pathlib.Path] = {}
    for name, subfolders, files in os.walk(
      self.path, onerror=unreadable, followlinks=True
    ):
      folder = pathlib.Path(name)
      earlier = seen.setdefault(os.path.realpath(folder), folder)
      if earlier in folder.parents:  # a link that would never end
        subfolders.clear()
        continue
      if earlier != folder:
        raise UserError(
          f'{folder} is {earlier} again, by a link; each folder once is '
          'expected'
        )
      subfolders[:] = [one for one in subfolders if not _is_litter(one)]
      for file in files:
        self._add_file(folder / file)

  def _add_file(self, path: pathlib.Path) -> None:
    name = path.relative_to(self.path).as_posix()
    if _is_litter(name):
      return
    if path.is_symlink() and not path.exists():
      raise UserError(
        f'{path}: a link to {os.readlink(path)}, which is not there'
      )
    if path.is_file():
      self._enter(name, path.stat().st_size, lambda: path.open('rb'))

  def _list_file(self) -> None:
    with self.path.open('rb') as file:
      head = file.read(512)
    if not head:
      raise UserError(f'{self.path}: an empty file')
    if head.startswith((b'PK\x03\x04', b'PK\x05\x06')):
      self.kind = 'zip'
      self._list_zip()
      return
    for magic, opener in _COMPRESSIONS.items():
      if head.startswith(magic):
        self._list_compressed(opener)
        return
    if head[257:262] == b'ustar':
      self._list_tar(self._stack.enter_context(self.path.open('rb')))
      return
    size = self.path.stat().st_size
    self._single(self.path.name, lambda: self.path.open('rb'), size)

  def _list_compressed(self, opener: Any) -> None:
    spool = self._unpack(opener)
    first = spool.read(512)
    spool.seek(0)
    if first[257:262] == b'ustar':
      self._list_tar(spool)
    else:
      size = _length(spool)
      self._single(self.path.stem, lambda: _Shared(spool, 0, size), size)

  def _single(self, name: str, opener: Any, size: int) -> None:
    self._sizes[name] = size
    self._openers[name] = opener

  def _add_member(self, name: str, size: int, opener: Any) -> None:
    if _is_litter(name):
      return
    if len(self._sizes) == MAX_MEMBERS:
      raise UserError(
        f'{self.path}: more than {MAX_MEMBERS:,} members; the archive is '
        'refused'
      )
    self._enter(name, size, opener)

  def _enter(self, name: str, size: int, opener: Any) -> None:
    _check_text(self.path, name)
    name = composed(name)
    if name in self._sizes:
      raise UserError(f'{self.path}: member {name!r} occurs twice')
    self._sizes[name] = size
    self._openers[name] = opener

  def _check_ratio(self, unpacked: int) -> None:
    packed = max(self.path.stat().st_size, 1)
    suspect = unpacked > _SUSPECT_BYTES and unpacked > packed * _SUSPECT_RATIO
    if suspect or unpacked > MAX_UNPACKED_BYTES:
      raise UserError(
        f'{self.path}: {packed:,} bytes unpack to {unpacked:,} or more; '
        'the archive is refused'
      )

  def _list_zip(self) -> None:
    try:
      archive = self._stack.enter_context(zipfile.ZipFile(self.path))
      entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
      raise UserError(f'{self.path}: a damaged zip file ({error})') from None
    for entry in entries:
      # `orig_filename` has what follows a null byte in the name.
      _check_name(self.path, entry.orig_filename)
      mode = entry.external_attr >> 16
      if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        self._refuse_link(entry.filename)
      name = entry.filename
      if entry.create_system == _WINDOWS:
        name = name.replace('\\', '/')
      if name.endswith('/'):
        continue
      if entry.flag_bits & 1:
        raise UserError(f'{self.path}: an encrypted zip file')
      self._add_member(
        name,
        entry.file_size,
        lambda entry=entry: archive.open(entry),
      )
    self._check_ratio(sum(self._sizes.values()))

  def _refuse_link(self, name: str) -> None:
    raise UserError(
      f'{self.path}: member {name!r} is a link or a device; the archive is '
      'refused'
    )

  def _list_tar(self, file: IO[bytes]) -> None:
    self.kind = 'tar'
    length = _length(file)
    try:
      # Uncompressed, so listing reads headers and nothing else.
      headers: Any = _Headers(file)
      # Any: of `members` and `offset` its stub knows nothing.
      archive: Any = tarfile.open(fileobj=headers, mode='r:')  # noqa: SIM115
      self._stack.enter_context(archive)
      for entry in archive:
        self._add_tar_member(entry, file, length)
        # Else it keeps a kilobyte of each.
        archive.members = []
      # A header that is none ends the list without a word.
      file.seek(archive.offset)
      end = file.read(tarfile.BLOCKSIZE)
      if len(end) < tarfile.BLOCKSIZE or end.strip(b'\x00'):
        raise tarfile.ReadError(f'no header at byte {archive.offset:,}')
    except UserError:
      raise
    # RecursionError: of headers that extend one another by the thousand.
    except (
      tarfile.TarError,
      EOFError,
      OSError,
      ValueError,
      RecursionError,
    ) as error:
      raise UserError(f'{self.path}: a damaged tar file ({error})') from None

  def _add_tar_member(
    self, entry: tarfile.TarInfo, file: IO[bytes], length: int
  ) -> None:
    _check_name(self.path, entry.name)
    if entry.isdir():
      return
    if not entry.isreg():
      self._refuse_link(entry.name)
    begin, size = entry.offset_data, entry.size
    if size < 0 or begin + size > length or entry.issparse():
      raise UserError(f'{self.path}: a cut tar file, at {entry.name!r}')
    self._add_member(
      entry.name.removeprefix('./'),
      size,
      lambda: _Shared(file, begin, size),
    )

  def _unpack(self, opener: Any) -> IO[bytes]:
    """The uncompressed content, in a temporary file without a name."""
    spool = tempfile.TemporaryFile(dir=self._spool_dir)  # noqa: SIM115
    self._stack.enter_context(spool)
    folder = self._spool_dir or tempfile.gettempdir()
    unpacked = 0
    with opener(self.path) as file:
      while True:
        with self._damage_is_user_error(self.path.name):
          chunk = file.read(_CHUNK)
        if not chunk:
          break
        unpacked += len(chunk)
        self._check_ratio(unpacked)
        if shutil.disk_usage(folder).free < 4 * _CHUNK:
          raise UserError(f'{folder}: no space left to unpack {self.path}')
        spool.write(chunk)
    spool.seek(0)
    return spool


def _length(file: IO[bytes]) -> int:
  here = file.tell()
  end = file.seek(0, os.SEEK_END)
  file.seek(here)
  return end


class _Headers:
  """A tar as `tarfile` lists it: its headers are short and lead onwards."""

  def __init__(self, file: IO[bytes]):
    self._file = file
    self._last = -1
    self.seek, self.tell = file.seek, file.tell

  def read(self, size: int) -> bytes:
    # A single byte is how `tarfile` sees whether there is more.
    if size > 1:
      if size > _LONGEST_HEADER:
        raise tarfile.ReadError(f'a header of {size:,} bytes')
      if self.tell() <= self._last:
        raise tarfile.ReadError(f'byte {self.tell():,} comes twice')
      self._last = self.tell()
    return self._file.read(size)


class _Shared(io.RawIOBase):
  """Part of a file that others read too; closing leaves the file open."""

  def __init__(self, file: IO[bytes], begin: int, size: int):
    super().__init__()
    self._file = file
    self._at = begin
    self._end = begin + size

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    self._file.seek(self._at)
    chunk = self._file.read(min(len(buffer), self._end - self._at))
    self._at += len(chunk)
    buffer[: len(chunk)] = chunk
    return len(chunk)

  def readall(self) -> bytes:
    self._file.seek(self._at)
    chunk = self._file.read(self._end - self._at)
    self._at += len(chunk)
    return chunk


class _Guarded(io.RawIOBase):
  """A member's stream whose damage is one clear line."""

  def __init__(self, source: Source, name: str, raw: IO[bytes]):
    super().__init__()
    self._source = source
    self._name = name
    self._raw = raw

  def readable(self) -> bool:
    return True

  def readinto(self, buffer: Any) -> int:
    with self._source._damage_is_user_error(self._name):
      chunk = self._raw.read(len(buffer))
    buffer[: len(chunk)] = chunk
    return len(chunk)
