"""Xception up to its last map.

Source: Chollet, arXiv 1610.02357, figure 5; the published weights of Keras and
of timm's `legacy_xception` have its form.
"""

import functools
from typing import Any

import jax
from flax import nnx

from fer_jax.models.backbones.family import check_family, check_size
from fer_jax.nn import rematerialisation
from fer_jax.nn.conv import Conv
from fer_jax.nn.initializers import glorot_uniform, kaiming_normal
from fer_jax.nn.normalization import BatchNorm
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
MOMENTUM = {'keras': 0.99, 'torch': 0.9}


class _Parts:
  """Makes the convolutions and normalisations of one family."""

  def __init__(self, family: str, dtype: Any, rngs: nnx.Rngs):
    self.family = family
    self.common = {'dtype': dtype, 'rngs': rngs, 'kernel_init': glorot_uniform}
    if family == 'torch':
      kernel_init = functools.partial(kaiming_normal, fan='out')
      self.common['kernel_init'] = kernel_init

  def conv(self, in_features, out_features, size, strides, padding) -> Conv:
    return Conv(
      in_features,
      out_features,
      size,
      strides=strides,
      padding=padding,
      use_bias=False,
      **self.common,
    )

  def sepconv(self, in_features, out_features) -> SeparableConv:
    return SeparableConv(in_features, out_features, 3, **self.common)

  def norm(self, features) -> BatchNorm:
    return BatchNorm(
      features,
      momentum=MOMENTUM[self.family],
      epsilon=EPSILON[self.family],
    )


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


class Xception(nnx.Module):
  """Xception without its classifier: `block1` to `block14`.

  The families differ in epsilon (Keras 1e-3, timm 1e-5) and momentum of batch
  normalisation, in initial values, and in where pooling starts: Keras pads
  maps of even size at their end alone, timm at both ends.

  Attributes:
    family: 'keras' or 'torch'.
    in_features, out_features: channels of images and of maps, 2048.

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
    self.out_features = BLOCKS[14][-1]
    self.use_running_average = True
    parts = _Parts(family, dtype, rngs)
    self.block1 = Stem(parts, in_features)
    pool_padding = 'SAME' if family == 'keras' else 1
    for n in BLOCKS:
      setattr(self, f'block{n}', SeparableBlock(parts, n, pool_padding))

  @classmethod
  def output_size(
    cls, height: int, width: int, family: str = 'keras'
  ) -> tuple[int, int]:
    """(h, w) of the map of an image.

    Raises:
      ValueError: for images below 7x7, of which nothing is left; Keras asks
        for 71x71.
    """
    check_family(family)
    height, width = check_size('Xception', height, width, 7)
    # Two unpadded convolutions, then four times half, rounded up.
    return -(-((height - 5) // 2) // 16), -(-((width - 5) // 2) // 16)

  def __call__(
    self,
    x_bhwc: jax.Array,
    *,
    train: bool | None = None,
    mask: jax.Array | None = None,
    remat: bool = False,
  ) -> jax.Array:
    """(B, H, W, in_features) to (B, h, w, 2048).

    Args:
      x_bhwc: images, preprocessed.
      train: whether to normalise by this batch's statistics; None takes what
        `train()` or `eval()` has set, before those False.
      mask: (B,), True for images that enter those statistics.
      remat: whether the backward pass computes the insides of each block again.

    Raises:
      ValueError: for images that are too small.
    """
    if train is None:
      train = not self.use_running_average
    self.output_size(x_bhwc.shape[1], x_bhwc.shape[2], self.family)
    call = functools.partial(
      rematerialisation.call, train=train, mask=mask, remat=remat
    )
    x = call(self.block1, x_bhwc)
    for n in BLOCKS:
      x = call(getattr(self, f'block{n}'), x)
    return x
