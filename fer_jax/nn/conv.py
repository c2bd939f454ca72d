"""2-D convolution that is fast inside loops and under vmap on CPU too.

Legend: B batch, H x W pixels, C input channels, O output channels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from fer_jax.nn import arguments
from fer_jax.nn.dtypes import sum_dtype
from fer_jax.nn.platforms import current_platform
from fer_jax.nn.winograd import products, winograd_conv

FORMS = ('auto', 'lax', 'patches', 'winograd2', 'winograd3', 'winograd4')

_KERNEL_INIT = nnx.initializers.lecun_normal()
_FEW_CHANNELS = 8
"""Below which Winograd's transforms cost more than the products they save."""

Padding = str | int | Sequence[int | tuple[int, int]]
Pads = tuple[tuple[int, int], tuple[int, int]]


def conv2d(
  x_bhwc: jax.Array,
  kernel_hwio: jax.Array,
  bias_o: jax.Array | None = None,
  *,
  strides: int | Sequence[int] = (1, 1),
  padding: Padding = 'SAME',
  form: str = 'auto',
) -> jax.Array:
  """Cross-correlates images with a kernel, as `lax.conv_general_dilated`.

  Args:
    x_bhwc: images (B, H, W, C), floating.
    kernel_hwio: kernel (kh, kw, C, O) of the same dtype.
    bias_o: (O,), added to every pixel, of the same dtype; None for none.
    strides: steps down and across, or one number for both.
    padding: 'SAME', 'VALID', one number, or a number or a (before, after)
      pair each for H and W.
    form: how it is computed; one of `FORMS`. 'auto' asks `choose_form`. All
      give the same values to rounding, and the same gradients; none but
      'lax' has a forward-mode derivative of its own. 'auto' asks where it is
      traced: what is exported for another platform wants 'lax'. So does a
      batch that `jax.jit` alone divides over devices, where Winograd gathers
      it on every one; inside `jax.shard_map` it does not.

  Returns:
    (B, H', W', O), of the images' dtype.

  Raises:
    ValueError: where shapes, dtypes, padding or form do not go together.
  """
  any_size = (None,) * 4
  arguments.check_shape('conv2d takes images (B, H, W, C)', x_bhwc, any_size)
  arguments.check_shape(
    'conv2d takes a kernel (kh, kw, C, O)', kernel_hwio, any_size
  )
  arguments.check_floating('conv2d takes images', x_bhwc)
  if x_bhwc.shape[3] != kernel_hwio.shape[2]:
    raise ValueError(
      f'images have {x_bhwc.shape[3]} channels, the kernel expects '
      f'{kernel_hwio.shape[2]}'
    )
  if x_bhwc.dtype != kernel_hwio.dtype:
    raise ValueError(
      f'images are {x_bhwc.dtype}, the kernel is {kernel_hwio.dtype}'
    )
  if bias_o is not None:
    takes = f'the bias must be {x_bhwc.dtype} ({kernel_hwio.shape[3]},)'
    arguments.check_shape(takes, bias_o, kernel_hwio.shape[3:])
    if bias_o.dtype != x_bhwc.dtype:
      raise ValueError(f'{takes}, got {bias_o.dtype}')
  kernel_size = (kernel_hwio.shape[0], kernel_hwio.shape[1])
  stride = arguments.pair('strides', strides)
  pads, output_size = geometry(x_bhwc.shape[1:3], kernel_size, stride, padding)
  if form == 'auto':
    form = choose_form(
      current_platform(),
      kernel_size=kernel_size,
      strides=stride,
      in_features=kernel_hwio.shape[2],
      out_features=kernel_hwio.shape[3],
      output_size=output_size,
      batch=x_bhwc.shape[0],
      dtype=x_bhwc.dtype,
    )
  if form == 'lax':
    y = lax.conv_general_dilated(
      x_bhwc, kernel_hwio, stride, pads,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )  # fmt: skip
    return y if bias_o is None else y + bias_o[None, None, None]
  if form == 'patches':
    return _patches_conv(x_bhwc, kernel_hwio, bias_o, stride, pads, output_size)
  if form not in FORMS:
    raise ValueError(f'form must be one of {FORMS}, got {form!r}')
  if kernel_size != (3, 3) or stride not in ((1, 1), (2, 2)):
    raise ValueError(
      f'{form} is for 3x3 kernels at stride 1 or 2, got {kernel_size} at '
      f'{stride}'
    )
  if form != 'winograd2' and x_bhwc.dtype != jnp.float32:
    raise ValueError(
      f'{form} loses too much precision in {x_bhwc.dtype}: use winograd2'
    )
  tile = int(form[-1])
  return winograd_conv(
    x_bhwc, kernel_hwio, bias_o, pads, stride=stride[0], tile=tile
  )


