"""An architecture as a list of layers that every framework can build.

A contender must be the same network as ours, and must not be built by our
code. So the fields of a preset are written out once as plain layers, with
every size resolved, and each contender builds those from its own framework's
parts. The list is JSON: it crosses to processes that never import JAX.

A layer is a dict with 'layer' and:

  conv        inputs, filters, kernel, strides, padding ('SAME' or 'VALID'),
              bias; groups, 1 where it is not there
  batch_norm  features, momentum (the share of running statistics kept), epsilon
  relu
  max_pool    window; windows lie side by side, what is left over is dropped,
              unless there are strides and padding
  avg_pool    window, side by side
  repeat      (B, h, w, 1) -> (B, h, w, 3)
  concatenate body, a list whose result comes behind the input's channels
  residual    body and skip, two lists whose results are added; an empty skip
              is the input itself
  gap         (B, h, w, C) -> (B, C), the mean
  reshape     shape without the batch axis, row-major, channels last
  recurrent   cell ('lstm', or 'gru' with its reset after the product), inputs,
              units, bidirectional, returns ('sequence', or 'last': the
              hidden state after each direction's last step). Trained biases
              are Keras': 4 H for an LSTM, 6 H for a GRU
  attention   features, units: additive, (B, T, D) -> (B, D)
  mean        (B, T, D) -> (B, D)
  dense       inputs, units
  dropout     rate
"""

from collections.abc import Callable
from typing import Any

Layer = dict[str, Any]
Shape = tuple[int, ...]


def parameter_count(layers: list[Layer]) -> int:
  """Trainable scalars of a list of layers, by arithmetic alone."""
  return sum(_PARAMETERS.get(layer['layer'], _none)(layer) for layer in layers)


def _none(_: Layer) -> int:
  return 0


def _recurrent_parameters(layer: Layer) -> int:
  d, h = layer['inputs'], layer['units']
  one = {'lstm': 4 * h * (d + h + 1), 'gru': 3 * h * (d + h + 2)}[layer['cell']]
  return one * (2 if layer['bidirectional'] else 1)


_PARAMETERS: dict[str, Callable[[Layer], int]] = {
  'conv': lambda layer: (
    layer['filters']
    * (
      layer['kernel'] ** 2 * layer['inputs'] // layer.get('groups', 1)
      + layer['bias']
    )
  ),
  'batch_norm': lambda layer: 2 * layer['features'],
  'concatenate': lambda layer: parameter_count(layer['body']),
  'residual': lambda layer: (
    parameter_count(layer['body']) + parameter_count(layer['skip'])
  ),
  'recurrent': _recurrent_parameters,
  'attention': lambda layer: layer['units'] * (layer['features'] + 2),
  'dense': lambda layer: layer['units'] * (layer['inputs'] + 1),
}
