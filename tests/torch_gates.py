"""Parameters of torch's LSTM and GRU in the layout of ours.

Torch keeps kernels transposed, (G, D) and (G, H), one pair of biases `b_ih` and
`b_hh`, and for each layer and direction its own names: `weight_ih_l1_reverse`.

  LSTM  torch's gates are i f g o, as ours; our bias is b_ih + b_hh, so the
        gradient of ours is that of either
  GRU   torch's gates are r z n, ours z r g: the first two change places;
        torch resets after the product, as ours with `reset_after`, so both
        biases are kept, ours in the rows of (2, G)
"""

import numpy as np


def our_order(kind, array):
  """Torch's gates, on the first axis, in our order."""
  if kind == 'lstm':
    return array
  r, z, n = np.split(array, 3)
  return np.concatenate([z, r, n])


def from_torch(kind, named, suffix):
  """Kernel, recurrent kernel and bias in our layout.

  Args:
    kind: 'lstm' or 'gru'.
    named: torch's parameters, or their gradients, by name.
    suffix: of layer and direction, such as 'l0_reverse'.
  """
  w_ih, w_hh, b_ih, b_hh = (
    our_order(kind, named[f'{name}_{suffix}'])
    for name in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')
  )
  bias = b_ih + b_hh if kind == 'lstm' else np.stack([b_ih, b_hh])
  return {'kernel': w_ih.T, 'recurrent_kernel': w_hh.T, 'bias': bias}
