"""DenseNet121 up to its last map.

Source: Huang et al., arXiv 1608.06993, table 1 and section 3.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from fer_jax.models.backbones.backbone import Backbone, Parts
from fer_jax.nn.pooling import avg_pool, max_pool

GROWTH = 32
# Channels of a layer's 1x1 convolution, in growth rates.
BOTTLENECK = 4
STEM_FEATURES = 64
# Layers of each dense block.
BLOCKS = (6, 12, 24, 16)
EPSILON = {'keras': 1.001e-5, 'torch': 1e-5}


class Stem(nnx.Module):
  """7x7 convolution at stride 2, normalisation, ReLU, 3x3 pooling."""

  def __init__(self, parts: Parts, in_features: int):
    self.conv = parts.conv(in_features, STEM_FEATURES, 7, 2, 3)
    self.norm = parts.norm(STEM_FEATURES)

  def __call__(self, x_bhwc, *, train: bool = False, mask=None) -> jax.Array:
    """(B, H, W, C) to (B, H / 4, W / 4, 64), rounded up."""
    x = jax.nn.relu(self.norm(self.conv(x_bhwc), not train, mask=mask))
    # Keras pads with zeros, torch with minus infinity: the same after ReLU.
    return max_pool(x, 3, 2, 1)


class DenseLayer(nnx.Module):
  """Normalised 1x1 convolution, then normalised 3x3 one: 32 new channels."""

  def __init__(self, parts: Parts, in_features: int):
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

  def __init__(self, parts: Parts, in_features: int, layers: int):
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

  def __init__(self, parts: Parts, in_features: int):
    self.norm = parts.norm(in_features)
    self.conv = parts.conv(in_features, in_features // 2, 1)

  def __call__(self, x_bhwc, *, train: bool = False, mask=None) -> jax.Array:
    """(B, H, W, in_features) to (B, H // 2, W // 2, in_features // 2)."""
    x = jax.nn.relu(self.norm(x_bhwc, not train, mask=mask))
    return avg_pool(self.conv(x), 2)


def _widths() -> list[int]:
  """Channels that each dense block gives, 1,024 the last; the next takes half
  of them."""
  widths, features = [], STEM_FEATURES
  for layers in BLOCKS:
    widths.append(features + layers * GROWTH)
    features = widths[-1] // 2
  return widths


class DenseNet121(Backbone):
  """DenseNet121 without its classifier.

  `stem`, `denseblock1`, `transition1`, ..., `denseblock4`, `final_norm`. The
  families differ in epsilon (Keras 1.001e-5, torchvision 1e-5) and momentum
  of batch normalisation and in initial values.

  Args:
    in_features: channels of the images; published weights have 3.
    family: whose conventions to follow.
    dtype: what to compute in; None takes that of images and parameters.
    rngs: the stream `params` draws the parameters.
  """

  LEAST_SIDE = 29

  def __init__(
    self,
    in_features: int = 3,
    *,
    family: str = 'keras',
    dtype: Any = None,
    rngs: nnx.Rngs,
  ):
    widths = _widths()
    super().__init__(family, in_features, out_features=widths[-1])
    parts = Parts(self.family, EPSILON, dtype=dtype, rngs=rngs)
    self.add_block('stem', Stem(parts, in_features))
    features = STEM_FEATURES
    for n, (layers, width) in enumerate(zip(BLOCKS, widths, strict=True), 1):
      self.add_block(f'denseblock{n}', DenseBlock(parts, features, layers))
      if n < len(BLOCKS):
        self.add_block(f'transition{n}', Transition(parts, width))
        features = width // 2
    self.final_norm = parts.norm(widths[-1])

  @staticmethod
  def _map_side(side: int) -> int:
    return -(-side // 4) // 8

  def _finish(self, x_bhwc, *, train: bool, mask) -> jax.Array:
    return jax.nn.relu(self.final_norm(x_bhwc, not train, mask=mask))
