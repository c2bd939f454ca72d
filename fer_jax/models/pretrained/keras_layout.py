"""Weights as Keras writes them to HDF5, by version 1 to 3.

    legacy     attribute `layer_names` of the file, or of its `model_weights`;
               a group a layer, whose attribute `weight_names` gives the paths
    Keras 3    `layers/conv2d_3/vars/0`: numbered by class; where it is new
               enough, the attribute `name` of `vars` is the layer's

The layers of a name are taken by it. The others go by their order among those
of one kind, as they do in Keras.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from fer_jax.errors import UserError
from fer_jax.models.pretrained.layers import Variable
from fer_jax.models.pretrained.tensors import FileTensor

MOST_ENTRIES = 20_000
"""Groups and tensors of a file; DenseNet121 with its head has 2,000."""

# Kinds of layers by the ranks of their variables. A normalisation layer and a
# head cannot be taken for one another, whatever they are called.
_KINDS = {
  (4,): 'conv',
  (4, 1): 'conv',
  (4, 4): 'separable',
  (1, 1, 1, 1): 'norm',
  (2,): 'dense',
  (2, 1): 'dense',
}
# Of Keras 3, and of the first releases to write `.weights.h5`.
_LAYERS = ('layers', '_layer_checkpoint_dependencies')


@dataclasses.dataclass(frozen=True)
class FileLayer:
  """A layer with variables.

  Attributes:
    name: what to call it.
    keras_name: the name it had in Keras, if the file says.
    tensors: its variables.
  """

  name: str
  keras_name: str | None
  tensors: tuple[FileTensor, ...]

  @property
  def kind(self) -> str:
    ranks = tuple(len(tensor.shape) for tensor in self.tensors)
    return _KINDS.get(ranks, 'other')


class KerasContents:
  """What an HDF5 file of Keras holds.

  Attributes:
    family: 'keras'.
    names: of its tensors.

  Args:
    file: open.
    h5py: the package.

  Raises:
    UserError: for a file of another program.
  """

  family = 'keras'

  def __init__(self, file: Any, h5py: Any):
    reader = _Reader(h5py)
    root = file
    if 'model_weights' in file:
      root = reader.group(file, 'model_weights')
    layers = next((name for name in _LAYERS if name in root), None)
    if 'layer_names' in root.attrs or 'layer_names0' in root.attrs:
      self._layers = list(reader.legacy_layers(root))
    elif layers is not None:
      self._layers = list(reader.layers(reader.group(root, layers)))
    else:
      raise UserError('it has no layers as Keras writes them')
    self.names = frozenset(
      tensor.name for layer in self._layers for tensor in layer.tensors
    )

  def match(
    self, variables: dict[str, Variable]
  ) -> tuple[dict[str, FileTensor], list[str], list[str]]:
    """Tensors by variable, problems, and names of the head's layers."""
    left_out = [la.name for la in self._layers if la.kind == 'dense']
    rest = [layer for layer in self._layers if layer.kind != 'dense']
    expected: dict[str, list[tuple[str, Variable]]] = {}
    for name, variable in variables.items():
      expected.setdefault(variable.layer, []).append((name, variable))

    # First those that have a name, both here and there.
    pairs: dict[str, FileLayer] = {}
    problems = []
    by_name = {}
    for layer in rest:
      if layer.keras_name is not None and layer.keras_name in by_name:
        problems.append(f'it has two layers {layer.keras_name}')
      by_name[layer.keras_name] = layer
    for path, parts in expected.items():
      keras_name = parts[0][1].keras_layer
      if keras_name is not None and keras_name in by_name:
        pairs[path] = by_name[keras_name]
    taken = {id(layer) for layer in pairs.values()}
    rest = [layer for layer in rest if id(layer) not in taken]

    # Then the others in their order; all of them, where no name is known and
    # the file has as many of each kind.
    unpaired = {path: parts[0][1] for path, parts in expected.items()}
    unpaired = {p: v for p, v in unpaired.items() if p not in pairs}
    if pairs:
      unpaired = {p: v for p, v in unpaired.items() if v.keras_layer is None}
    elif sorted(layer.kind for layer in rest) != sorted(
      variable.kind for variable in unpaired.values()
    ):
      unpaired = {}
    for path, variable in unpaired.items():
      next_one = next((la for la in rest if la.kind == variable.kind), None)
      if next_one is not None:
        pairs[path] = next_one
        rest.remove(next_one)

    found = {}
    for path, parts in expected.items():
      if path not in pairs:
        problems.append(f'it lacks {parts[0][1].keras_layer or path}')
        continue
      layer = pairs[path]
      if len(layer.tensors) != len(parts):
        problems.append(
          f'{layer.name} holds {len(layer.tensors)} tensors, {path} has '
          f'{len(parts)}'
        )
        continue
      for (name, _), tensor in zip(parts, layer.tensors, strict=True):
        found[name] = tensor
    problems += [f'it adds {layer.name}' for layer in rest]
    return found, problems, left_out


