"""Reads an HDF5 file of Keras, in a process of its own.

    python -P hdf5_reader.py FILE

The HDF5 library can crash on damaged files, and memory that it has spoilt is
best not shared. So this is a program: it imports nothing of fer_jax, and what
it finds it says through pipes. First a line of JSON, `{"layers": [...]}` or
`{"refused": why}`; then for each line on stdin, the number of a tensor as they
were listed, a line of JSON, `{"bytes": n}` or `{"refused": why}`, and n bytes
of float32.
"""

import json
import math
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

import h5py
import numpy as np

try:
  import resource
except ImportError:  # on Windows
  resource = None

MOST_ENTRIES = 20_000
"""Groups and tensors of a file; DenseNet121 with its head has 2,000."""
# The largest tensor of a backbone has 12 MiB, and what is imported takes 110.
_MOST_ADDRESSES = 1 << 29
# Of the processor, for an answer; the list of 860 tensors takes one.
_MOST_SECONDS = 3

# Of Keras 3, and of the first releases to write `.weights.h5`.
_LAYERS = ('layers', '_layer_checkpoint_dependencies')

Layer = tuple[str, str | None, list[h5py.Dataset]]
"""What to call it, the name it had in Keras if the file says, its tensors."""


class _Refusal(Exception):  # noqa: N818 - it is no error of the program
  """Why a file is not read, for its user."""


def main(path: str) -> None:
  """Answers until stdin ends."""
  limit_memory()
  limit_time()
  with _open(path) as file:
    try:
      layers = list(layers_of(file))
      described = [
        {
          'name': name,
          'keras_name': keras_name,
          'tensors': [
            {'name': t.name, 'shape': t.shape, 'dtype': t.dtype.name}
            for t in tensors
          ],
        }
        for name, keras_name, tensors in layers
      ]
    except Exception as error:  # what h5py raises depends on the damage
      _refuse(error)
    _say({'layers': described})
    tensors = [tensor for _, _, listed in layers for tensor in listed]
    for line in sys.stdin:
      try:
        values = np.asarray(tensors[int(line)][()], '<f4')
      except Exception as error:
        _refuse(error)
      _say({'bytes': values.nbytes}, values.tobytes())


def limit_memory() -> None:
  """A damaged chunk may ask for any size."""
  if resource is not None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = _MOST_ADDRESSES
    if hard != resource.RLIM_INFINITY:
      most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))


def limit_time() -> None:
  """Damage may lead round in circles: so long for the next answer, no more."""
  if resource is not None:
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    most = math.ceil(time.process_time()) + _MOST_SECONDS
    if hard != resource.RLIM_INFINITY:
      most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


def _open(path: str) -> h5py.File:
  try:
    return h5py.File(path, 'r')
  except Exception as error:
    _refuse(error)


def _say(answer: dict[str, Any], content: bytes = b'') -> None:
  line = json.dumps(answer).encode() + b'\n'
  sys.stdout.buffer.write(line + content)
  sys.stdout.buffer.flush()
  limit_time()


def _refuse(error: Exception) -> NoReturn:
  damaged = not isinstance(error, _Refusal)
  _say({'refused': ' '.join(str(error).split()), 'damaged': damaged})
  sys.exit(0)


def layers_of(file: h5py.File) -> Iterator[Layer]:
  """The layers that have tensors, by the layout of the file's version."""
  reader = _Reader()
  root = file
  if 'model_weights' in file:
    root = reader.group(file, 'model_weights')
  layers = next((name for name in _LAYERS if name in root), None)
  if 'layer_names' in root.attrs or 'layer_names0' in root.attrs:
    return reader.legacy_layers(root)
  if layers is not None:
    return reader.layers(reader.group(root, layers))
  raise _Refusal('it has no layers as Keras writes them')


class _Reader:
  """Walks an HDF5 file without leaving it."""

  def __init__(self):
    self.seen = 0

  def legacy_layers(self, root: Any) -> Iterator[Layer]:
    for layer_name in _strings(root, 'layer_names'):
      group = self.group(root, layer_name)
      tensors = [
        self.tensor(group, weight_name)
        for weight_name in _strings(group, 'weight_names')
      ]
      if tensors:
        yield layer_name, layer_name.replace('/', '_'), tensors

  def layers(self, root: Any) -> Iterator[Layer]:
    for key in sorted(root, key=_class_and_number):
      group = self.group(root, key)
      tensors, name = [], None
      if 'vars' in group:
        variables = self.group(group, 'vars')
        name = variables.attrs.get('name')
        numbers = sorted(variables, key=_class_and_number)
        tensors = [self.tensor(variables, n) for n in numbers]
      # What is inside a layer belongs to none that a backbone has.
      tensors += [
        tensor
        for part in group
        if part != 'vars'
        for tensor in self.all_tensors(self.group(group, part))
      ]
      if tensors:
        name = name.decode() if isinstance(name, bytes) else name
        name = None if name is None else str(name)
        yield name or key, name, tensors

  def all_tensors(self, group: Any) -> Iterator[h5py.Dataset]:
    for key in group:
      self.check_link(group, key)
      if isinstance(group[key], h5py.Group):
        yield from self.all_tensors(group[key])
      else:
        yield self.tensor(group, key)

  def group(self, parent: Any, path: str) -> Any:
    for part in path.split('/'):
      self.check_link(parent, part)
      parent = parent[part]
      if not isinstance(parent, h5py.Group):
        raise _Refusal(f'{parent.name} should be a group')
    return parent

  def tensor(self, parent: Any, path: str) -> h5py.Dataset:
    group_path, _, name = path.rpartition('/')
    if group_path:
      parent = self.group(parent, group_path)
    self.check_link(parent, name)
    dataset = parent[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
      raise _Refusal(f'{dataset.name} should be a tensor')
    if dataset.is_virtual or dataset.external:
      raise _Refusal(f'the values of {dataset.name} are in another file')
    return dataset

  def check_link(self, parent: Any, name: str) -> None:
    """Raises for what is not there, and for links, which can leave the file."""
    # Two links to each group from the one before make a file of 30 groups
    # one of a billion.
    self.seen += 1
    if self.seen > MOST_ENTRIES:
      raise _Refusal(f'it has more than {MOST_ENTRIES} entries')
    if not name or name not in parent:
      raise _Refusal(f'{parent.name} lacks {name!r}, which the file lists')
    link = parent.get(name, getclass=True, getlink=True)
    if link is not h5py.HardLink:
      raise _Refusal(f'{name!r} in {parent.name} is a link')


def _strings(node: Any, name: str) -> list[str]:
  """A list of names in an attribute; long ones are in several, numbered."""
  values = []
  if name in node.attrs:
    values = list(np.asarray(node.attrs[name]).ravel())
  else:
    number = 0
    while f'{name}{number}' in node.attrs:
      values += list(np.asarray(node.attrs[f'{name}{number}']).ravel())
      number += 1
  return [v.decode() if isinstance(v, bytes) else str(v) for v in values]


def _class_and_number(key: str) -> tuple[str, int]:
  """'conv2d_10' after 'conv2d_9', and 'conv2d' before them."""
  matched = re.fullmatch(r'(.*?)_?(\d+)', key)
  if matched is None:
    return key, 0
  return matched[1], int(matched[2])


if __name__ == '__main__':
  main(sys.argv[1])
