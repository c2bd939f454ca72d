"""JSON and text files: written whole or not at all."""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from fer_jax.errors import UserError


def write_bytes(path: pathlib.Path, content: bytes) -> None:
  """Writes a file through a temporary one beside it and a rename."""
  path = pathlib.Path(path)
  # Not of `tempfile`, whose files nobody else may read.
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  try:
    with temporary.open('wb') as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes UTF-8 text, whole or not at all."""
  write_bytes(path, text.encode('utf-8'))


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes indented JSON, whole or not at all."""
  write_text(path, json.dumps(value, indent=2, sort_keys=False) + '\n')


def require_writable(path: str | None, flag: str = '--json') -> None:
  """Checks a flag's file before the work whose result it is to hold.

  Raises:
    UserError: it has no folder, or is one.
  """
  if not path:
    return
  if not pathlib.Path(path).parent.is_dir():
    raise UserError(f'cannot write {flag} {path}: no such folder')
  if pathlib.Path(path).is_dir():
    raise UserError(f'cannot write {flag} {path}: it is a folder')


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
    UserError: naming the file, where it is missing or not JSON.
  """
  try:
    return json.loads(pathlib.Path(path).read_text(encoding='utf-8'))
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  except ValueError as error:
    raise UserError(f'{path} is not JSON: {error}') from error


def digest(value: Any) -> str:
  """SHA-256 of a JSON-able value, whatever the order of its keys."""
  text = json.dumps(value, sort_keys=True, separators=(',', ':'))
  return hashlib.sha256(text.encode()).hexdigest()
