"""VGG16 up to its last pooled map.

Source: Simonyan and Zisserman, arXiv 1409.1556, table 1, column D.
"""

from typing import Any

import jax
from flax import nnx

from fer_jax.models.backbones.backbone import Backbone, kernel_init
from fer_jax.nn.conv import Conv
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

  def __call__(self, x_bhwc, *, train: bool = False, mask=None) -> jax.Array:
    """(B, H, W, in_features) to (B, H // 2, W // 2, out_features)."""
    del train, mask  # there is no normalisation
    for n in range(1, self.convolutions + 1):
      x_bhwc = jax.nn.relu(getattr(self, f'conv{n}')(x_bhwc))
    return max_pool(x_bhwc, 2)


class VGG16(Backbone):
  """VGG16 without its dense layers: blocks `block1` to `block5`.

  Both families compute the same; they start from other values (Keras:
  Glorot-uniform; torchvision: Kaiming-normal by fan-out) and want other
  pixels, see `preprocessing`. `train` and `mask` change nothing.

  Args:
    in_features: channels of the images; published weights have 3.
    family: whose conventions to follow.
    dtype: what to compute in; None takes that of images and parameters.
    rngs: the stream `params` draws the parameters.
  """

  LEAST_SIDE = 32

  def __init__(
    self,
    in_features: int = 3,
    *,
    family: str = 'keras',
    dtype: Any = None,
    rngs: nnx.Rngs,
  ):
    super().__init__(family, in_features, out_features=BLOCKS[-1][1])
    features = in_features
    for n, (convolutions, width) in enumerate(BLOCKS, 1):
      block = VGGBlock(
        features,
        width,
        convolutions,
        kernel_init=kernel_init(self.family, 'out'),
        dtype=dtype,
        rngs=rngs,
      )
      self.add_block(f'block{n}', block)
      features = width

  @staticmethod
  def _map_side(side: int) -> int:
    return side // 32
