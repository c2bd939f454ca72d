"""Reads published weights into a backbone, all of them or none.

Files are read as tensors and names; nothing in them is executed, and no
configuration of theirs is looked at.
"""

import dataclasses
import logging
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from fer_jax.errors import UserError
from fer_jax.models.backbones import BACKBONES
from fer_jax.models.backbones.family import check_family
from fer_jax.models.presets.pretrained import NAMES
from fer_jax.models.pretrained.files import Contents, opened
from fer_jax.models.pretrained.layers import Variable, backbone_variables
from fer_jax.models.pretrained.tensors import FileTensor, listed

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Loaded:
  """What `load_pretrained` did.

  Attributes:
    path: of the file.
    family: 'keras' or 'torch', of its layout.
    tensors: how many were set.
    left_out: names of what the file holds beside the backbone: its head.
  """

  path: str
  family: str
  tensors: int
  left_out: tuple[str, ...]


def load_pretrained(
  model: nnx.Module, path: str | pathlib.Path, family: str | None = None
) -> Loaded:
  """Sets a backbone's parameters and statistics to those of a file, in place.

  Args:
    model: a backbone, or a model with exactly one in it.
    path: Keras' .h5, .weights.h5 or .keras, or .safetensors with the names of
      torchvision (VGG16, DenseNet121) or timm (those and legacy_xception).
    family: what the file is expected to be; None for what the backbone is.

  Returns:
    What was set and what was left out: the file's classifier.

  Raises:
    ValueError: where the file cannot be read, is of the other family, or
      lacks, adds or mis-shapes a tensor. The model is then as it was.
    ImportError: where the reader's package is not installed.

  Example:

    >>> from flax import nnx
    >>> from fer_jax.models.backbones import VGG16
    >>> backbone = VGG16(family='torch', rngs=nnx.Rngs(0))
    >>> load_pretrained(backbone, 'vgg16.pth')  # doctest: +ELLIPSIS
    Traceback (most recent call last):
      ...
    fer_jax.errors.UserError: vgg16.pth is a pickle, which runs code when ...
  """
  path = pathlib.Path(path)
  backbone = _only_backbone(model)
  if family is not None and check_family(family) != backbone.family:
    raise UserError(
      f'the backbone was built for family={backbone.family!r}, not {family!r}'
    )
  variables = backbone_variables(backbone)
  with opened(path) as contents:
    if contents.family != backbone.family:
      raise UserError(
        f'{path} is of family {contents.family!r}, the backbone of '
        f'{backbone.family!r}: the two differ in normalisation, padding or '
        f'pixel scaling, so build it with family={contents.family!r}'
      )
    match = contents.match(variables)
    others = match.problems + _wrong_shapes(variables, match.tensors)
    if match.lacking or others:
      # Some of each: of a file with names of its own both say which it has.
      problems = '; '.join(map(listed, filter(None, (match.lacking, others))))
      raise UserError(
        f'{path} does not fit {type(backbone).__name__}'
        f'{_hint(backbone, contents)}: {problems}'
      )
    # All are read before any is set.
    values = {name: _read(match.tensors[name]) for name in variables}
  for name, variable in variables.items():
    value = variable.from_file(values[name], backbone.family)
    variable.target.set_value(jnp.asarray(value, variable.target.dtype))
  loaded = Loaded(
    str(path), backbone.family, len(values), tuple(match.left_out)
  )
  _LOG.info(
    'set %d tensors of %s from %s; left out: %s',
    loaded.tensors,
    type(backbone).__name__,
    path,
    ', '.join(match.left_out) or 'nothing',
  )
  return loaded


def _only_backbone(model: nnx.Module) -> Any:
  kinds = tuple(BACKBONES.values())
  found = {
    id(module): module
    for _, module in nnx.iter_modules(model)
    if isinstance(module, kinds)
  }
  if len(found) != 1:
    names = ', '.join(kind.__name__ for kind in kinds)
    raise ValueError(
      f'{type(model).__name__} must hold exactly one of {names}, as the models '
      f'{", ".join(NAMES)} do; it holds {len(found)}'
    )
  return next(iter(found.values()))


def _wrong_shapes(
  variables: dict[str, Variable], found: dict[str, FileTensor]
) -> list[str]:
  problems = []
  for name, tensor in found.items():
    variable = variables[name]
    expected = variable.file_shape(tensor.family)
    if tensor.shape != expected:
      problems.append(
        f'{tensor.name} is {tensor.shape} and not {expected}, as {name} is'
      )
    elif tensor.dtype not in ('float16', 'bfloat16', 'float32', 'float64'):
      problems.append(f'{tensor.name} is {tensor.dtype} and not floating')
  return problems


def _hint(backbone: Any, contents: Contents) -> str:
  if 'features.1.running_mean' in contents.names:
    return ' (it looks like vgg16_bn, which is another network)'
  if backbone.in_features != 3:
    return (
      f', which was built for {backbone.in_features} channels (published '
      'weights have 3: repeat grey images instead)'
    )
  return ''


def _read(tensor: FileTensor) -> np.ndarray:
  value = np.asarray(tensor.read(), np.float32)
  if not np.all(np.isfinite(value)):
    raise UserError(f'{tensor.name} has values that are not finite')
  return value
