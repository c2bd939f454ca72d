"""VGG16 up to its last pooled map.

Source: Simonyan and Zisserman, arXiv 1409.1556, table 1, column D.
"""

import functools
from typing import Any

import jax
from flax import nnx

from fer_jax.models.backbones.family import check_family, check_size
from fer_jax.nn import rematerialisation
from fer_jax.nn.conv import Conv
from fer_jax.nn.initializers import glorot_uniform, kaiming_normal
from fer_jax.nn.pooling import max_pool

# Convolutions and their filters, block by block.
BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class VGGBlock(nnx.Module):
  """3x3 convolutions `conv1`, `conv2`, ... with ReLU, then 2x2 max-pooling."""

  def __init__(
    self,
    in_features: int,
    out_features: int,
    convolutions: int,
    *,
    kernel_init,
    dtype: Any = None,
    rngs: nnx.Rngs,
  ):
    self.convolutions = convolutions
    for n in range(1, convolutions + 1):
      conv = Conv(
        in_features,
        out_features,
        kernel_init=kernel_init,
        dtype=dtype,
        rngs=rngs,
      )
      setattr(self, f'conv{n}', conv)
      in_features = out_features

  def __call__(self, x_bhwc: jax.Array) -> jax.Array:
    """(B, H, W, in_features) to (B, H // 2, W // 2, out_features)."""
    for n in range(1, self.convolutions + 1):
      x_bhwc = jax.nn.relu(getattr(self, f'conv{n}')(x_bhwc))
    return max_pool(x_bhwc, 2)


class VGG16(nnx.Module):
  """VGG16 without its dense layers: blocks `block1` to `block5`.

  Both families compute the same; they start from other values (Keras:
  Glorot-uniform; torchvision: Kaiming-normal by fan-out) and want other
  pixels, see `preprocessing`.

  Attributes:
    family: 'keras' or 'torch'.
    in_features, out_features: channels of images and of maps, 512.

  Args:
    in_features: channels of the images; published weights have 3.
    family: whose conventions to follow.
    dtype: what to compute in; None takes that of images and parameters.
    rngs: the stream `params` draws the parameters.
  """

  def __init__(
    self,
    in_features: int = 3,
    *,
    family: str = 'keras',
    dtype: Any = None,
    rngs: nnx.Rngs,
  ):
    self.family = check_family(family)
    self.in_features = in_features
    self.out_features = BLOCKS[-1][1]
    kernel_init = glorot_uniform
    if family == 'torch':
      kernel_init = functools.partial(kaiming_normal, fan='out')
    features = in_features
    for n, (convolutions, width) in enumerate(BLOCKS, 1):
      block = VGGBlock(
        features,
        width,
        convolutions,
        kernel_init=kernel_init,
        dtype=dtype,
        rngs=rngs,
      )
      setattr(self, f'block{n}', block)
      features = width

  @classmethod
  def output_size(
    cls, height: int, width: int, family: str = 'keras'
  ) -> tuple[int, int]:
    """(h, w) of the map of an image.

    Raises:
      ValueError: for images below 32x32, of which nothing is left.
    """
    check_family(family)
    height, width = check_size('VGG16', height, width, 32)
    return height // 32, width // 32

  def __call__(
    self,
    x_bhwc: jax.Array,
    *,
    train: bool = False,
    mask: jax.Array | None = None,
    remat: bool = False,
  ) -> jax.Array:
    """(B, H, W, in_features) to (B, h, w, 512).

    Args:
      x_bhwc: images, preprocessed.
      train, mask: nothing here depends on them; for the sake of a common
        signature.
      remat: whether the backward pass computes the insides of each block again.

    Raises:
      ValueError: for images that are too small.
    """
    del train, mask
    self.output_size(x_bhwc.shape[1], x_bhwc.shape[2], self.family)
    for n in range(1, len(BLOCKS) + 1):
      block = getattr(self, f'block{n}')
      x_bhwc = rematerialisation.call(block, x_bhwc, remat=remat)
    return x_bhwc
