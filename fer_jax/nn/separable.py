"""Depthwise and separable 2-D convolution.

Legend: B batch, H x W pixels, C input channels, O output channels.

XLA computes a convolution of C groups on CPU by a scalar loop: forward and
gradients of (16, 6, 6, 728) with a 3x3 kernel took 98 ms on one AVX-512 core,
against 1.9 ms for nine shifted images, each times its row of the kernel, added
up (jax 0.10.2). Those are elementwise, so they stay fast under vmap and in
loops too. A few images at a time, they are read from the cache: (32, 12, 12,
728) on a core with AVX2 in 32 ms, against 64 at once.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fer_jax.nn import arguments, chunks, varying_axes
from fer_jax.nn.conv import Conv, Padding, checked_padding, geometry
from fer_jax.nn.dtypes import sum_dtype
from fer_jax.nn.initializers import glorot_uniform
from fer_jax.nn.platforms import current_platform

FORMS = ('auto', 'lax', 'shifts')

_MAPS = 4
"""As large as a chunk's images, that its backward pass reads and makes."""


def depthwise_conv2d(
  x_bhwc: jax.Array,
  kernel_hw1c: jax.Array,
  *,
  strides: int | Sequence[int] = 1,
  padding: Padding = 'SAME',
  form: str = 'auto',
) -> jax.Array:
  """Cross-correlates every channel with a window of its own.

  Args:
    x_bhwc: images (B, H, W, C), floating.
    kernel_hw1c: kernel (kh, kw, 1, C) of the same dtype.
    strides, padding: as for `conv2d`.
    form: how it is computed, one of `FORMS`; 'auto' is 'shifts' on CPU and
      'lax' elsewhere. All give the same values and gradients to rounding;
      'shifts' has no forward-mode derivative. Of what is exported for another
      platform, and of batches that `jax.jit` alone divides, see `conv2d`.

  Returns:
    (B, H', W', C), of the images' dtype.

  Raises:
    ValueError: where shapes, dtypes, padding or form do not go together.
  """
  arguments.check_shape(
    'depthwise_conv2d takes images (B, H, W, C)', x_bhwc, (None,) * 4
  )
  arguments.check_shape(
    'depthwise_conv2d takes a kernel (kh, kw, 1, C)',
    kernel_hw1c,
    (None, None, 1, None),
  )
  arguments.check_floating('depthwise_conv2d takes images', x_bhwc)
  if x_bhwc.shape[3] != kernel_hw1c.shape[3]:
    raise ValueError(
      f'images have {x_bhwc.shape[3]} channels, the kernel has '
      f'{kernel_hw1c.shape[3]}'
    )
  if x_bhwc.dtype != kernel_hw1c.dtype:
    raise ValueError(
      f'images are {x_bhwc.dtype}, the kernel is {kernel_hw1c.dtype}'
    )
  if form not in FORMS:
    raise ValueError(f'form must be one of {FORMS}, got {form!r}')
  window = (kernel_hw1c.shape[0], kernel_hw1c.shape[1])
  stride = arguments.pair('strides', strides)
  pads, _ = geometry(x_bhwc.shape[1:3], window, stride, padding)
  if form == 'auto':
    form = 'shifts' if current_platform() == 'cpu' else 'lax'
  if form == 'lax':
    return lax.conv_general_dilated(
      x_bhwc, kernel_hw1c, stride, pads,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=x_bhwc.shape[3],
    )  # fmt: skip
  return _shifts(x_bhwc, kernel_hw1c, stride, pads)


