"""Xception up to its last map.

Source: Chollet, arXiv 1610.02357, figure 5; the published weights of Keras and
of timm's `legacy_xception` have its form.
"""

from typing import Any

import jax
from flax import nnx

from fer_jax.models.backbones.backbone import Backbone, Parts
from fer_jax.nn.pooling import max_pool
from fer_jax.nn.separable import SeparableConv

# Channels through the separable convolutions of blocks 2 to 14: the first is
# what comes in. Blocks 5 to 12 add their input, 14 adds nothing, the others
# pool and add a projection.
BLOCKS = {
  2: (64, 128, 128),
  3: (128, 256, 256),
  4: (256, 728, 728),
  **dict.fromkeys(range(5, 13), (728, 728, 728, 728)),
  13: (728, 728, 1024),
  14: (1024, 1536, 2048),
}
REDUCING = (2, 3, 4, 13)
EPSILON = {'keras': 1e-3, 'torch': 1e-5}


class _Parts(Parts):
  def sepconv(self, in_features: int, out_features: int) -> SeparableConv:
    return SeparableConv(in_features, out_features, 3, **self.options)


class Stem(nnx.Module):
  """Block 1: two unpadded 3x3 convolutions, the first at stride 2."""

  def __init__(self, parts: _Parts, in_features: int):
    self.conv1 = parts.conv(in_features, 32, 3, 2, 'VALID')
    self.norm1 = parts.norm(32)
    self.conv2 = parts.conv(32, 64, 3, 1, 'VALID')
    self.norm2 = parts.norm(64)

  def __call__(self, x_bhwc, *, train: bool = False, mask=None) -> jax.Array:
    """(B, H, W, C) to (B, (H - 5) // 2, (W - 5) // 2, 64)."""
    x = jax.nn.relu(self.norm1(self.conv1(x_bhwc), not train, mask=mask))
    return jax.nn.relu(self.norm2(self.conv2(x), not train, mask=mask))


class SeparableBlock(nnx.Module):
  """Blocks 2 to 14: `sepconv1`, `norm1`, ... and a way round them.

  Args:
    parts: makes the layers.
    number: of the block.
    pool_padding: of the 3x3 pooling at stride 2, if it is a reducing one.
  """

  def __init__(self, parts: _Parts, number: int, pool_padding: int | str):
    widths = BLOCKS[number]
    self.convolutions = len(widths) - 1
    for n in range(1, len(widths)):
      setattr(self, f'sepconv{n}', parts.sepconv(widths[n - 1], widths[n]))
      setattr(self, f'norm{n}', parts.norm(widths[n]))
    # What block 1 gives has been through ReLU, and that of 13 goes round it.
    self.relu_first = number not in (2, 14)
    self.relu_last = number == 14
    self.adds_input = 5 <= number <= 12
    self.pool_padding = pool_padding
    self.shortcut = nnx.data(None)
    self.shortcut_norm = nnx.data(None)
    if number in REDUCING:
      self.shortcut = parts.conv(widths[0], widths[-1], 1, 2, 'VALID')
      self.shortcut_norm = parts.norm(widths[-1])

  def __call__(self, x_bhwc, *, train: bool = False, mask=None) -> jax.Array:
    """Half the height and width, rounded up, where the block reduces."""
    y = x_bhwc
    for n in range(1, self.convolutions + 1):
      if n > 1 or self.relu_first:
        y = jax.nn.relu(y)
      y = getattr(self, f'sepconv{n}')(y)
      y = getattr(self, f'norm{n}')(y, not train, mask=mask)
    if self.relu_last:
      return jax.nn.relu(y)
    if self.adds_input:
      return y + x_bhwc.astype(y.dtype)
    if self.shortcut is None or self.shortcut_norm is None:
      return y
    y = max_pool(y, 3, 2, self.pool_padding)
    skip = self.shortcut(x_bhwc)
    return y + self.shortcut_norm(skip, not train, mask=mask)


class Xception(Backbone):
  """Xception without its classifier: `block1` to `block14`.

  The families differ in epsilon (Keras 1e-3, timm 1e-5) and momentum of batch
  normalisation, in initial values, and in where pooling starts: Keras pads
  maps of even size at their end alone, timm at both ends.

  Args:
    in_features: channels of the images; published weights have 3.
    family: whose conventions to follow.
    dtype: what to compute in; None takes that of images and parameters.
    rngs: the stream `params` draws the parameters.
  """

  LEAST_SIDE = 7

  def __init__(
    self,
    in_features: int = 3,
    *,
    family: str = 'keras',
    dtype: Any = None,
    rngs: nnx.Rngs,
  ):
    super().__init__(family, in_features, out_features=BLOCKS[14][-1])
    parts = _Parts(self.family, EPSILON, fan='out', dtype=dtype, rngs=rngs)
    self.add_block('block1', Stem(parts, in_features))
    pool_padding = 'SAME' if family == 'keras' else 1
    for n in BLOCKS:
      self.add_block(f'block{n}', SeparableBlock(parts, n, pool_padding))

  @staticmethod
  def _map_side(side: int) -> int:
    # Two unpadded convolutions, then four times half, rounded up.
    return -(-((side - 5) // 2) // 16)
