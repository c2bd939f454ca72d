"""3x3 convolution with stride 1 by minimal filtering, in plain JAX.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks
(arXiv 1509.09308), section 4. F(m x m, 3 x 3) computes a tile of m x m
outputs from a = m + 2 squared inputs with a * a products a channel pair
instead of 9 * m * m: 2.25 times fewer for m = 2, 4 times for m = 4.

    V = B' d B     input tile            M = sum over channels of U * V
    U = G g G'     kernel                Y = A' M A

The transforms are additions of strided slices, and the sum over channels is
one matrix product a tile element. All three are linear, so the backward pass
is their transposes: the gradient of the tiles, A dY A', serves both the
kernel's gradient (V' dM) and the input's (dM U', then overlap-add).

Legend: N images of a chunk, R x S tiles of an image, P x Q tile elements
(a x a), T = N * R * S tiles, C input channels, O output channels.

Tile elements are kept as P rows (Q T C), not in one array, and each row is a
product of its own: XLA's CPU runtime computes a batched product on one thread
unless it has a thousand rows, and gives products to several threads where
several are ready. A train step of `cnn_lstm_model3`, batch 64, two cores: 326
images/s against 199 with one product of all elements, and against 321 with two
products a row, which take half as long again to compile (jax 0.10.2).
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fer_jax.nn import chunks, varying_axes
from fer_jax.nn.dtypes import sum_dtype

# Interpolation points beside infinity, taken from the left. With 2 for 1/2,
# as in the paper, F(4, 3) has three times the rounding error: 9e-6 of the
# largest element against 3e-6 at 12x12x128.
_POINTS = (0, 1, -1, 0.5, -2)
_SUM = _POINTS.index(1)
# Chunks are of images whose tiles, V and M, fill the cache, or this many times
# as large as U, which every chunk reads again. Images/s of train steps of batch
# 64 with chunks of 8, 4, 2 and 1 MiB, one core with 2 MiB of cache:
# `cnn_lstm_model3` 219, 230, 242, 260; `cnn_model1` 634, 640, 692, 670;
# `residual_bilstm`, most of whose kernels are large, 236 to 240. Batch 4, a
# device of two cores, 8 and 2 MiB: 253 and 236, 954 and 738 of the first two
# (jax 0.10.2).
_CHUNK_KERNELS = 3


class _Algorithm(NamedTuple):
  """Matrices of one dimension, and where its tiles lie."""

  input: np.ndarray  # B' (elements, window)
  kernel: np.ndarray  # G (elements, 3)
  output: np.ndarray  # A' (tile, elements)
  step: int  # inputs from a tile to the next: tile * stride


def _toom_cook(outputs, taps):
  """B', G and A' of `outputs` correlations with `taps` taps."""
  elements = outputs + taps - 1
  points = _POINTS[: elements - 1]
  scale = [
    np.prod([p - q for q in points if q != p], initial=1.0) for p in points
  ]

  def evaluate(degree):
    at_infinity = np.eye(degree)[-1:]
    finite = np.vander(points, degree, increasing=True)
    return np.concatenate([finite, at_infinity]).astype(np.float64)

  kernel = evaluate(taps) / np.array([*scale, 1.0])[:, None]
  output = evaluate(outputs).T
  # What makes A' ((G g) * (B' d)) the correlation, for all g and d. The
  # denominators are in G, so but for the point 1/2 these are whole numbers.
  equations = np.einsum('te,ej->tje', output, kernel).reshape(-1, elements)
  wanted = [
    [t + j == k for k in range(elements)]
    for t in range(outputs)
    for j in range(taps)
  ]
  solution = np.linalg.lstsq(equations, np.array(wanted, float), rcond=None)[0]
  return np.round(solution * 4) / 4, kernel, output


@functools.cache
def _algorithm(tile, stride):
  """F(tile, 3) with steps of 1 or 2.

  With steps of 2 the even inputs meet taps 0 and 2, which is F(tile, 2), and
  the odd ones tap 1, which is a product each.
  """
  if stride == 1:
    return _Algorithm(*_toom_cook(tile, 3), tile)
  even_input, even_kernel, even_output = _toom_cook(tile, 2)
  elements = even_input.shape[0]
  input_ = np.zeros((elements + tile, 2 * tile + 1))
  input_[:elements, 0::2] = even_input
  input_[elements:, 1::2] = np.eye(tile)
  kernel = np.zeros((elements + tile, 3))
  kernel[:elements, 0::2] = even_kernel
  kernel[elements:, 1] = 1
  output = np.concatenate([even_output, np.eye(tile)], 1)
  return _Algorithm(input_, kernel, output, 2 * tile)


def products(output_size, stride, tile):
  """Products an image and channel pair, against 9 an output directly."""
  elements = tile + 2 if stride == 1 else 2 * tile + 1
  return math.prod(elements * -(-length // tile) for length in output_size)


def winograd_conv(
  x_bhwc, kernel_hwio, bias_o, pads, *, stride, tile, chunk=None
) -> Any:
  """Cross-correlation with a 3x3 kernel, and a bias.

  Args:
    x_bhwc: images (B, H, W, C).
    kernel_hwio: kernel (3, 3, C, O), of the images' dtype.
    bias_o: (O,), of the images' dtype; None for none.
    pads: ((top, bottom), (left, right)) zeros around an image, not negative.
    stride: 1 or 2, both ways.
    tile: m, outputs a tile side: 2, 3 or 4.
    chunk: images worked on together; None for what the cache holds.

  Returns:
    (B, H', W', O), of the images' dtype, where H' is
    (H + top + bottom - 3) // stride + 1.
  """
  grid = _grid(x_bhwc.shape, pads, stride, tile)
  channels, features = kernel_hwio.shape[2:]
  if not x_bhwc.shape[0]:
    return jnp.zeros((0, *grid.size, features), x_bhwc.dtype)
  if chunk is None:
    image = 4 * products(grid.size, stride, tile) * (channels + features)
    kernel = 4 * products((1, 1), stride, tile) * channels * features
    wanted = max(chunks.cache_bytes(), _CHUNK_KERNELS * kernel)
    chunk = chunks.size(wanted, image)
  operands = varying_axes.alike(x_bhwc, kernel_hwio, bias_o)
  return _conv(*operands, pads, stride, tile, chunk)


class _Grid(NamedTuple):
  """How the tiles of a chunk of images lie."""

  algorithm: _Algorithm
  pads: tuple
  images: tuple  # N, H, W
  size: tuple  # H', W'
  tiles: tuple  # R, S


def _grid(shape, pads, stride, tile):
  size = tuple(
    (length + sum(pad) - 3) // stride + 1
    for length, pad in zip(shape[1:3], pads, strict=True)
  )
  tiles = tuple(-(-length // tile) for length in size)
  return _Grid(_algorithm(tile, stride), pads, tuple(shape[:3]), size, tiles)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _conv(x, kernel, bias, pads, stride, tile, chunk):
  x_chunks, count = chunks.split(x, chunk)
  grid = _grid(x_chunks.shape[1:], pads, stride, tile)
  u = list(_kernel_tiles(kernel, grid))

  def images(_, x_nhwc):
    v = _input_tiles(x_nhwc, grid)
    m = _products('qtc,qco->qto', v, u)
    y = _output_images(m, grid)
    # Here, while the chunk is in the cache: added to the whole afterwards, a
    # bias costs another pass over memory, and its gradient two.
    if bias is not None:
      y += bias.astype(y.dtype)[None, None, None]
    return None, y.astype(x.dtype)

  return chunks.join(chunks.scan(images, None, x_chunks)[1], count)


def _conv_fwd(x, kernel, bias, pads, stride, tile, chunk):
  y = _conv(x, kernel, bias, pads, stride, tile, chunk)
  return y, (x, kernel, bias)


def _conv_bwd(pads, stride, tile, chunk, residuals, dy):
  x, kernel, bias = residuals
  x_chunks, count = chunks.split(x, chunk)
  dy_chunks, _ = chunks.split(dy, chunk)
  grid = _grid(x_chunks.shape[1:], pads, stride, tile)
  u_pqco = _kernel_tiles(kernel, grid)
  # Transposed here once: every chunk's product would do it again.
  u_transposed = list(u_pqco.swapaxes(2, 3))
  wide = sum_dtype(u_pqco.dtype)

  def images(sums, maps):
    du, dbias = sums
    x_nhwc, dy_nhwo = maps
    v = _input_tiles(x_nhwc, grid)
    dm = _output_tiles(dy_nhwo, grid)
    du = jax.tree.map(jnp.add, du, _products('qtc,qto->qco', v, dm))
    if bias is not None:
      # Evaluated at the point 1, outputs are added up: sums of tiles.
      dbias += dm[_SUM][_SUM].astype(wide).sum(0)
    dv = _products('qto,qoc->qtc', dm, u_transposed)
    return (du, dbias), _input_images(dv, grid).astype(x.dtype)

  du = list(jnp.zeros(u_pqco.shape, wide))
  sums = du, None if bias is None else jnp.zeros(bias.shape, wide)
  sums, _ = varying_axes.alike(sums, dy)
  (du, dbias), dx = chunks.scan(images, sums, (x_chunks, dy_chunks))
  du_pqco = jnp.stack(du)
  g = grid.algorithm.kernel.T
  dkernel = _along(_along(du_pqco, g, 0), g, 1).astype(kernel.dtype)
  if dbias is not None:
    dbias = dbias.astype(kernel.dtype)
  return chunks.join(dx, count), dkernel, dbias


_conv.defvjp(_conv_fwd, _conv_bwd)


def _pad(x, widths):
  """Zeros around (or, where negative, less of) the named axes."""
  config = [(*widths.get(axis, (0, 0)), 0) for axis in range(x.ndim)]
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def _products(spec, a, b):
  """The products of rows."""
  return [
    jnp.einsum(spec, x, y, preferred_element_type=sum_dtype(x.dtype))
    for x, y in zip(a, b, strict=True)
  ]


def _combine(parts, coefficients):
  """The sum of coefficient * part, without the zeros and the ones."""
  terms = [(p, c) for p, c in zip(parts, coefficients, strict=True) if c != 0]
  part, coefficient = terms[0]
  total = part if coefficient == 1 else part * float(coefficient)
  for part, coefficient in terms[1:]:
    size = abs(float(coefficient))
    term = part if size == 1 else part * size
    total = total + term if coefficient > 0 else total - term
  return total


def _along(x, matrix, axis):
  """Applies `matrix` along `axis`."""
  parts = [lax.index_in_dim(x, i, axis, False) for i in range(x.shape[axis])]
  return jnp.stack([_combine(parts, row) for row in matrix], axis)


def _windows(x, matrix, count, step, axis):
  """Applies `matrix` to `count` windows along `axis`, `step` apart.

  A list with an array for each row of the matrix.
  """
  last = (count - 1) * step + 1
  parts = [
    lax.slice_in_dim(x, i, i + last, step, axis) for i in range(matrix.shape[1])
  ]
  return [_combine(parts, row) for row in matrix]


def _tiles(x, matrix, tiles, step):
  """P rows (Q, T, C) of images that the tiles just cover."""
  rows = []
  for row in _windows(x, matrix, tiles[0], step, 1):
    elements = [
      element.reshape(-1, x.shape[-1])
      for element in _windows(row, matrix, tiles[1], step, 2)
    ]
    rows.append(jnp.stack(elements))
  return rows


def _images(tile_rows, matrix, tiles, step):
  """Transpose of `_tiles`, for the transpose of its matrix."""
  rows = []
  for row in tile_rows:
    columns = [
      element.reshape(-1, *tiles, element.shape[-1]) for element in row
    ]
    rows.append(_overlap_add([_combine(columns, r) for r in matrix], step, 2))
  return _overlap_add([_combine(rows, r) for r in matrix], step, 1)


def _overlap_add(parts, step, axis):
  """Transpose of windows: element i of window t goes to i + step * t."""
  if len(parts) > step:
    first = [_pad(p, {axis: (0, 1)}) for p in parts[:step]]
    second = [_pad(p, {axis: (1, 0)}) for p in parts[step:]]
    parts = [a + b for a, b in zip(first, second, strict=False)]
    parts += first[len(second) :]
  x = jnp.stack(parts, axis + 1)
  shape = list(x.shape)
  shape[axis : axis + 2] = [-1]
  return x.reshape(shape)


def _kernel_tiles(kernel, grid):
  """(3, 3, C, O) to U (P, Q, C, O)."""
  g = grid.algorithm.kernel
  wide = kernel.astype(sum_dtype(kernel.dtype))
  u_pqco = _along(_along(wide, g, 0), g, 1)
  return u_pqco.astype(kernel.dtype)


def _input_tiles(x_nhwc, grid):
  """Images to V."""
  matrix, step = grid.algorithm.input, grid.algorithm.step
  widths = {}
  for axis in (1, 2):
    before = grid.pads[axis - 1][0]
    length = (grid.tiles[axis - 1] - 1) * step + matrix.shape[1]
    widths[axis] = (before, length - before - x_nhwc.shape[axis])
  return _tiles(_pad(x_nhwc, widths), matrix, grid.tiles, step)


def _input_images(dv, grid):
  """Transpose of `_input_tiles`."""
  dx = _images(dv, grid.algorithm.input.T, grid.tiles, grid.algorithm.step)
  widths = {}
  for axis in (1, 2):
    before = grid.pads[axis - 1][0]
    length = grid.images[axis]
    widths[axis] = (-before, length + before - dx.shape[axis])
  return _pad(dx, widths)


def _output_images(m, grid):
  """M to images (N, H', W', O)."""
  matrix = grid.algorithm.output
  y = _images(m, matrix, grid.tiles, matrix.shape[0])
  return y[:, : grid.size[0], : grid.size[1]]


def _output_tiles(dy_nhwo, grid):
  """Transpose of `_output_images`, of the dtype of the gradient."""
  matrix = grid.algorithm.output.T
  tile = matrix.shape[1]
  (height, width), (r, s) = grid.size, grid.tiles
  dy = _pad(dy_nhwo, {1: (0, r * tile - height), 2: (0, s * tile - width)})
  return _tiles(dy, matrix, grid.tiles, tile)
