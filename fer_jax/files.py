"""JSON and text files: written whole or not at all."""

import hashlib
import json
import os
import pathlib
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
