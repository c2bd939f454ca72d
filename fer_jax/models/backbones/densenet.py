"""DenseNet121 up to its last map.

Source: Huang et al., arXiv 1608.06993, table 1 and section 3.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.models.backbones.family import check_family, check_size
from fer_jax.nn import rematerialisation
from fer_jax.nn.conv import Conv
from fer_jax.nn.initializers import glorot_uniform, kaiming_normal
from fer_jax.nn.normalization import BatchNorm
from fer_jax.nn.pooling import avg_pool, max_pool

GROWTH = 32
# Channels of a layer's 1x1 convolution, in growth rates.
BOTTLENECK = 4
STEM_FEATURES = 64
# Layers of each dense block.
BLOCKS = (6, 12, 24, 16)
EPSILON = {'keras': 1.001e-5, 'torch': 1e-5}
MOMENTUM = {'keras': 0.99, 'torch': 0.9}


class _Parts:
  """Makes the convolutions and normalisations of one family."""

  def __init__(self, family: str, dtype: Any, rngs: nnx.Rngs):
    self.family, self.dtype, self.rngs = family, dtype, rngs

  def conv(
    self,
    in_features,
    out_features,
    size,
    strides=1,
    padding: int | str = 'SAME',
  ) -> Conv:
    init = glorot_uniform if self.family == 'keras' else kaiming_normal
    return Conv(
      in_features,
      out_features,
      size,
      strides=strides,
      padding=padding,
      use_bias=False,
      kernel_init=init,
      dtype=self.dtype,
      rngs=self.rngs,
    )

  def norm(self, features) -> BatchNorm:
    return BatchNorm(
      features,
      momentum=MOMENTUM[self.family],
      epsilon=EPSILON[self.family],
    )


class Stem(nnx.Module):
  """7x7 convolution at stride 2, normalisation, ReLU, 3x3 pooling."""

  def __init__(self, parts: _Parts, in_features: int):
    self.conv = parts.conv(in_features, STEM_FEATURES, 7, 2, 3)
    self.norm = parts.norm(STEM_FEATURES)

  def __call__(self, x_bhwc, *, train: bool = False, mask=None) -> jax.Array:
    """(B, H, W, C) to (B, H / 4, W / 4, 64), rounded up."""
    x = jax.nn.relu(self.norm(self.conv(x_bhwc), not train, mask=mask))
    # Keras pads with zeros, torch with minus infinity: the same after ReLU.
    return max_pool(x, 3, 2, 1)


class DenseLayer(nnx.Module):
  """Normalised 1x1 convolution, then normalised 3x3 one: 32 new channels."""

  def __init__(self, parts: _Parts, in_features: int):
    width = BOTTLENECK * GROWTH
    self.norm1 = parts.norm(in_features)
    self.conv1 = parts.conv(in_features, width, 1)
    self.norm2 = parts.norm(width)
    self.conv2 = parts.conv(width, GROWTH, 3)

  def __call__(self, x_bhwc, *, train: bool = False, mask=None) -> jax.Array:
    """(B, H, W, in_features) to (B, H, W, 32)."""
    x = jax.nn.relu(self.norm1(x_bhwc, not train, mask=mask))
    x = jax.nn.relu(self.norm2(self.conv1(x), not train, mask=mask))
    return self.conv2(x)


class DenseBlock(nnx.Module):
  """Layers `layer1`, `layer2`, ...; each sees what all before it gave."""

  def __init__(self, parts: _Parts, in_features: int, layers: int):
    self.layers = layers
    for n in range(layers):
      layer = DenseLayer(parts, in_features + n * GROWTH)
      setattr(self, f'layer{n + 1}', layer)

  def __call__(self, x_bhwc, *, train: bool = False, mask=None) -> jax.Array:
    """(B, H, W, in_features) to (B, H, W, in_features + 32 layers)."""
    for n in range(1, self.layers + 1):
      new = getattr(self, f'layer{n}')(x_bhwc, train=train, mask=mask)
      x_bhwc = jnp.concatenate([x_bhwc, new], -1)
    return x_bhwc


class Transition(nnx.Module):
  """Normalised 1x1 convolution to half the channels, 2x2 average pooling."""

  def __init__(self, parts: _Parts, in_features: int):
    self.norm = parts.norm(in_features)
    self.conv = parts.conv(in_features, in_features // 2, 1)

  def __call__(self, x_bhwc, *, train: bool = False, mask=None) -> jax.Array:
    """(B, H, W, in_features) to (B, H // 2, W // 2, in_features // 2)."""
    x = jax.nn.relu(self.norm(x_bhwc, not train, mask=mask))
    return avg_pool(self.conv(x), 2)


class DenseNet121(nnx.Module):
  """DenseNet121 without its classifier.

  `stem`, `denseblock1`, `transition1`, ..., `denseblock4`, `final_norm`. The
  families differ in epsilon (Keras 1.001e-5, torchvision 1e-5) and momentum
  of batch normalisation and in initial values.

  Attributes:
    family: 'keras' or 'torch'.
    in_features, out_features: channels of images and of maps, 1024.

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
    self.use_running_average = True
    parts = _Parts(family, dtype, rngs)
    self.stem = Stem(parts, in_features)
    features = STEM_FEATURES
    for n, layers in enumerate(BLOCKS, 1):
      setattr(self, f'denseblock{n}', DenseBlock(parts, features, layers))
      features += layers * GROWTH
      if n < len(BLOCKS):
        setattr(self, f'transition{n}', Transition(parts, features))
        features //= 2
    self.final_norm = parts.norm(features)
    self.out_features = features

  @classmethod
  def output_size(
    cls, height: int, width: int, family: str = 'keras'
  ) -> tuple[int, int]:
    """(h, w) of the map of an image.

    Raises:
      ValueError: for images below 29x29, of which nothing is left; Keras asks
        for 32x32.
    """
    check_family(family)
    height, width = check_size('DenseNet121', height, width, 29)
    return -(-height // 4) // 8, -(-width // 4) // 8

  def __call__(
    self,
    x_bhwc: jax.Array,
    *,
    train: bool | None = None,
    mask: jax.Array | None = None,
    remat: bool = False,
  ) -> jax.Array:
    """(B, H, W, in_features) to (B, h, w, 1024).

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
    x = call(self.stem, x_bhwc)
    for n in range(1, len(BLOCKS) + 1):
      x = call(getattr(self, f'denseblock{n}'), x)
      if n < len(BLOCKS):
        x = call(getattr(self, f'transition{n}'), x)
    return jax.nn.relu(self.final_norm(x, not train, mask=mask))
