"""JSON, text and array files: written whole or not at all, read with care."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import lzma
import math
import os
import pathlib
import resource
import secrets
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

import numpy as np

from fer_jax import forms
from fer_jax.errors import UserError

# An .npz that unpacks to more than this, at more than this ratio, is a bomb.
_SUSPECT_BYTES = 1 << 28
_SUSPECT_RATIO = 20
# Nothing that we read as JSON is near this size.
MOST_JSON_BYTES = 1 << 26
_DEEPEST = 64
# Files that checkpoints, data and programs open meanwhile.
_SPARE = 128


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes a file through a temporary one beside it and a rename."""
  path = pathlib.Path(path)
  with _beside(path, content) as temporary:
    os.replace(temporary, path)


def probe(path: pathlib.Path, size: int = 1) -> None:
  """Makes a file of `size` bytes beside a path, and removes it.

  The bytes are drawn: a disk that compresses must have the room as well.

  Raises:
    OSError: the disk, the folder or a limit does not let it.
  """
  with _beside(pathlib.Path(path), secrets.token_bytes(size)):
    pass


@contextlib.contextmanager
def _beside(path: pathlib.Path, content: bytes) -> Iterator[pathlib.Path]:
  """A temporary file beside another, gone afterwards unless it was renamed."""
  # Not of `tempfile`, whose files nobody else may read. Drawn, for machines
  # that share a folder have processes of the same number.
  temporary = path.with_name(f'.{path.name}.{secrets.randbits(63)}')
  try:
    with temporary.open('wb') as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    yield temporary
  except OSError as error:
    if error.errno:
      error.filename = str(path)  # a full disk names no file
    raise
  finally:
    # On a disk that cannot be written, not even what is not there.
    with contextlib.suppress(OSError):
      temporary.unlink()


def taken(file: IO[str], *, wait: bool = False) -> bool:
  """Takes the lock of a file; False where somebody else has it.

  Args:
    file: open for writing, without which NFS gives no such lock.
    wait: for who has it.

  Raises:
    UserError: its disk has no locks.
  """
  try:
    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
  except OSError as error:
    # The second is what some network shares say.
    if not wait and isinstance(error, BlockingIOError | PermissionError):
      return False
    raise UserError(
      f'cannot lock {file.name}: {error.strerror}; expected a disk with locks, '
      'as NFS from version 4 is'
    ) from error
  return True


def remove_temporaries(folder: pathlib.Path) -> None:
  """Removes what writers of files in a folder left when they were killed."""
  for path in pathlib.Path(folder).glob('.*.*'):
    if path.suffix[1:].isdigit() and path.is_file():
      path.unlink(missing_ok=True)


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes UTF-8 text, whole or not at all."""
  write_bytes(path, text.encode('utf-8'))


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes indented JSON, whole or not at all."""
  write_text(path, json.dumps(value, indent=2, sort_keys=False) + '\n')


def append_line(path: pathlib.Path, line: str) -> None:
  """Appends a line by one write, under the file's lock.

  What a write that was interrupted left does not swallow it.

  Raises:
    OSError: it cannot be written as a whole.
  """
  handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
  try:
    # Another's line under way would look like one that was cut off.
    fcntl.flock(handle, fcntl.LOCK_EX)
    content = line.encode() + b'\n'
    size = os.fstat(handle).st_size
    if size and os.pread(handle, 1, size - 1) != b'\n':
      content = b'\n' + content
    if os.write(handle, content) != len(content):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  finally:
    os.close(handle)


def read_json_lines(path: pathlib.Path, form: forms.Form) -> list[Any]:
  """The lines of a file that are JSON of a form; [] where there is no file.

  Lines that are torn or damaged are left out.
  """
  if not path.exists():
    return []
  lines = path.read_text(errors='replace').splitlines()
  values = []
  for line in lines:
    with contextlib.suppress(ValueError, RecursionError):
      values.append(json.loads(line))
  return [value for value in values if not forms.misfit(value, form)]


