"""PyTorch, with channels-last memory format: its fastest form on images."""

# Of the extra `bench`, which a type check must do without.
# pyright: reportMissingImports=false, reportMissingModuleSource=false

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from fer_jax import provenance
from fer_jax.benchmark.architecture import Layer


class Attention(nn.Module):
  """Additive attention over steps: (B, T, D) -> (B, D)."""

  def __init__(self, features: int, units: int):
    super().__init__()
    self.hidden = nn.Linear(features, units)
    self.score = nn.Linear(units, 1, bias=False)

  def forward(self, x_btd: torch.Tensor) -> torch.Tensor:
    scores = self.score(torch.tanh(self.hidden(x_btd)))
    return (torch.softmax(scores, dim=1) * x_btd).sum(dim=1)


class Recurrent(nn.Module):
  """`nn.LSTM` or `nn.GRU`, in one direction or both."""

  def __init__(self, layer: Layer):
    super().__init__()
    kind = {'lstm': nn.LSTM, 'gru': nn.GRU}[layer['cell']]
    self.rnn = kind(
      layer['inputs'],
      layer['units'],
      batch_first=True,
      bidirectional=layer['bidirectional'],
    )
    self.returns = layer['returns']
    self.units = layer['units']
    self.bidirectional = layer['bidirectional']
    if layer['cell'] == 'lstm':
      # PyTorch has two biases that are only ever added. One is put out of
      # training at zero, so that as many parameters are trained as elsewhere.
      for name, parameter in self.rnn.named_parameters():
        if name.startswith('bias_hh'):
          nn.init.zeros_(parameter)
          parameter.requires_grad_(False)

  def forward(self, x_btd: torch.Tensor) -> torch.Tensor:
    y_bth, _ = self.rnn(x_btd)
    if self.returns == 'sequence':
      return y_bth
    if not self.bidirectional:
      return y_bth[:, -1]
    forward, backward = y_bth[:, -1, : self.units], y_bth[:, 0, self.units :]
    return torch.cat([forward, backward], dim=-1)


class Residual(nn.Module):
  """body(x) + skip(x)."""

  def __init__(self, layer: Layer):
    super().__init__()
    self.body = stack(layer['body'], branch=True)
    self.skip = stack(layer['skip'], branch=True)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.body(x) + self.skip(x)


class Concatenate(nn.Module):
  """x and body(x), beside each other."""

  def __init__(self, layer: Layer):
    super().__init__()
    self.body = stack(layer['body'], branch=True)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, self.body(x)], dim=1)


class Apply(nn.Module):
  """A function without parameters as a module."""

  def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]):
    super().__init__()
    self.function = function

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    return self.function(x)


def stack(layers: list[Layer], *, branch: bool = False) -> nn.Sequential:
  """The layers one after another; images are (B, C, h, w).

  What a branch gets is needed beside it too: its first ReLU is not in place.
  """
  modules = [_build(layer) for layer in layers]
  if branch and layers and layers[0]['layer'] == 'relu':
    modules[0] = nn.ReLU()
  return nn.Sequential(*modules)


def _build(layer: Layer) -> nn.Module:
  match layer['layer']:
    case 'conv':
      return nn.Conv2d(
        layer['inputs'],
        layer['filters'],
        layer['kernel'],
        stride=layer['strides'],
        # With an even side and stride 2 SAME pads on one side only; the same
        # size comes out of padding both, which is how PyTorch's users say it.
        padding=0
        if layer['padding'] == 'VALID'
        else (layer['kernel'] - 1) // 2,
        groups=layer.get('groups', 1),
        bias=layer['bias'],
      )
    case 'batch_norm':
      return nn.BatchNorm2d(
        layer['features'],
        momentum=1.0 - layer['momentum'],
        eps=layer['epsilon'],
      )
    case 'relu':
      return nn.ReLU(inplace=True)
    case 'max_pool':
      if 'strides' in layer:
        return nn.MaxPool2d(
          layer['window'], layer['strides'], (layer['window'] - 1) // 2
        )
      return nn.MaxPool2d(layer['window'])
    case 'avg_pool':
      return nn.AvgPool2d(layer['window'])
    case 'repeat':
      return Apply(lambda x: x.expand(-1, 3, -1, -1))
    case 'concatenate':
      return Concatenate(layer)
    case 'residual':
      return Residual(layer)
    case 'gap':
      return Apply(lambda x: x.mean(dim=(2, 3)))
    case 'mean':
      return Apply(lambda x: x.mean(dim=1))
    case 'reshape':
      return Apply(lambda x: _channels_last(x).reshape(-1, *layer['shape']))
    case 'recurrent':
      return Recurrent(layer)
    case 'attention':
      return Attention(layer['features'], layer['units'])
    case 'dense':
      return nn.Linear(layer['inputs'], layer['units'])
    case 'dropout':
      return nn.Dropout(layer['rate'])
  raise ValueError(f'no layer {layer["layer"]!r} in PyTorch')


def _channels_last(x: torch.Tensor) -> torch.Tensor:
  """Maps (B, C, h, w) as (B, h, w, C), which costs nothing here."""
  return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def compute_as_jax_does() -> None:
  """On NVIDIA GPUs: products in TF32, and convolutions chosen by trial.

  Both are what XLA does unless told otherwise; PyTorch rounds convolutions
  alone to TF32, and takes cuDNN's first guess.
  """
  torch.backends.cuda.matmul.allow_tf32 = True
  torch.backends.cudnn.allow_tf32 = True
  torch.backends.cudnn.benchmark = True


def prepare(case: dict) -> tuple[Callable[[int], float], dict]:
  """See `fer_jax.benchmark.contenders`."""
  threads = provenance.cores()
  torch.set_num_threads(threads)
  torch.manual_seed(case['seed'])
  cuda = torch.cuda.is_available()
  device = torch.device('cuda' if cuda else 'cpu')
  if cuda:
    compute_as_jax_does()
  model = stack(case['layers']).to(device)
  model = model.to(memory_format=torch.channels_last)  # pyright: ignore
  model.train()
  trained = [p for p in model.parameters() if p.requires_grad]
  optimizer = torch.optim.Adam(trained, lr=case['learning_rate'])
  draws = np.random.default_rng(case['seed'])
  height, width, channels = case['input_shape']
  shape = (case['batch_size'], channels, height, width)
  images = torch.from_numpy(draws.standard_normal(shape, np.float32))
  images = images.to(device, memory_format=torch.channels_last)
  labels = torch.from_numpy(
    draws.integers(case['num_classes'], size=case['batch_size'])
  ).to(device)

  def run(steps: int) -> float:
    begun = time.perf_counter()
    for _ in range(steps):
      optimizer.zero_grad(set_to_none=True)
      nn.functional.cross_entropy(model(images), labels).backward()
      optimizer.step()
    if cuda:
      torch.cuda.synchronize()
    return time.perf_counter() - begun

  return run, {
    'steps_per_dispatch': 1,
    'parameters': sum(p.numel() for p in trained),
    'device': torch.cuda.get_device_name() if cuda else 'cpu',
    'threads': torch.get_num_threads(),
    'versions': provenance.versions(('torch',)),
  }
