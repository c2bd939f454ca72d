"""The residual block."""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from fer_jax.nn import arguments
from fer_jax.nn.conv import Conv
from fer_jax.nn.initializers import he_normal
from fer_jax.nn.mode import Mode
from fer_jax.nn.normalization import BatchNorm


class ResidualBlock(Mode):
  """Two k x k convolutions with a skip connection round them.

      relu(BN(conv(relu(BN(conv(x))))) + skip(x))

  The skip is the identity, or where the shape changes a 1 x 1 convolution with
  batch normalisation. Convolutions have no bias, as normalisation takes it
  away; their kernels start he-normal.

  Args:
    in_features, out_features: channels.
    kernel_size: k, odd.
    strides: of the first convolution and of the projection.
    dtype: what to compute in; None takes that of images and parameters.
    rngs: the stream `params` draws the parameters.

  Source: He et al., arXiv 1512.03385, section 3 and option B of 4.1.
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    kernel_size: int = 3,
    strides: int | Sequence[int] = 1,
    dtype: Any = None,
    rngs: nnx.Rngs,
  ):
    def conv(features, size, step):
      return Conv(
        features,
        out_features,
        size,
        strides=step,
        use_bias=False,
        dtype=dtype,
        kernel_init=he_normal,
        rngs=rngs,
      )

    self.conv1 = conv(in_features, kernel_size, strides)
    self.norm1 = BatchNorm(out_features)
    self.conv2 = conv(out_features, kernel_size, 1)
    self.norm2 = BatchNorm(out_features)
    self.projection = nnx.data(None)
    self.projection_norm = nnx.data(None)
    self.use_running_average = True
    strides_of_both = arguments.pair('strides', strides)
    if in_features != out_features or strides_of_both != (1, 1):
      self.projection = conv(in_features, 1, strides)
      self.projection_norm = BatchNorm(out_features)

  def __call__(
    self,
    x_bhwc: jax.Array,
    *,
    train: bool | None = None,
    mask: jax.Array | None = None,
  ) -> jax.Array:
    """(B, H, W, in_features) to (B, H', W', out_features).

    Args:
      x_bhwc: images.
      train: whether to normalise by this batch's statistics; None takes what
        `train()` or `eval()` has set, before those False.
      mask: (B,), True for images that enter those statistics.
    """
    train = self.trains(train)
    y = self.norm1(self.conv1(x_bhwc), not train, mask=mask)
    y = self.norm2(self.conv2(jax.nn.relu(y)), not train, mask=mask)
    skip = x_bhwc
    if self.projection is not None and self.projection_norm is not None:
      skip = self.projection_norm(self.projection(skip), not train, mask=mask)
    return jax.nn.relu(y + skip.astype(y.dtype))