def allow_open(count: int) -> None:
  """Lets this process have so many more files open at a time.

  Systems allow 1,024 unless asked; three for each of many runs are more.

  Raises:
    UserError: the system allows fewer.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  needed = len(os.listdir('/dev/fd')) + count + _SPARE
  if soft == resource.RLIM_INFINITY or soft >= needed:
    return
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
  except (OSError, ValueError) as error:
    raise UserError(
      f'{needed:,} files have to be open at a time, and the system allows '
      f'{hard:,}; a higher limit (ulimit -Hn) or fewer runs side by side help'
    ) from error


def require_writable(path: str | None, flag: str = '--json') -> None:
  """Checks a flag's file before the work whose result it is to hold.

  Permissions do not tell: root passes over them, and disks are read-only or
  full. So a file is made beside it.

  Raises:
    UserError: it has no folder, is one, or cannot be written.
  """
  if not path:
    return
  if not pathlib.Path(path).parent.is_dir():
    raise UserError(f'cannot write {flag} {path}: no such folder')
  if pathlib.Path(path).is_dir():
    raise UserError(f'cannot write {flag} {path}: it is a folder')
  with writing(f'{flag} {path}'):
    probe(pathlib.Path(path))


def write_result(path: str | None, value: Any, flag: str = '--json') -> None:
  """Writes a flag's file as JSON; nothing where the flag names none.

  Raises:
    UserError: it cannot be written.
  """
  if path:
    with writing(f'{flag} {path}'):
      write_json(pathlib.Path(path), value)


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
  """Makes a failure to write the user's to know: 'cannot write WHAT: why'."""
  try:
    yield
  except OSError as error:
    raise UserError(f'cannot write {what}: {error.strerror}') from error


def read_json(path: pathlib.Path) -> Any:
  """Reads JSON.

  Raises:
    UserError: naming the file, where it is missing, huge or not JSON.
  """
  try:
    with pathlib.Path(path).open('rb') as f:
      content = f.read(MOST_JSON_BYTES + 1)
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  if len(content) > MOST_JSON_BYTES:
    raise UserError(
      f'{path} is not JSON of ours: over {MOST_JSON_BYTES:,} bytes'
    )
  return parse_json(content, str(path))


def parse_json(content: bytes | str, where: str) -> Any:
  """JSON from text.

  Raises:
    UserError: that `where` is not JSON.
  """
  try:
    text = content.decode('utf-8') if isinstance(content, bytes) else content
    value = json.loads(text)
    if _is_deep(value):
      raise RecursionError
  except ValueError as error:
    raise UserError(f'{where} is not JSON: {error}') from error
  except RecursionError:
    raise UserError(
      f'{where} is not JSON of ours: nested deeper than {_DEEPEST}'
    ) from None
  return value


def _is_deep(value: Any) -> bool:
  """Whether functions that call themselves on its parts may not end."""
  level = [value]
  for _ in range(_DEEPEST):
    level = [
      part
      for whole in level
      if isinstance(whole, dict | list)
      for part in (whole.values() if isinstance(whole, dict) else whole)
    ]
    if not level:
      return False
  return True


def read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of an .npz by name; nothing is unpickled.

  Raises:
    UserError: naming the file, where it is missing, damaged, or unpacks to far
      more than it is.
  """
  path = pathlib.Path(path)
  try:
    with zipfile.ZipFile(path) as archive:
      entries = archive.infolist()
      unpacked = sum(entry.file_size for entry in entries)
      packed = path.stat().st_size
      if unpacked > max(_SUSPECT_BYTES, _SUSPECT_RATIO * packed):
        raise ValueError(f'{packed:,} bytes unpack to {unpacked:,}')
      return {
        entry.filename.removesuffix('.npy'): _array(archive.read(entry))
        for entry in entries
      }
  except (FileNotFoundError, PermissionError) as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  # RuntimeError: encrypted; NotImplementedError, which is one: of a
  # compression that is not known. The last three: a header that is no literal.
  except (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    SyntaxError,
    TypeError,
    tokenize.TokenError,
  ) as error:
    raise UserError(f'{path} is damaged ({error})') from error


def _array(content: bytes) -> np.ndarray:
  """The array of an .npy file that holds just what its header says.

  Raises:
    ValueError: it does not, or holds objects.
  """
  stream = io.BytesIO(content)
  version = np.lib.format.read_magic(stream)
  read_header = (
    np.lib.format.read_array_header_1_0
    if version == (1, 0)
    else np.lib.format.read_array_header_2_0
  )
  shape, fortran_order, dtype = read_header(stream)
  if dtype.hasobject:
    raise ValueError('an array of objects, which would have to be unpickled')
  at = stream.tell()
  # In Python's whole numbers, which do not overflow.
  if min(shape, default=1) < 0 or (
    math.prod(shape) * dtype.itemsize != len(content) - at
  ):
    raise ValueError(f'not as many bytes as {dtype} {shape} takes')
  if not dtype.itemsize:
    return np.zeros(shape, dtype)
  # Of a bytearray, so that it can be written to, as any array.
  array = np.frombuffer(bytearray(content), dtype, offset=at)
  return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def digest(value: Any) -> str:
  """SHA-256 of a JSON-able value, whatever the order of its keys."""
  text = json.dumps(value, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()