def _shifts(x, kernel, strides, pads):
  """The window's shifted images, each times its row of the kernel, added; of
  as many images at a time as the cache holds."""
  maps = _MAPS * 4 * math.prod(x.shape[1:])
  chunk = chunks.size(chunks.cache_bytes(), maps)
  return _shifted(*varying_axes.alike(x, kernel), strides, pads, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _shifted(x, kernel, strides, pads, chunk):
  def images(_, x_nhwc):
    return None, _correlate(x_nhwc, kernel, strides, pads)

  x_chunks, count = chunks.split(x, chunk)
  return chunks.join(chunks.scan(images, None, x_chunks)[1], count)


def _shifted_fwd(x, kernel, strides, pads, chunk):
  return _shifted(x, kernel, strides, pads, chunk), (x, kernel)


def _shifted_bwd(strides, pads, chunk, residuals, dy):
  """JAX's own would keep every shifted image for the kernel's gradient."""
  x, kernel = residuals
  flipped = kernel[::-1, ::-1]
  window, size = kernel.shape[:2], x.shape[1:3]

  def images(dkernel, maps):
    x_nhwc, dy_nhwc = maps
    dkernel += _kernel_gradient(x_nhwc, dy_nhwc, window, strides, pads)
    spread = _spread(dy_nhwc, size, window, strides, pads)
    return dkernel, _correlate(spread, flipped, (1, 1), ((0, 0), (0, 0)))

  x_chunks, count = chunks.split(x, chunk)
  dy_chunks, _ = chunks.split(dy, chunk)
  zeros = jnp.zeros(kernel.shape, sum_dtype(kernel.dtype))
  zeros, _ = varying_axes.alike(zeros, dy)
  dkernel, dx = chunks.scan(images, zeros, (x_chunks, dy_chunks))
  return chunks.join(dx, count), dkernel.astype(kernel.dtype)


_shifted.defvjp(_shifted_fwd, _shifted_bwd)


def _correlate(x, kernel, strides, pads):
  wide_dtype = sum_dtype(x.dtype)
  kernel = kernel.astype(wide_dtype)
  total = jnp.zeros((), wide_dtype)
  for (i, j), shifted in _windows(x, kernel.shape[:2], strides, pads):
    total += shifted * kernel[i, j][None, None]
  return total.astype(x.dtype)


def _kernel_gradient(x, dy, window, strides, pads):
  """(kh, kw, 1, C)."""
  wide = dy.astype(sum_dtype(dy.dtype))
  rows = [
    (shifted * wide).sum((0, 1, 2))
    for _, shifted in _windows(x, window, strides, pads)
  ]
  return jnp.stack(rows).reshape(*window, 1, -1)


def _windows(x, window, strides, pads):
  """For each place in the window its pixel of every output, (N, H', W', C)."""
  # At least float32, as the products of other forms are summed up in.
  padded = jnp.pad(x, ((0, 0), *pads, (0, 0))).astype(sum_dtype(x.dtype))
  rows, columns = (
    (length - extent) // step + 1
    for length, extent, step in zip(
      padded.shape[1:3], window, strides, strict=True
    )
  )
  for i in range(window[0]):
    for j in range(window[1]):
      last = i + (rows - 1) * strides[0], j + (columns - 1) * strides[1]
      shifted = lax.slice(
        padded,
        (0, i, j, 0),
        (x.shape[0], last[0] + 1, last[1] + 1, x.shape[3]),
        (1, *strides, 1),
      )
      yield (i, j), shifted


def _spread(dy, size, window, strides, pads):
  """Gradients with zeros between and around them, so that the flipped kernel
  meets with each pixel of an image what it has made."""
  config = [(0, 0, 0)]
  for length, made, extent, step, (before, _) in zip(
    size, dy.shape[1:3], window, strides, pads, strict=True
  ):
    first = extent - 1 - before
    last = length + extent - 1 - first - ((made - 1) * step + 1)
    config.append((first, last, step - 1))
  return lax.pad(dy, jnp.zeros((), dy.dtype), [*config, (0, 0, 0)])


class DepthwiseConv(nnx.Module):
  """Depthwise convolution without a bias; its parameter is `kernel`.

  Args:
    features: C.
    kernel_size: one number, or height and width.
    strides, padding, form: as for `depthwise_conv2d`.
    dtype: what to compute in; None takes that of images and parameters.
    param_dtype: what to store the kernel in.
    kernel_init: initialiser of the kernel (kh, kw, 1, C).
    rngs: the stream `params` draws the kernel.
  """

  def __init__(
    self,
    features: int,
    kernel_size: int | Sequence[int] = 3,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = 'SAME',
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    kernel_init: Callable[..., jax.Array] = glorot_uniform,
    form: str = 'auto',
    rngs: nnx.Rngs,
  ):
    if form not in FORMS:
      raise ValueError(f'form must be one of {FORMS}, got {form!r}')
    self.strides = arguments.pair('strides', strides)
    self.padding = checked_padding(padding)
    self.dtype = arguments.floating('dtype', dtype)
    self.form = form
    shape = (
      *arguments.pair('kernel_size', kernel_size),
      1,
      arguments.positive('features', features),
    )
    self.kernel = arguments.parameter(
      'kernel', kernel_init, rngs, shape, param_dtype
    )

  def __call__(self, x_bhwc: jax.Array) -> jax.Array:
    """(B, H, W, C) to (B, H', W', C)."""
    kernel = self.kernel[...]
    channels = kernel.shape[3]
    arguments.check_shape(
      f'DepthwiseConv takes images (B, H, W, {channels})',
      x_bhwc,
      (None, None, None, channels),
    )
    dtype = self.dtype or jnp.result_type(x_bhwc, kernel)
    return depthwise_conv2d(
      x_bhwc.astype(dtype),
      kernel.astype(dtype),
      strides=self.strides,
      padding=self.padding,
      form=self.form,
    )


class SeparableConv(nnx.Module):
  """A depthwise convolution, then a 1x1 convolution; neither has a bias.

  The depthwise one multiplies no channels: Keras' `depth_multiplier` of 1.

  Args:
    in_features: C.
    out_features: O.
    kernel_size, strides, padding: of the depthwise convolution.
    dtype: what to compute in; None takes that of images and parameters.
    kernel_init: initialiser of both kernels.
    rngs: the stream `params` draws the parameters.

  Source: Chollet, Xception, arXiv 1610.02357, section 1.
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    kernel_size: int | Sequence[int] = 3,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = 'SAME',
    dtype: Any = None,
    kernel_init: Callable[..., jax.Array] = glorot_uniform,
    rngs: nnx.Rngs,
  ):
    self.depthwise = DepthwiseConv(
      in_features,
      kernel_size,
      strides=strides,
      padding=padding,
      dtype=dtype,
      kernel_init=kernel_init,
      rngs=rngs,
    )
    self.pointwise = Conv(
      in_features,
      out_features,
      1,
      use_bias=False,
      dtype=dtype,
      kernel_init=kernel_init,
      rngs=rngs,
    )

  def __call__(self, x_bhwc: jax.Array) -> jax.Array:
    """(B, H, W, in_features) to (B, H', W', out_features)."""
    return self.pointwise(self.depthwise(x_bhwc))
