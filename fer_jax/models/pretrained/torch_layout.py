"""State dicts of torchvision and timm in safetensors files."""

import re
from typing import Any

import numpy as np

from fer_jax.models.pretrained.layers import Variable
from fer_jax.models.pretrained.tensors import FileTensor, Match

# torchvision's classifier; timm's classifiers, and its first dense layers of
# VGG16.
_HEADS = ('classifier.', 'fc.', 'head.', 'last_linear.', 'pre_logits.')
_DTYPES = {
  'F16': 'float16',
  'BF16': 'bfloat16',
  'F32': 'float32',
  'F64': 'float64',
}
# torchvision's oldest DenseNet file says `norm.1` where its code says `norm1`.
_OLD_DENSENET = re.compile(r'(\.denselayer\d+\.(?:norm|conv))\.([12])\.')


class TorchContents:
  """What a safetensors file holds.

  Attributes:
    family: 'torch'.
    names: of its tensors, as torchvision and timm name them today.
  """

  family = 'torch'

  def __init__(self, file: Any):
    self._tensors: dict[str, FileTensor] = {}
    self._twice: list[str] = []
    for name in file.keys():  # noqa: SIM118 - it is no dict
      current = _OLD_DENSENET.sub(r'\1\2.', name)
      if current in self._tensors:
        self._twice.append(name)
      self._tensors[current] = _tensor(file, name)
    self.names = frozenset(self._tensors)

  def match(self, variables: dict[str, Variable]) -> Match:
    """Pairs variables of a backbone with tensors by their names."""
    rest = dict(self._tensors)
    found, lacking, left_out = {}, [], []
    for name, variable in variables.items():
      tensor = rest.pop(variable.torch_name, None)
      if tensor is None:
        lacking.append(f'it lacks {variable.torch_name}')
      else:
        found[name] = tensor
    layers = {v.torch_name.rpartition('.')[0] for v in variables.values()}
    problems = [f'it names {name} twice' for name in self._twice]
    for name in sorted(rest):
      layer, _, part = name.rpartition('.')
      if name.startswith(_HEADS):
        left_out.append(name)
      elif part != 'num_batches_tracked' or layer not in layers:
        problems.append(f'it adds {name}')
    return Match(found, lacking, problems, left_out)


def _tensor(file, name) -> FileTensor:
  view = file.get_slice(name)
  dtype = str(view.get_dtype())

  def read() -> np.ndarray:
    return file.get_tensor(name)

  return FileTensor(
    name, 'torch', tuple(view.get_shape()), _DTYPES.get(dtype, dtype), read
  )
