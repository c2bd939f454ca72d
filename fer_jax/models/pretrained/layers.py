"""A backbone's layers, and what Keras and torch call them.

A table row is a layer: its path in our module, its name in
`keras.applications` and its prefix in torchvision or timm. Rows come in the
order of Keras' layers, by which files without names are read. Keras leaves
Xception's shortcuts to its automatic names (`conv2d_3`), so theirs is None.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from fer_jax.models.backbones import (
  VGG16,
  DenseNet121,
  Xception,
  densenet,
  vgg,
  xception,
)
from fer_jax.nn.conv import Conv
from fer_jax.nn.normalization import BatchNorm
from fer_jax.nn.separable import SeparableConv

Row = tuple[str, str | None, str]

# By kind of layer: our variables in the order of Keras', and torch's names.
_PARTS = {
  'conv': {'kernel': 'weight', 'bias': 'bias'},
  'norm': {
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
  },
  'separable': {
    'depthwise.kernel': 'conv1.weight',
    'pointwise.kernel': 'pointwise.weight',
  },
}
_KINDS = {Conv: 'conv', BatchNorm: 'norm', SeparableConv: 'separable'}


@dataclasses.dataclass(frozen=True)
class Variable:
  """A parameter or running statistic of a backbone.

  Attributes:
    target: the variable.
    layer: path of its layer.
    kind: of the layer: 'conv', 'norm' or 'separable'.
    keras_layer: name of the layer, None where Keras names it automatically.
    keras_index: which of the layer's variables it is.
    torch_name: in a state dict.
  """

  target: Any
  layer: str
  kind: str
  keras_layer: str | None
  keras_index: int
  torch_name: str

  @property
  def _is_depthwise(self) -> bool:
    return self.kind == 'separable' and self.keras_index == 0

  def file_shape(self, family: str) -> tuple[int, ...]:
    """The shape that a file of this family must have."""
    shape = self.target.shape
    if len(shape) != 4:
      return shape
    h, w, i, o = shape
    if family == 'torch':
      return o, i, h, w
    return (h, w, o, i) if self._is_depthwise else shape

  def from_file(self, value: np.ndarray, family: str) -> np.ndarray:
    """A file's tensor in our layout, (h, w, in, out) for a kernel."""
    if value.ndim != 4:
      return value
    if family == 'torch':
      return value.transpose(2, 3, 1, 0)
    return value.transpose(0, 1, 3, 2) if self._is_depthwise else value


def backbone_variables(backbone: nnx.Module) -> dict[str, Variable]:
  """All variables of a backbone by their path, 'block1.conv1.kernel'."""
  variables = {}
  for path, keras_layer, torch_prefix in _rows(backbone):
    layer = _descend(backbone, path)
    kind = _KINDS[type(layer)]
    for index, (part, torch_part) in enumerate(_PARTS[kind].items()):
      target = _descend(layer, part)
      if target is None:
        continue
      variables[f'{path}.{part}'] = Variable(
        target, path, kind, keras_layer, index, f'{torch_prefix}.{torch_part}'
      )
  count = len(jax.tree.leaves(nnx.state(backbone)))
  assert count == len(variables), (count, len(variables))
  return variables


def _descend(node: Any, path: str) -> Any:
  for name in path.split('.'):
    node = getattr(node, name)
  return node


def _rows(backbone: nnx.Module) -> Iterator[Row]:
  match backbone:
    case VGG16():
      return _vgg_rows()
    case DenseNet121():
      return _densenet_rows()
    case Xception():
      return _xception_rows()
  raise TypeError(f'no names are known of {type(backbone).__name__}')


def _vgg_rows() -> Iterator[Row]:
  index = 0
  for block, (convolutions, _) in enumerate(vgg.BLOCKS, 1):
    for n in range(1, convolutions + 1):
      yield (
        f'block{block}.conv{n}',
        f'block{block}_conv{n}',
        f'features.{index}',
      )
      index += 2  # a convolution and its ReLU
    index += 1  # the pooling


def _densenet_rows() -> Iterator[Row]:
  yield 'stem.conv', 'conv1_conv', 'features.conv0'
  yield 'stem.norm', 'conv1_bn', 'features.norm0'
  for block, layers in enumerate(densenet.BLOCKS, 1):
    for n in range(1, layers + 1):
      ours = f'denseblock{block}.layer{n}'
      keras = f'conv{block + 1}_block{n}'
      torch = f'features.denseblock{block}.denselayer{n}'
      yield f'{ours}.norm1', f'{keras}_0_bn', f'{torch}.norm1'
      yield f'{ours}.conv1', f'{keras}_1_conv', f'{torch}.conv1'
      yield f'{ours}.norm2', f'{keras}_1_bn', f'{torch}.norm2'
      yield f'{ours}.conv2', f'{keras}_2_conv', f'{torch}.conv2'
    if block < len(densenet.BLOCKS):
      ours, keras = f'transition{block}', f'pool{block + 1}'
      yield f'{ours}.norm', f'{keras}_bn', f'features.{ours}.norm'
      yield f'{ours}.conv', f'{keras}_conv', f'features.{ours}.conv'
  yield 'final_norm', 'bn', 'features.norm5'


def _xception_rows() -> Iterator[Row]:
  for n in (1, 2):
    yield f'block1.conv{n}', f'block1_conv{n}', f'conv{n}'
    yield f'block1.norm{n}', f'block1_conv{n}_bn', f'bn{n}'
  for block, widths in xception.BLOCKS.items():
    for n in range(1, len(widths)):
      keras = f'block{block}_sepconv{n}'
      conv, norm = f'conv{n + 2}', f'bn{n + 2}'
      if block != 14:
        # A ReLU, a convolution and a normalisation, over and over; the first
        # ReLU is missing in the first block.
        index = 3 * (n - 1) + (block != 2)
        conv = f'block{block - 1}.rep.{index}'
        norm = f'block{block - 1}.rep.{index + 1}'
      yield f'block{block}.sepconv{n}', keras, conv
      yield f'block{block}.norm{n}', f'{keras}_bn', norm
    if block in xception.REDUCING:
      torch = f'block{block - 1}.skip'
      yield f'block{block}.shortcut', None, torch
      yield f'block{block}.shortcut_norm', None, f'{torch}bn'
