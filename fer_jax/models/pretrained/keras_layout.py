"""Weights as Keras writes them to HDF5, by version 1 to 3.

    legacy     attribute `layer_names` of the file, or of its `model_weights`;
               a group a layer, whose attribute `weight_names` gives the paths
    Keras 3    `layers/conv2d_3/vars/0`: numbered by class; where it is new
               enough, the attribute `name` of `vars` is the layer's

The layers of a name are taken by it. The others go by their order among those
of one kind, as they do in Keras.
"""

import dataclasses
from collections.abc import Sequence

from fer_jax.models.pretrained.layers import Variable
from fer_jax.models.pretrained.tensors import FileTensor, Match

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
    layers: in the order of the file's numbering.
  """

  family = 'keras'

  def __init__(self, layers: Sequence[FileLayer]):
    self._layers = list(layers)
    self.names = frozenset(
      tensor.name for layer in self._layers for tensor in layer.tensors
    )

  def match(self, variables: dict[str, Variable]) -> Match:
    """Pairs variables of a backbone with tensors by name, or by order."""
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

    found, lacking = {}, []
    for path, parts in expected.items():
      if path not in pairs:
        lacking.append(f'it lacks {parts[0][1].keras_layer or path}')
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
    return Match(found, lacking, problems, left_out)
