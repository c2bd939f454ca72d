"""What a backbone's pixels are, by the family of its weights."""

import dataclasses

import jax
import jax.numpy as jnp

from fer_jax.models.backbones.family import check_family
from fer_jax.nn import arguments
from fer_jax.nn.dtypes import sum_dtype

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
  """Pixels of 0 to 255 become `(pixels * scale - mean) / std`.

  Attributes:
    channel_order: 'rgb' or 'bgr', of what the backbone gets.
    scale: factor of the pixels.
    mean, std: of each channel in that order, after scaling.
  """

  channel_order: str
  scale: float
  mean: tuple[float, float, float]
  std: tuple[float, float, float]


_IMAGENET = Preprocessing('rgb', 1 / 255, _IMAGENET_MEAN, _IMAGENET_STD)
_FACTS = {
  ('densenet121', 'keras'): _IMAGENET,
  ('densenet121', 'torch'): _IMAGENET,
  ('vgg16', 'keras'): Preprocessing(
    'bgr', 1.0, (103.939, 116.779, 123.68), (1.0, 1.0, 1.0)
  ),
  ('vgg16', 'torch'): _IMAGENET,
  ('xception', 'keras'): Preprocessing(
    'rgb', 1 / 127.5, (1.0, 1.0, 1.0), (1.0, 1.0, 1.0)
  ),
  ('xception', 'torch'): Preprocessing(
    'rgb', 1 / 255, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
  ),
}


def preprocessing(name: str, family: str) -> Preprocessing:
  """What the weights of a backbone were trained on.

  Args:
    name: 'densenet121', 'vgg16' or 'xception'.
    family: 'keras' for `keras.applications`, 'torch' for torchvision
      (DenseNet, VGG) and timm (Xception).

  Raises:
    ValueError: for another name or family.
  """
  check_family(family)
  names = sorted({known for known, _ in _FACTS})
  if name not in names:
    raise ValueError(f'backbone must be one of {names}, got {name!r}')
  return _FACTS[name, family]


def preprocess(pixels: jax.Array, facts: Preprocessing) -> jax.Array:
  """Pixels as a backbone takes them.

  Args:
    pixels: (..., H, W, C) of 0 to 255, integer or floating; RGB, or grey with
      C = 1, which is repeated.
    facts: from `preprocessing`.

  Returns:
    (..., H, W, 3); float32, or wider if the pixels are.

  Raises:
    ValueError: for another number of channels.
  """
  if not isinstance(facts, Preprocessing):
    arguments.refuse('facts', "a backbone's, from `preprocessing`", facts)
  shape = arguments.shape_of(pixels)
  if len(shape) < 3 or shape[-1] not in (1, 3):
    raise ValueError(
      'pixels must be (..., H, W, 1) or (..., H, W, 3), got '
      f'{arguments.described(pixels)}'
    )
  pixels = jnp.asarray(pixels)
  dtype = jnp.float32
  if jnp.issubdtype(pixels.dtype, jnp.floating):
    dtype = sum_dtype(pixels.dtype)
  x = pixels.astype(dtype)
  if x.shape[-1] == 1:
    x = jnp.broadcast_to(x, (*x.shape[:-1], 3))
  elif facts.channel_order == 'bgr':
    x = x[..., ::-1]
  along_channels = (1,) * (x.ndim - 1) + (3,)
  mean = jnp.asarray(facts.mean, dtype).reshape(along_channels)
  std = jnp.asarray(facts.std, dtype).reshape(along_channels)
  return (x * facts.scale - mean) / std
