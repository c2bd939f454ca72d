"""`torch.nn.LSTM` and `torch.nn.GRU` in both directions."""

# Of the extra `bench`, which a type check must do without.
# pyright: reportMissingImports=false

import time
from collections.abc import Callable

import torch
from torch import nn

from fer_jax import provenance
from fer_jax.benchmark.contenders import pytorch
from fer_jax.benchmark.recurrent_layers import draws


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`."""
  torch.set_num_threads(provenance.cores())
  torch.manual_seed(case['seed'])
  cuda = torch.cuda.is_available()
  device = torch.device('cuda' if cuda else 'cpu')
  if cuda:
    pytorch.compute_as_jax_does()
  kind = {'lstm': nn.LSTM, 'gru': nn.GRU}[case['cell']]
  layer = kind(
    case['inputs'], case['units'], batch_first=True, bidirectional=True
  ).to(device)
  x_btd, weights_bty = (torch.from_numpy(a).to(device) for a in draws(case))
  x_btd.requires_grad_()
  operands = [x_btd, *layer.parameters()]

  def run(steps: int) -> float:
    begun = time.perf_counter()
    for _ in range(steps):
      loss = (layer(x_btd)[0] * weights_bty).sum()
      torch.autograd.grad(loss, operands)
    if cuda:
      torch.cuda.synchronize()
    return time.perf_counter() - begun

  return run, {
    'steps_per_dispatch': 1,
    # Torch has a second bias, of the hidden state, for LSTM too.
    'parameters': sum(p.numel() for p in layer.parameters()),
    'device': torch.cuda.get_device_name() if cuda else 'cpu',
    'threads': torch.get_num_threads(),
    'versions': provenance.versions(('torch',)),
  }
