"""From a model's specification to the layers that contenders build."""

import math

from fer_jax.benchmark import backbones
from fer_jax.benchmark.architecture import Layer, Shape
from fer_jax.models import specification as spec

# Those of a residual block.
MOMENTUM = 0.9
EPSILON = 1e-5


def layers(
  specification: spec.Specification, *, num_classes: int
) -> list[Layer]:
  """Every layer of a model for images, in order, with its sizes.

  Args:
    specification: of the model.
    num_classes: K, the last layer's width.

  Raises:
    ValueError: for what peers cannot be asked for.
  """
  if specification.dtype != 'float32':
    raise ValueError(
      f'peers compute in float32, the model in {specification.dtype}'
    )
  shape: Shape = specification.input_shape
  result: list[Layer] = []
  for stage in (
    *specification.backbone,
    *specification.body,
    *specification.head,
  ):
    added, shape = _stage(stage, shape)
    result += added
  return [*result, _dense(shape[0], num_classes)]


def _stage(stage: spec.Stage, shape: Shape) -> tuple[list[Layer], Shape]:
  """The layers of a stage that gets `shape`, and the shape they give."""
  match stage:
    case spec.Convolution():
      conv, size = _conv(
        shape,
        stage.filters,
        stage.kernel_size,
        stage.strides,
        padding=stage.padding,
        bias=stage.use_bias,
      )
      norm = (
        [_batch_norm(stage.filters, stage.momentum, stage.epsilon)]
        if stage.normalise
        else []
      )
      relu = [{'layer': 'relu'}] if stage.relu else []
      return [conv, *norm, *relu], size
    case spec.MaxPool():
      pool = {'layer': 'max_pool', 'window': stage.window}
      rows, columns = (n // stage.window for n in shape[:2])
      return [pool], (rows, columns, shape[2])
    case spec.Residual():
      return _residual(stage, shape)
    case spec.Backbone():
      if stage.family != 'keras':
        raise ValueError(f"peers build Keras' form of {stage.name}")
      return backbones.layers(stage.name, shape)
    case spec.Drop():
      return [{'layer': 'dropout', 'rate': stage.rate}], shape
    case spec.Reshape():
      return [_reshape(stage.shape)], stage.shape
    case spec.Flatten():
      flat = (math.prod(shape),)
      return [_reshape(flat)], flat
    case spec.Steps():
      size = math.prod(shape)
      width = stage.features or size
      return [_reshape((size // width, width))], (size // width, width)
    case spec.Rows():
      rows = (shape[0], shape[1] * shape[2])
      return [_reshape(rows)], rows
    case spec.Grid():
      cells = (shape[0] * shape[1], shape[2])
      return [_reshape(cells)], cells
    case spec.GlobalAveragePool():
      return [{'layer': 'gap'}], shape[2:]
    case spec.Mean():
      return [{'layer': 'mean'}], shape[1:]
    case spec.Recurrent():
      return _recurrent(stage, shape)
    case spec.Attention():
      attention = {
        'layer': 'attention',
        'features': shape[1],
        'units': stage.units,
      }
      return [attention], shape[1:]
    case spec.Dense():
      dense = _dense(shape[0], stage.width)
      relu = [{'layer': 'relu'}] if stage.activation == 'relu' else []
      return [dense, *relu], (stage.width,)
  raise ValueError(f'peers cannot be asked for {stage!r}')


def _conv(
  shape: Shape,
  filters: int,
  kernel: int,
  strides: int,
  *,
  padding: str | int = 'SAME',
  bias: bool = False,
) -> tuple[Layer, Shape]:
  rows, columns = (
    math.ceil(n / strides) if padding == 'SAME' else (n - kernel) // strides + 1
    for n in shape[:2]
  )
  layer = {
    'layer': 'conv',
    'inputs': shape[2],
    'filters': filters,
    'kernel': kernel,
    'strides': strides,
    'padding': padding,
    'bias': bias,
  }
  return layer, (rows, columns, filters)


def _residual(stage: spec.Residual, shape: Shape) -> tuple[list[Layer], Shape]:
  first, size = _conv(shape, stage.filters, stage.kernel_size, stage.strides)
  second, _ = _conv(size, stage.filters, stage.kernel_size, 1)
  skip: list[Layer] = []
  if size != shape:
    projection, _ = _conv(shape, stage.filters, 1, stage.strides)
    skip = [projection, _batch_norm(stage.filters)]
  body = [
    *[first, _batch_norm(stage.filters), {'layer': 'relu'}],
    *[second, _batch_norm(stage.filters)],
  ]
  block = {'layer': 'residual', 'body': body, 'skip': skip}
  return [block, {'layer': 'relu'}], size


def _recurrent(
  stage: spec.Recurrent, shape: Shape
) -> tuple[list[Layer], Shape]:
  if stage.cell == 'gru' and not stage.reset_after:
    raise ValueError('PyTorch and Flax have no GRU with its reset before')
  result: list[Layer] = []
  inputs = shape[1]
  width = stage.units * (2 if stage.bidirectional else 1)
  for n in range(stage.layers):
    if n and stage.dropout:
      result.append({'layer': 'dropout', 'rate': stage.dropout})
    top = n == stage.layers - 1
    result.append(
      {
        'layer': 'recurrent',
        'cell': stage.cell,
        'inputs': inputs,
        'units': stage.units,
        'bidirectional': stage.bidirectional,
        'returns': stage.returns if top else 'sequence',
      }
    )
    inputs = width
  if stage.returns == 'last':
    return result, (width,)
  return result, (shape[0], width)


def _batch_norm(
  features: int, momentum: float = MOMENTUM, epsilon: float = EPSILON
) -> Layer:
  return {
    'layer': 'batch_norm',
    'features': features,
    'momentum': momentum,
    'epsilon': epsilon,
  }


def _reshape(shape: Shape) -> Layer:
  return {'layer': 'reshape', 'shape': list(shape)}


def _dense(inputs: int, units: int) -> Layer:
  return {'layer': 'dense', 'inputs': inputs, 'units': units}
