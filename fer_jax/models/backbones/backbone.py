"""What the backbones have in common: how they are called, and their layers."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
from flax import nnx

from fer_jax.models.backbones.family import check_family
from fer_jax.nn import rematerialisation
from fer_jax.nn.conv import Conv
from fer_jax.nn.initializers import glorot_uniform, kaiming_normal
from fer_jax.nn.mode import Mode
from fer_jax.nn.normalization import BatchNorm

MOMENTUM = {'keras': 0.99, 'torch': 0.9}


class Backbone(Mode):
  """A network without its classifier: blocks that follow each other.

  Attributes:
    LEAST_SIDE: of images in pixels; of smaller ones nothing is left.
    family: 'keras' or 'torch'.
    in_features, out_features: channels of images and of maps.
  """

  LEAST_SIDE: ClassVar[int]

  def __init__(self, family: str, in_features: int, out_features: int):
    self.family = check_family(family)
    self.in_features = in_features
    self.out_features = out_features
    self.use_running_average = True
    self.blocks: tuple[str, ...] = ()

  def add_block(self, name: str, block: nnx.Module) -> None:
    """Adds a block, which takes a map, `train` and `mask`."""
    setattr(self, name, block)
    self.blocks += (name,)

  @classmethod
  def output_size(
    cls, height: int, width: int, family: str = 'keras'
  ) -> tuple[int, int]:
    """(h, w) of the map of an image.

    Raises:
      ValueError: for images of which nothing is left, below `LEAST_SIDE`; Keras
        asks for 32x32, of Xception's for 71x71.
    """
    check_family(family)
    least = cls.LEAST_SIDE
    if min(height, width) < least:
      raise ValueError(
        f'{cls.__name__} takes images of at least {least}x{least}, got '
        f'{height}x{width}'
      )
    return cls._map_side(height), cls._map_side(width)

  @staticmethod
  def _map_side(side: int) -> int:
    raise NotImplementedError

  def __call__(
    self,
    x_bhwc: jax.Array,
    *,
    train: bool | None = None,
    mask: jax.Array | None = None,
    remat: bool = False,
  ) -> jax.Array:
    """(B, H, W, in_features) to (B, h, w, out_features).

    Args:
      x_bhwc: images, preprocessed.
      train: whether to normalise by this batch's statistics; None takes what
        `train()` or `eval()` has set, before those False.
      mask: (B,), True for images that enter those statistics.
      remat: whether the backward pass computes the insides of each block again.

    Raises:
      ValueError: for images that are too small.
    """
    train = self.trains(train)
    self.output_size(x_bhwc.shape[1], x_bhwc.shape[2], self.family)
    for name in self.blocks:
      x_bhwc = rematerialisation.call(
        getattr(self, name), x_bhwc, train=train, mask=mask, remat=remat
      )
    return self._finish(x_bhwc, train=train, mask=mask)

  def _finish(self, x_bhwc, *, train: bool, mask) -> jax.Array:
    """What follows the blocks; nothing, if not overridden."""
    del train, mask
    return x_bhwc


class Parts:
  """Makes the layers of one family.

  Args:
    family: 'keras' or 'torch'.
    epsilon: of batch normalisation, by family.
    fan: of `kaiming_normal`, which the family torch draws its kernels by.
    dtype: what to compute in; None takes that of images and parameters.
    rngs: the stream `params` draws the parameters.
  """

  def __init__(
    self,
    family: str,
    epsilon: Mapping[str, float],
    *,
    fan: str = 'in',
    dtype: Any,
    rngs: nnx.Rngs,
  ):
    self.momentum, self.epsilon = MOMENTUM[family], epsilon[family]
    self.options = {
      'kernel_init': kernel_init(family, fan),
      'dtype': dtype,
      'rngs': rngs,
    }

  def conv(
    self,
    in_features: int,
    out_features: int,
    size: int,
    strides: int = 1,
    padding: int | str = 'SAME',
  ) -> Conv:
    """A convolution without a bias."""
    return Conv(
      in_features,
      out_features,
      size,
      strides=strides,
      padding=padding,
      use_bias=False,
      **self.options,
    )

  def norm(self, features: int) -> BatchNorm:
    """A batch normalisation."""
    return BatchNorm(features, momentum=self.momentum, epsilon=self.epsilon)


def kernel_init(family: str, fan: str) -> Callable[..., jax.Array]:
  """What draws the kernels of a family, of torch by one of 'in' and 'out'."""
  if family == 'keras':
    return glorot_uniform
  return functools.partial(kaiming_normal, fan=fan)
