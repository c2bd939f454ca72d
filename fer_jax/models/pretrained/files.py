"""Opens a file of weights, whichever of the known layouts it has.

A .keras archive has checksums. An .h5 has none, and the HDF5 library itself can
crash on damaged metadata (1 of 250 files with random bytes changed, HDF5 2.0),
which is why a process of its own reads it. Values that are changed and still
finite are not noticed: compare a download's checksum first.
"""

import contextlib
import importlib
import lzma
import pathlib
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from types import ModuleType

from fer_jax.errors import UserError
from fer_jax.models.pretrained import hdf5
from fer_jax.models.pretrained.keras_layout import KerasContents
from fer_jax.models.pretrained.torch_layout import TorchContents

Contents = KerasContents | TorchContents

_PICKLES = ('.pt', '.pth', '.bin', '.pkl', '.pickle', '.ckpt')
_SUFFIXES = ('.h5', '.hdf5', '.keras', '.safetensors')
# VGG16 with its dense layers is 528 MiB.
_MOST_BYTES = 4 * 2**30
# Weights hardly compress; zeros, a thousand to one.
_MOST_RATIO = 20


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Contents]:
  """The names and shapes in a file; it is open for reading them meanwhile.

  Raises:
    UserError: one line that names the file, for whatever is wrong with it.
    ImportError: naming what to install.
  """
  suffix = path.suffix.lower()
  if suffix in _PICKLES:
    raise UserError(
      f'{path} is a pickle, which runs code when it is read; where you trust '
      'it, convert it with torch.load(path, weights_only=True) and '
      "safetensors.torch.save_file(state_dict, 'weights.safetensors')"
    )
  if suffix not in _SUFFIXES:
    raise UserError(
      f'{path} must end in one of {_SUFFIXES}, for the layout goes by that'
    )
  if not path.is_file():
    raise UserError(f'cannot read {path}: there is no such file')
  read = _safetensors if suffix == '.safetensors' else _hdf5
  try:
    with read(path) as contents:
      yield contents
  except UserError as error:
    # Names in a file may hold anything.
    message = ' '.join(str(error).splitlines())
    if str(path) not in message:
      message = f'{path}: {message}'
    raise UserError(message) from error


@contextlib.contextmanager
def _safetensors(path: pathlib.Path) -> Iterator[TorchContents]:
  safetensors = _package('safetensors')
  try:
    with safetensors.safe_open(path, framework='numpy') as file:
      yield TorchContents(file)
  except (safetensors.SafetensorError, OSError) as error:
    raise _not_whole(path, 'a safetensors', error) from error


@contextlib.contextmanager
def _hdf5(path: pathlib.Path) -> Iterator[KerasContents]:
  _package('h5py')
  try:
    with contextlib.ExitStack() as stack:
      if path.suffix.lower() == '.keras':
        source = stack.enter_context(_weights_in_archive(path))
      else:
        source = path
      yield KerasContents(stack.enter_context(hdf5.layers(source)))
  except hdf5.DamagedFileError as error:
    raise _not_whole(path, 'an HDF5', error) from error


@contextlib.contextmanager
def _weights_in_archive(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """The weights of a .keras file; its checksum is compared on the way."""
  with tempfile.TemporaryDirectory() as folder:
    unpacked = pathlib.Path(folder, 'weights.h5')
    _unpack(path, unpacked)
    yield unpacked


def _unpack(path: pathlib.Path, unpacked: pathlib.Path) -> None:
  member = 'model.weights.h5'
  try:
    with zipfile.ZipFile(path) as archive:
      if member not in archive.namelist():
        raise UserError(
          f'{path} holds no {member}; save it in one piece with '
          'model.save_weights(name.weights.h5)'
        )
      size = archive.getinfo(member).file_size
      most = min(_MOST_BYTES, _MOST_RATIO * path.stat().st_size)
      if size > most:
        raise UserError(
          f'{path}: its weights are said to take {size} bytes, more than {most}'
        )
      with archive.open(member) as packed, unpacked.open('wb') as f:
        shutil.copyfileobj(packed, f)
  except UserError:
    raise
  # RuntimeError: encrypted; NotImplementedError, which is one: of a
  # compression that is not known. ValueError: a name that is no text.
  except (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    MemoryError,
    OSError,
    EOFError,
    ValueError,
  ) as error:
    raise _not_whole(path, 'a .keras', error) from error


def _package(name: str) -> ModuleType:
  try:
    return importlib.import_module(name)
  except ImportError as error:
    raise ImportError(
      f"reading this file needs {name}: pip install -e '.[pretrained]'"
    ) from error


def _not_whole(path: pathlib.Path, kind: str, error: Exception) -> UserError:
  reason = ' '.join(str(error).split())
  return UserError(f'{path} is not {kind} file, or not all of one: {reason}')
