"""An HDF5 file by way of the process that reads it, `hdf5_reader`."""

import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from fer_jax.errors import UserError
from fer_jax.models.pretrained.keras_layout import FileLayer
from fer_jax.models.pretrained.tensors import FileTensor

READER = pathlib.Path(__file__).with_name('hdf5_reader.py')
# For an answer, on a slow disk too; the reader limits its own processor time.
MOST_SECONDS = 60.0


class DamagedFileError(UserError):
  """The library could not read a file, or did not survive it."""


@contextlib.contextmanager
def layers(path: pathlib.Path) -> Iterator[list[FileLayer]]:
  """The layers of a file; their tensors can be read meanwhile.

  Raises:
    DamagedFileError: the library makes nothing of the file.
    UserError: the file is of another program, or leads out of itself.
  """
  reader = _Reader(path)
  try:
    yield reader.layers()
  finally:
    reader.close()


class _Reader:
  """The other end of the pipes."""

  def __init__(self, path: pathlib.Path):
    # Threads of its linear algebra take addresses and are of no use.
    environment = os.environ | {'OPENBLAS_NUM_THREADS': '1'}
    self._process = subprocess.Popen(
      [sys.executable, '-P', str(READER), str(path)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=environment,
    )

  def close(self) -> None:
    self._process.kill()
    # Closes the pipes, too.
    with contextlib.suppress(OSError):
      self._process.communicate()

  def layers(self) -> list[FileLayer]:
    found, number = [], 0
    for layer in self._answer()['layers']:
      tensors = []
      for tensor in layer['tensors']:
        tensors.append(self._tensor(number, tensor))
        number += 1
      found.append(
        FileLayer(layer['name'], layer['keras_name'], tuple(tensors))
      )
    return found

  def _tensor(self, number: int, described: dict[str, Any]) -> FileTensor:
    shape = tuple(described['shape'])

    def read() -> np.ndarray:
      content = self._values(number, 4 * math.prod(shape))
      return np.frombuffer(content, '<f4').reshape(shape)

    return FileTensor(
      described['name'], 'keras', shape, described['dtype'], read
    )

  def _values(self, number: int, size: int) -> bytes:
    assert self._process.stdin is not None
    assert self._process.stdout is not None
    with contextlib.suppress(OSError):  # its end is seen below
      self._process.stdin.write(b'%d\n' % number)
      self._process.stdin.flush()
    if self._answer()['bytes'] != size:
      raise DamagedFileError('a tensor is not of the size that it says')
    with self._patience():
      content = self._process.stdout.read(size)
    if len(content) < size:
      raise DamagedFileError(self._end())
    return content

  @contextlib.contextmanager
  def _patience(self) -> Iterator[None]:
    """Ends the process, and so the waiting for it, after a while."""
    timer = threading.Timer(MOST_SECONDS, self._process.kill)
    timer.start()
    try:
      yield
    finally:
      timer.cancel()

  def _answer(self) -> dict[str, Any]:
    assert self._process.stdout is not None
    with self._patience():
      line = self._process.stdout.readline()
    if not line.endswith(b'\n'):
      raise DamagedFileError(self._end())
    answer = json.loads(line)
    if 'refused' in answer:
      kind = DamagedFileError if answer['damaged'] else UserError
      raise kind(answer['refused'])
    return answer

  def _end(self) -> str:
    status = self._process.wait()
    return f'the HDF5 library broke down on it (status {status})'
