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
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Rows: B', G, A' of section 4.1 for F(2, 3), and of section 4.3 for F(4, 3).
_INPUT = {
  2: np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]),
  4: np.array(
    [
      [4, 0, -5, 0, 1, 0],
      [0, -4, -4, 1, 1, 0],
      [0, 4, -4, -1, 1, 0],
      [0, -2, -1, 2, 1, 0],
      [0, 2, -1, -2, 1, 0],
      [0, 4, 0, -5, 0, 1],
    ]
  ),
}
_KERNEL = {
  2: np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]),
  4: np.array(
    [
      [1 / 4, 0, 0],
      [-1 / 6, -1 / 6, -1 / 6],
      [-1 / 6, 1 / 6, -1 / 6],
      [1 / 24, 1 / 12, 1 / 6],
      [1 / 24, -1 / 12, 1 / 6],
      [0, 0, 1],
    ]
  ),
}
_OUTPUT = {
  2: np.array([[1, 1, 1, 0], [0, 1, -1, -1]]),
  4: np.array(
    [
      [1, 1, 1, 1, 1, 0],
      [0, 1, -1, 2, -2, 0],
      [0, 1, 1, 4, 4, 0],
      [0, 1, -1, 8, -8, 1],
    ]
  ),
}


def winograd_conv(x_bhwc, kernel_hwio, pads, *, tile, chunk):
  """Cross-correlation with a 3x3 kernel at stride 1.

  Args:
    x_bhwc: images (B, H, W, C).
    kernel_hwio: kernel (3, 3, C, O), of the images' dtype.
    pads: ((top, bottom), (left, right)) zeros around an image, not negative.
    tile: m, outputs a tile side: 2 or 4.
    chunk: images worked on together, so that their tiles stay in cache.

  Returns:
    (B, H + top + bottom - 2, W + left + right - 2, O), of the images' dtype.
  """
  return _conv(x_bhwc, kernel_hwio, pads, tile, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x, kernel, pads, tile, chunk):
  rows, cols = _output_size(x.shape, pads)
  u_pqco = _kernel_tiles(kernel, tile)

  def images(x_nhwc):
    v_pqtc, grid = _input_tiles(x_nhwc, pads, tile)
    m_pqto = _product('pqtc,pqco->pqto', v_pqtc, u_pqco)
    y = _output_images(m_pqto, grid, tile)[:, :rows, :cols]
    return y.astype(x.dtype)

  chunks, count = _split(x, chunk)
  return _join(lax.map(images, chunks), count)


def _conv_fwd(x, kernel, pads, tile, chunk):
  return _conv(x, kernel, pads, tile, chunk), (x, kernel)


def _conv_bwd(pads, tile, chunk, residuals, dy):
  x, kernel = residuals
  u_pqco = _kernel_tiles(kernel, tile)

  def images(du_pqco, chunks):
    x_nhwc, dy_nhwo = chunks
    v_pqtc, grid = _input_tiles(x_nhwc, pads, tile)
    dm_pqto = _output_tiles(dy_nhwo, grid, tile)
    du_pqco += _product('pqtc,pqto->pqco', v_pqtc, dm_pqto)
    dv_pqtc = _product('pqto,pqco->pqtc', dm_pqto, u_pqco)
    dx = _input_images(dv_pqtc, grid, x_nhwc.shape, pads, tile)
    return du_pqco, dx.astype(x.dtype)

  x_chunks, count = _split(x, chunk)
  dy_chunks, _ = _split(dy, chunk)
  du_pqco, dx = lax.scan(
    images, jnp.zeros(u_pqco.shape, jnp.float32), (x_chunks, dy_chunks)
  )
  g = _KERNEL[tile]
  du_ijco = _along(_along(du_pqco, g.T, 0), g.T, 1)
  return _join(dx, count), du_ijco.astype(kernel.dtype)


_conv.defvjp(_conv_fwd, _conv_bwd)


def _output_size(shape, pads):
  (top, bottom), (left, right) = pads
  return shape[1] + top + bottom - 2, shape[2] + left + right - 2