def choose_form(
  platform: str,
  *,
  kernel_size: tuple[int, int],
  strides: tuple[int, int],
  in_features: int,
  out_features: int,
  output_size: tuple[int, ...],
  batch: Any,
  dtype: Any,
) -> str:
  """The fastest form of a convolution, one of `FORMS` without 'auto'.

  `batch` is of one device, and one that `jax.export` leaves open counts as
  large. So the same image may differ by rounding between batches of different
  sizes, though never by what the other images are.
  """
  if platform != 'cpu':
    return 'lax'
  # lax.conv is no choice on CPU even where it is as fast, since inside a loop
  # XLA falls back to scalar code for its gradients.
  if kernel_size != (3, 3) or min(in_features, out_features) < _FEW_CHANNELS:
    return 'patches'
  if strides not in ((1, 1), (2, 2)):
    return 'patches'
  # The fewest products win, counted a pair of channels. Forward and both
  # gradients, batch 64, float32, in a fori_loop; ms of processor time over two
  # AVX-512 cores, median of 8 to 15 (jax 0.10.2):
  #   output, channels     patches   tiles of 2     3     4
  #   24x24    64 ->  64       182            -    71    52
  #   12x12   128 -> 128       140           72    54    48
  #   6x6     256 -> 256       127           72    45    82
  #   12x12    64 -> 128 /2     70           70    54    65
  #   6x6     128 -> 256 /2     53           53    46   105
  # At stride 2 tiles of 4 save 7 % of the products of tiles of 3 at best, and
  # their transforms cost more.
  sides = (2, 3, 4) if strides == (1, 1) else (2, 3)
  if dtype != jnp.float32:
    sides = (2,)
  # A few images of many channels do not repay transforms of the kernel. Of 4
  # images, ms on two cores with AVX2 (an EPYC 7003) and, busy, with AVX-512:
  #   output, channels   patches     tiles of 2          3          4
  #   6x6   512 -> 512   17   30       34    74    44  146    84  313
  #   12x12 512 -> 512   72  135       52   196    62  203   102  198
  #   12x12 128 -> 128    5    8        4    11     4    7     4    7
  images, more_tiles = 1, 0
  if isinstance(batch, int):
    images, more_tiles = batch, _transform_tiles(in_features, out_features)
  costs = {'patches': images * 9 * math.prod(output_size)}
  for side in sides:
    costs[f'winograd{side}'] = images * products(
      output_size, strides[0], side
    ) + more_tiles * products((1, 1), strides[0], side)
  return min(costs, key=lambda form: costs[form])


