"""The ImageNet networks as plain layers, of the sizes and cost of Keras'.

Sources: DenseNet, arXiv 1608.06993, table 1; VGG, arXiv 1409.1556, table 1,
column D; Xception, arXiv 1610.02357, figure 5. Preprocessing is left out:
contenders are fed random images.
"""

from fer_jax.benchmark.architecture import Layer, Shape

_NORM = {
  'densenet121': {'momentum': 0.99, 'epsilon': 1.001e-5},
  'xception': {'momentum': 0.99, 'epsilon': 1e-3},
}


def layers(name: str, shape: Shape) -> tuple[list[Layer], Shape]:
  """The layers of a network on RGB images, and the shape they give.

  Args:
    name: 'densenet121', 'vgg16' or 'xception'.
    shape: (H, W, C) of the images; grey ones are repeated to RGB.
  """
  build = {'densenet121': _densenet, 'vgg16': _vgg, 'xception': _xception}
  repeat: list[Layer] = [{'layer': 'repeat'}] if shape[2] == 1 else []
  found, size = build[name]((*shape[:2], 3))
  return repeat + found, size


def conv(
  inputs: int, filters: int, kernel: int, strides: int = 1, **more
) -> Layer:
  """A convolution, 'SAME' and without bias unless told otherwise."""
  return {
    'layer': 'conv',
    'inputs': inputs,
    'filters': filters,
    'kernel': kernel,
    'strides': strides,
    'padding': 'SAME',
    'bias': False,
    **more,
  }


_RELU: Layer = {'layer': 'relu'}


def _norm(name: str, features: int) -> Layer:
  return {'layer': 'batch_norm', 'features': features, **_NORM[name]}


def _overlapping_pool() -> Layer:
  """3 x 3 windows, two apart, half the size rounded up."""
  return {'layer': 'max_pool', 'window': 3, 'strides': 2, 'padding': 'SAME'}


def _vgg(shape):
  result: list[Layer] = []
  rows, columns, inputs = shape
  for repeats, filters in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
    for _ in range(repeats):
      result += [conv(inputs, filters, 3, bias=True), _RELU]
      inputs = filters
    result.append({'layer': 'max_pool', 'window': 2})
    rows, columns = rows // 2, columns // 2
  return result, (rows, columns, inputs)


def _densenet(shape):
  def norm(features):
    return [_norm('densenet121', features), _RELU]

  rows, columns, _ = shape
  result = [conv(3, 64, 7, 2), *norm(64), _overlapping_pool()]
  rows, columns, width = -(-rows // 4), -(-columns // 4), 64
  for n, repeats in enumerate((6, 12, 24, 16)):
    if n:
      pool = {'layer': 'avg_pool', 'window': 2}
      result += [*norm(width), conv(width, width // 2, 1), pool]
      rows, columns, width = rows // 2, columns // 2, width // 2
    for _ in range(repeats):
      body = [*norm(width), conv(width, 128, 1), *norm(128), conv(128, 32, 3)]
      result.append({'layer': 'concatenate', 'body': body})
      width += 32
  return [*result, *norm(width)], (rows, columns, width)


def _xception(shape):
  def norm(features):
    return _norm('xception', features)

  def separable(inputs, filters):
    return [
      conv(inputs, inputs, 3, groups=inputs),
      conv(inputs, filters, 1),
      norm(filters),
    ]

  def block(inputs, *widths, relu_first=True):
    body: list[Layer] = []
    for n, width in enumerate(widths):
      body += [_RELU] * bool(n or relu_first) + separable(inputs, width)
      inputs = width
    return body

  rows, columns, _ = shape
  result = [
    conv(3, 32, 3, 2, padding='VALID'), norm(32), _RELU,
    conv(32, 64, 3, padding='VALID'), norm(64), _RELU,
  ]  # fmt: skip
  rows, columns = (rows - 5) // 2, (columns - 5) // 2
  inputs = 64
  for widths in ((128, 128), (256, 256), (728, 728), (728, 1024)):
    if widths[-1] == 1024:
      body = block(728, 728, 728, 728)
      result += [{'layer': 'residual', 'body': body, 'skip': []}] * 8
    body = block(inputs, *widths, relu_first=inputs != 64)
    skip = [conv(inputs, widths[-1], 1, 2), norm(widths[-1])]
    result.append(
      {
        'layer': 'residual',
        'body': [*body, _overlapping_pool()],
        'skip': skip,
      }
    )
    inputs = widths[-1]
    rows, columns = -(-rows // 2), -(-columns // 2)
  result += [*separable(1024, 1536), _RELU, *separable(1536, 2048), _RELU]
  return result, (rows, columns, 2048)