class _Reader:
  """Walks an HDF5 file without leaving it."""

  def __init__(self, h5py: Any):
    self.h5py = h5py
    self.seen = 0

  def legacy_layers(self, root: Any) -> Iterator[FileLayer]:
    for layer_name in _strings(root, 'layer_names'):
      group = self.group(root, layer_name)
      tensors = tuple(
        self.tensor(group, weight_name)
        for weight_name in _strings(group, 'weight_names')
      )
      if tensors:
        yield FileLayer(layer_name, layer_name.replace('/', '_'), tensors)

  def layers(self, root: Any) -> Iterator[FileLayer]:
    for key in sorted(root, key=_class_and_number):
      group = self.group(root, key)
      tensors, name = (), None
      if 'vars' in group:
        variables = self.group(group, 'vars')
        name = variables.attrs.get('name')
        numbers = sorted(variables, key=_class_and_number)
        tensors = tuple(self.tensor(variables, n) for n in numbers)
      # What is inside a layer belongs to none that a backbone has.
      tensors += tuple(
        tensor
        for part in group
        if part != 'vars'
        for tensor in self.all_tensors(self.group(group, part))
      )
      if tensors:
        name = name.decode() if isinstance(name, bytes) else name
        yield FileLayer(name or key, name, tensors)

  def all_tensors(self, group: Any) -> Iterator[FileTensor]:
    for key in group:
      # Two links to each group from the one before make a file of 30 groups
      # one of a billion.
      self.seen += 1
      if self.seen > MOST_ENTRIES:
        raise UserError(f'it has more than {MOST_ENTRIES} entries')
      self.check_link(group, key)
      if isinstance(group[key], self.h5py.Group):
        yield from self.all_tensors(group[key])
      else:
        yield self.tensor(group, key)

  def group(self, parent: Any, path: str) -> Any:
    for part in path.split('/'):
      self.check_link(parent, part)
      parent = parent[part]
      if not isinstance(parent, self.h5py.Group):
        raise UserError(f'{parent.name} should be a group')
    return parent

  def tensor(self, parent: Any, path: str) -> FileTensor:
    group_path, _, name = path.rpartition('/')
    if group_path:
      parent = self.group(parent, group_path)
    self.check_link(parent, name)
    dataset = parent[name]
    if not isinstance(dataset, self.h5py.Dataset) or dataset.shape is None:
      raise UserError(f'{dataset.name} should be a tensor')
    if dataset.is_virtual or dataset.external:
      raise UserError(f'the values of {dataset.name} are in another file')

    def read() -> np.ndarray:
      return dataset[()]

    return FileTensor(
      dataset.name, 'keras', dataset.shape, dataset.dtype.name, read
    )

  def check_link(self, parent: Any, name: str) -> None:
    """Raises for what is not there, and for links, which can leave the file."""
    if not name or name not in parent:
      raise UserError(f'{parent.name} lacks {name!r}, which the file lists')
    link = parent.get(name, getclass=True, getlink=True)
    if link is not self.h5py.HardLink:
      raise UserError(f'{name!r} in {parent.name} is a link')


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