def _transform_tiles(in_features, out_features):
  """How many tiles' products take as long as transforms of the kernel.

  Fitted to 66 convolutions of 4 to 64 images. A transformed kernel that does
  not stay in the cache costs the most.
  """
  return min(200, in_features * out_features // 512)


def geometry(
  size: Sequence[int],
  kernel_size: tuple[int, int],
  strides: tuple[int, int],
  padding: Padding,
) -> tuple[Pads, tuple[int, ...]]:
  """Padding of a convolution over images of `size`, and its output's size.

  Raises:
    ValueError: where no output is left.
  """
  pads = resolve_padding(padding, size, kernel_size, strides)
  output_size = tuple(
    (length + sum(pad) - k) // step + 1
    for length, pad, k, step in zip(
      size, pads, kernel_size, strides, strict=True
    )
  )
  if min(output_size) < 1:
    raise ValueError(
      f'a kernel of {kernel_size} leaves no output of images of '
      f'{size} with padding {pads}'
    )
  return pads, output_size


def resolve_padding(
  padding: Padding,
  size: Sequence[int],
  window: Sequence[int],
  strides: Sequence[int],
) -> Pads:
  """`padding` as ((top, bottom), (left, right)) for images of `size`."""
  padding = checked_padding(padding)
  if not isinstance(padding, str):
    return padding
  (top, bottom), (left, right) = lax.padtype_to_pads(
    size, window, strides, padding
  )
  return (int(top), int(bottom)), (int(left), int(right))


def checked_padding(padding: Padding) -> str | Pads:
  """`padding` as 'SAME', 'VALID' or ((top, bottom), (left, right)).

  Raises:
    ValueError: for what `conv2d` does not take.
  """
  if isinstance(padding, str) and padding.upper() in ('SAME', 'VALID'):
    return padding.upper()
  sides = arguments.twice(padding) or ()
  pads = [arguments.twice(side) or () for side in sides]
  numbers = [n for pad in pads for n in pad]
  if len(numbers) != 4 or not all(
    arguments.is_int(n) and n >= 0 for n in numbers
  ):
    arguments.refuse(
      'padding',
      "'SAME' or 'VALID', a number, or a number or (before, after) pair each "
      'for height and width, none negative',
      padding,
    )
  top, bottom, left, right = map(int, numbers)
  return (top, bottom), (left, right)


def _patches_conv(x, kernel, bias, strides, pads, output_size):
  """Every pixel's window of the images, times the kernel."""
  kh, kw, channels, features = kernel.shape
  x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
  rows, columns = output_size
  patches = [
    lax.slice(
      x,
      (0, i, j, 0),
      (
        x.shape[0],
        i + (rows - 1) * strides[0] + 1,
        j + (columns - 1) * strides[1] + 1,
        channels,
      ),
      (1, *strides, 1),
    )
    for i in range(kh)
    for j in range(kw)
  ]
  matrix = kernel.reshape(-1, features)
  wide = sum_dtype(x.dtype)
  if channels < _FEW_CHANNELS:
    # Few channels beside each other would be copied one by one. So windows lie
    # along the first axis; and there a row of ones costs nothing, where adding
    # the bias afterwards costs a pass over memory, and its gradient two.
    stack = jnp.concatenate([jnp.moveaxis(p, 3, 0) for p in patches])
    if bias is not None:
      stack = jnp.concatenate([stack, jnp.ones_like(stack[:1])])
      matrix = jnp.concatenate([matrix, bias[None]])
    y = jnp.einsum(
      'kp,ko->po',
      stack.reshape(stack.shape[0], -1),
      matrix,
      preferred_element_type=wide,
    )
    return y.astype(x.dtype).reshape(-1, rows, columns, features)
  stack = jnp.concatenate(patches, -1) if len(patches) > 1 else patches[0]
  y = jnp.dot(
    stack.reshape(-1, stack.shape[-1]), matrix, preferred_element_type=wide
  )
  if bias is not None:
    y += bias.astype(y.dtype)[None]
  return y.astype(x.dtype).reshape(-1, rows, columns, features)


class Conv(nnx.Module):
  """2-D convolution with a bias; parameters `kernel` and `bias`.

  Args:
    in_features: C.
    out_features: O.
    kernel_size: one number, or height and width.
    strides, padding, form: as for `conv2d`, which says where a form of
      'auto' is not the one to take.
    use_bias: whether to add a bias (O,).
    dtype: what to compute in; None takes that of images and parameters.
    param_dtype: what to store parameters in.
    kernel_init, bias_init: initialisers.
    rngs: the stream `params` draws the parameters.
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    kernel_size: int | Sequence[int] = 3,
    *,
    strides: int | Sequence[int] = 1,
    padding: Padding = 'SAME',
    use_bias: bool = True,
    dtype: Any = None,
    param_dtype: Any = jnp.float32,
    kernel_init: Callable[..., jax.Array] = _KERNEL_INIT,
    bias_init: Callable[..., jax.Array] = nnx.initializers.zeros,
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
      arguments.positive('in_features', in_features),
      arguments.positive('out_features', out_features),
    )
    self.kernel = arguments.parameter(
      'kernel', kernel_init, rngs, shape, param_dtype
    )
    self.bias = nnx.data(None)
    if arguments.flag('use_bias', use_bias):
      self.bias = arguments.parameter(
        'bias', bias_init, rngs, shape[-1:], param_dtype
      )

  def __call__(self, x_bhwc: jax.Array) -> jax.Array:
    """(B, H, W, in_features) to (B, H', W', out_features)."""
    kernel = self.kernel[...]
    channels = kernel.shape[2]
    arguments.check_shape(
      f'Conv takes images (B, H, W, {channels})',
      x_bhwc,
      (None, None, None, channels),
    )
    dtype = self.dtype or jnp.result_type(x_bhwc, kernel)
    bias = None if self.bias is None else self.bias[...].astype(dtype)
    return conv2d(
      x_bhwc.astype(dtype),
      kernel.astype(dtype),
      bias,
      strides=self.strides,
      padding=self.padding,
      form=self.form,
    )