def _split(x, chunk):
  """(B, ...) to (chunks, images, ...) of even size, zeros at the end."""
  count = x.shape[0]
  chunks = -(-count // chunk)
  size = -(-count // chunks)
  x = _pad(x, {0: (0, chunks * size - count)})
  return x.reshape(chunks, size, *x.shape[1:]), count


def _join(chunks, count):
  return chunks.reshape(-1, *chunks.shape[2:])[:count]


def _pad(x, widths):
  """Zeros around (or, where negative, less of) the named axes."""
  config = [(*widths.get(axis, (0, 0)), 0) for axis in range(x.ndim)]
  return lax.pad(x, jnp.zeros((), x.dtype), config)


def _product(spec, a, b):
  return jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)


def _combine(parts, coefficients):
  """The sum of coefficient * part, without the zeros and the ones."""
  total = None
  for part, coefficient in zip(parts, coefficients, strict=True):
    if coefficient == 0 or part is None:
      continue
    term = part if abs(coefficient) == 1 else part * abs(float(coefficient))
    if total is None:
      total = term if coefficient > 0 else -term
    else:
      total = total + term if coefficient > 0 else total - term
  return total


def _along(x, matrix, axis):
  """Applies `matrix` along `axis`."""
  parts = [lax.index_in_dim(x, i, axis, False) for i in range(x.shape[axis])]
  return jnp.stack([_combine(parts, row) for row in matrix], axis)


def _kernel_tiles(kernel, tile):
  """(3, 3, C, O) to U (P, Q, C, O)."""
  g = _KERNEL[tile]
  u_pqco = _along(_along(kernel.astype(jnp.float32), g, 0), g, 1)
  return u_pqco.astype(kernel.dtype)


def _strided(x, start, count, stride, axis):
  return lax.slice_in_dim(
    x, start, start + (count - 1) * stride + 1, stride, axis
  )


def _input_tiles(x_nhwc, pads, tile):
  """Images to V (P, Q, T, C) and the grid of tiles (N, R, S)."""
  height, width = _output_size(x_nhwc.shape, pads)
  r, s = -(-height // tile), -(-width // tile)
  (top, bottom), (left, right) = pads
  x = _pad(
    x_nhwc,
    {
      1: (top, bottom + r * tile - height),
      2: (left, right + s * tile - width),
    },
  )
  matrix = _INPUT[tile]
  slices = [_strided(x, i, r, tile, 1) for i in range(tile + 2)]
  rows = jnp.stack([_combine(slices, row) for row in matrix])
  slices = [_strided(rows, i, s, tile, 3) for i in range(tile + 2)]
  v = jnp.stack([_combine(slices, row) for row in matrix], 1)
  n, c = x.shape[0], x.shape[3]
  return v.reshape(*v.shape[:2], n * r * s, c), (n, r, s)


def _input_images(dv_pqtc, grid, shape, pads, tile):
  """Transpose of `_input_tiles`."""
  n, r, s = grid
  matrix = _INPUT[tile].T
  c = dv_pqtc.shape[-1]
  dv = dv_pqtc.reshape(*dv_pqtc.shape[:2], n, r, s, c)
  columns = [dv[:, q] for q in range(tile + 2)]
  rows_pnrwc = _overlap_add([_combine(columns, row) for row in matrix], 3)
  rows = list(rows_pnrwc)
  dx = _overlap_add([_combine(rows, row) for row in matrix], 1)
  (top, _), (left, _) = pads
  return dx[:, top : top + shape[1], left : left + shape[2]]


def _overlap_add(elements, axis):
  """Tiles given by element, stepping by len - 2, to their sum on `axis`."""
  tile = len(elements) - 2
  elements = [_pad(e, {axis: (0, 1)}) for e in elements[:tile]] + [
    _pad(e, {axis: (1, 0)}) for e in elements[tile:]
  ]
  parts = [
    elements[i] + elements[tile + i] if i < 2 else elements[i]
    for i in range(tile)
  ]
  return _interleave(parts, axis)


def _interleave(parts, axis):
  x = jnp.stack(parts, axis + 1)
  shape = list(x.shape)
  shape[axis : axis + 2] = [shape[axis] * shape[axis + 1]]
  return x.reshape(shape)


def _output_images(m_pqto, grid, tile):
  """M (P, Q, T, O) to images (N, R * m, S * m, O)."""
  matrix = _OUTPUT[tile]
  m = m_pqto.reshape(*m_pqto.shape[:2], *grid, m_pqto.shape[-1])
  columns = [m[:, q] for q in range(tile + 2)]
  rows = list(_interleave([_combine(columns, row) for row in matrix], 3))
  return _interleave([_combine(rows, row) for row in matrix], 1)


def _output_tiles(dy_nhwo, grid, tile):
  """Transpose of `_output_images`, of the dtype of the gradient."""
  n, r, s = grid
  _, height, width, features = dy_nhwo.shape
  dy = _pad(dy_nhwo, {1: (0, r * tile - height), 2: (0, s * tile - width)})
  matrix = _OUTPUT[tile].T
  slices = [_strided(dy, i, r, tile, 1) for i in range(tile)]
  rows = jnp.stack([_combine(slices, row) for row in matrix])
  slices = [_strided(rows, i, s, tile, 3) for i in range(tile)]
  dm = jnp.stack([_combine(slices, row) for row in matrix], 1)
  return dm.reshape(*dm.shape[:2], n * r * s, features)
