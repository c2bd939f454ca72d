"""Whole backbones, and the models that P2 builds on them, against torch.

torchvision and timm are not needed: the references are written here from the
papers with the names of their modules, so that their state dicts have the
published names. Published files themselves were not to be had for a test.
"""

import collections
import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from backbone_parity import (
  CLASSES,
  compare_evaluation,
  compare_training,
  evaluate,
  loaded,
  norm_settings,
  use_direct_convolutions,
  whole_model,
)
from torch_gates import from_torch

from fer_jax.models.backbones import (
  BACKBONES,
  preprocess,
  preprocessing,
)

torch = pytest.importorskip('torch', reason='needs the extra bench: torch')
safetensors_torch = pytest.importorskip(
  'safetensors.torch', reason='needs the extra pretrained: safetensors'
)
from torch import nn  # noqa: E402


def vgg16():
  """Names of torchvision's VGG16: `features.0` to `features.28`."""
  layers, channels = [], 3
  for convolutions, width in ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)):
    for _ in range(convolutions):
      layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
      channels = width
    layers.append(nn.MaxPool2d(2))
  return nn.Sequential(
    collections.OrderedDict(
      features=nn.Sequential(*layers),
      pool=nn.AdaptiveAvgPool2d(1),
      flatten=nn.Flatten(),
      classifier=nn.Sequential(nn.Linear(512, 8), nn.ReLU(), nn.Linear(8, 5)),
    )
  )


class TorchDenseLayer(nn.Module):
  def __init__(self, channels):
    super().__init__()
    self.norm1 = nn.BatchNorm2d(channels)
    self.conv1 = nn.Conv2d(channels, 128, 1, bias=False)
    self.norm2 = nn.BatchNorm2d(128)
    self.conv2 = nn.Conv2d(128, 32, 3, padding=1, bias=False)

  def forward(self, x):
    y = self.conv1(self.norm1(x).relu())
    return torch.cat([x, self.conv2(self.norm2(y).relu())], 1)


def densenet121():
  """Names of torchvision's and timm's DenseNet121."""
  parts = collections.OrderedDict(
    conv0=nn.Conv2d(3, 64, 7, 2, 3, bias=False),
    norm0=nn.BatchNorm2d(64),
    relu0=nn.ReLU(),
    pool0=nn.MaxPool2d(3, 2, 1),
  )
  channels = 64
  for n, count in enumerate((6, 12, 24, 16), 1):
    layers = collections.OrderedDict()
    for k in range(1, count + 1):
      layers[f'denselayer{k}'] = TorchDenseLayer(channels)
      channels += 32
    parts[f'denseblock{n}'] = nn.Sequential(layers)
    if n < 4:
      parts[f'transition{n}'] = nn.Sequential(
        collections.OrderedDict(
          norm=nn.BatchNorm2d(channels),
          relu=nn.ReLU(),
          conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
          pool=nn.AvgPool2d(2),
        )
      )
      channels //= 2
  parts['norm5'] = nn.BatchNorm2d(channels)
  return nn.Sequential(
    collections.OrderedDict(
      features=nn.Sequential(parts),
      relu=nn.ReLU(),
      pool=nn.AdaptiveAvgPool2d(1),
      flatten=nn.Flatten(),
      classifier=nn.Linear(channels, 5),
    )
  )


class TorchSeparable(nn.Module):
  def __init__(self, channels, width):
    super().__init__()
    self.conv1 = nn.Conv2d(
      channels, channels, 3, padding=1, groups=channels, bias=False
    )
    self.pointwise = nn.Conv2d(channels, width, 1, bias=False)

  def forward(self, x):
    return self.pointwise(self.conv1(x))


class TorchXceptionBlock(nn.Module):
  def __init__(self, widths, *, stride, relu_first=True):
    super().__init__()
    layers = []
    for before, after in itertools.pairwise(widths):
      layers += [nn.ReLU(), TorchSeparable(before, after)]
      layers.append(nn.BatchNorm2d(after))
    layers = layers if relu_first else layers[1:]
    self.skip = None
    if stride == 2:
      layers.append(nn.MaxPool2d(3, 2, 1))
      self.skip = nn.Conv2d(widths[0], widths[-1], 1, 2, bias=False)
      self.skipbn = nn.BatchNorm2d(widths[-1])
    self.rep = nn.Sequential(*layers)

  def forward(self, x):
    skip = x if self.skip is None else self.skipbn(self.skip(x))
    return self.rep(x) + skip


def xception():
  """Names of timm's `legacy_xception`."""
  parts = collections.OrderedDict(
    conv1=nn.Conv2d(3, 32, 3, 2, bias=False),
    bn1=nn.BatchNorm2d(32),
    act1=nn.ReLU(),
    conv2=nn.Conv2d(32, 64, 3, bias=False),
    bn2=nn.BatchNorm2d(64),
    act2=nn.ReLU(),
    block1=TorchXceptionBlock((64, 128, 128), stride=2, relu_first=False),
    block2=TorchXceptionBlock((128, 256, 256), stride=2),
    block3=TorchXceptionBlock((256, 728, 728), stride=2),
  )
  for n in range(4, 12):
    parts[f'block{n}'] = TorchXceptionBlock((728,) * 4, stride=1)
  parts['block12'] = TorchXceptionBlock((728, 728, 1024), stride=2)
  for n, (channels, width) in enumerate(((1024, 1536), (1536, 2048)), 3):
    parts[f'conv{n}'] = TorchSeparable(channels, width)
    parts[f'bn{n}'] = nn.BatchNorm2d(width)
    parts[f'act{n}'] = nn.ReLU()
  parts['global_pool'] = nn.AdaptiveAvgPool2d(1)
  parts['flatten'] = nn.Flatten()
  parts['fc'] = nn.Linear(2048, 5)
  return nn.Sequential(parts)


class TorchHead(nn.Module):
  """P2, section 4: what follows each network, from its map (B, h, w, D).

  Args:
    name: of the network.
    map_shape: (h, w, D).
  """

  def __init__(self, name, map_shape):
    super().__init__()
    self.name = name
    rows, columns, width = map_shape
    if name == 'xception':
      width *= (rows // 2) * (columns // 2)
    widths = (width, 256, 128) if name == 'densenet121' else (width, 256)
    self.recurrent = nn.ModuleList(
      nn.GRU(*pair, batch_first=True) for pair in itertools.pairwise(widths)
    )
    widths = (widths[-1], 256, CLASSES)
    if name == 'vgg16':
      widths = (256, CLASSES)
    self.dense = nn.ModuleList(
      nn.Linear(*pair) for pair in itertools.pairwise(widths)
    )

  def forward(self, y):
    if self.name == 'densenet121':
      y = y.flatten(1, 2)
    elif self.name == 'vgg16':
      y = y.mean((1, 2))[:, None]
    else:
      y = nn.functional.max_pool2d(y.permute(0, 3, 1, 2), 2)
      y = y.permute(0, 2, 3, 1).flatten(1)[:, None]
    for gru in self.recurrent:
      y = gru(y)[0]
    y = self.dense[0](y[:, -1])
    for dense in self.dense[1:]:
      y = dense(y.relu())
    return y

  def arrays(self, value_of):
    """Of each parameter `value_of` it, as `whole_model` takes them."""
    arrays = []
    for gru in self.recurrent:
      named = {n: value_of(p).numpy() for n, p in gru.named_parameters()}
      arrays += from_torch('gru', named, 'l0').values()
    for dense in self.dense:
      arrays += [value_of(p).numpy().T for p in dense.parameters()]
    return arrays


def randomise(model):
  """Keeps activations of size 1, and normalisation far from the identity."""
  generator = torch.Generator().manual_seed(0)
  norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
  with torch.no_grad():
    for parameter in model.parameters():
      deviation = 0.2
      if parameter.ndim > 1:
        deviation = (2 / parameter[0].numel()) ** 0.5
      parameter.normal_(0, deviation, generator=generator)
    for norm in norms:
      norm.weight.uniform_(0.5, 1.5, generator=generator)
      norm.running_mean.normal_(0, 0.2, generator=generator)
      norm.running_var.uniform_(0.5, 1.5, generator=generator)


def count_values(module, inputs, output):
  """Notes of how many values a channel's statistics are."""
  del output
  module.count = inputs[0].numel() / inputs[0].shape[1]


def make_variance_biased(norm, before):
  """Makes torch's new running variance that of Keras and ours.

  torch moves it towards the unbiased variance, n / (n - 1) times the one it
  normalises by.
  """
  kept = 0.9 * before
  factor = (norm.count - 1) / norm.count
  norm.running_var = kept + (norm.running_var - kept) * factor


def forward(model, x):
  """The map before pooling and classifier, channels last, by name."""
  y = torch.from_numpy(x).permute(0, 3, 1, 2)
  for name, part in model.named_children():
    if name in ('pool', 'global_pool'):
      break
    y = part(y)
  return y.permute(0, 2, 3, 1)


@pytest.mark.parametrize(
  ('build', 'size'),
  [(vgg16, (37, 50)), (xception, (72, 79)), (densenet121, (64, 70))],
  ids=('vgg16', 'xception', 'densenet121'),
)
def test_backbone(build, size, tmp_path, monkeypatch):
  """Logits of the whole model, and maps in evaluation and training, 1e-4 of
  their largest element, gradients of all its parameters 1e-4 of each array's
  norm, new running statistics of the backbone 1e-4 (torch's variance made the
  biased one)."""
  use_direct_convolutions(monkeypatch)
  name = build.__name__
  model = build()
  randomise(model)
  path = tmp_path / 'before.safetensors'
  safetensors_torch.save_file(model.state_dict(), path)
  backbone = loaded(BACKBONES[name], 'torch', path)
  norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
  settings = {(norm.eps, 1 - norm.momentum) for norm in norms}
  assert norm_settings(backbone) == settings

  map_shape = (*backbone.output_size(*size, 'torch'), backbone.out_features)
  head = TorchHead(name, map_shape)
  randomise(head)

  rng = np.random.default_rng(1)
  pixels = rng.uniform(0, 255, (6, *size, 3)).astype(np.float32)
  faces = preprocess(jnp.asarray(pixels), preprocessing(name, 'torch'))
  x = rng.normal(size=faces.shape).astype(np.float32)
  weighing = rng.normal(size=(len(x), CLASSES)).astype(np.float32)

  def carried(state):
    """A file with these values of torch's variables."""
    path = tmp_path / 'carried.safetensors'
    safetensors_torch.save_file(state, path)
    return path

  def gradients():
    """Our model with the gradients of torch's parameters."""
    state = model.state_dict()
    for key, parameter in model.named_parameters():
      if parameter.grad is not None:
        state[key] = parameter.grad.contiguous()
    of_head = head.arrays(lambda parameter: parameter.grad)
    return whole_model(name, 'torch', size, carried(state), of_head)

  def expected():
    for image, weights in zip(np.array(faces), weighing, strict=True):
      model.zero_grad()
      head.zero_grad()
      y = forward(model, image[None])
      logits = head(y)
      (logits * torch.from_numpy(weights)).sum().backward()
      yield y.detach().numpy(), logits.detach().numpy(), gradients

  model.eval()
  with torch.no_grad():
    # Gates that a map of random weights saturates, Xception's of size 300, pass
    # little on but rounding.
    head.recurrent[0].weight_ih_l0 /= forward(model, np.array(faces[:1])).std()
  weights = head.arrays(lambda parameter: parameter.detach())
  ours = whole_model(name, 'torch', size, path, weights)
  compare_evaluation(evaluate(ours, pixels, weighing), expected(), 1e-4)
  if not norms:
    return

  model.train()
  before = [norm.running_var.clone() for norm in norms]
  for norm in norms:
    norm.register_forward_hook(count_values)
  with torch.no_grad():
    y = forward(model, x).numpy()
  for norm, variance in zip(norms, before, strict=True):
    make_variance_biased(norm, variance)
  moved = loaded(BACKBONES[name], 'torch', carried(model.state_dict()))
  compare_training(backbone, x, y, moved)


@pytest.mark.parametrize('name', sorted(BACKBONES))
def test_preprocessing(name):
  """Reference: ToTensor and Normalize as torchvision's and timm's published
  settings have them; 1e-6."""
  mean, std = {
    'xception': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
  }.get(name, ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
  pixels = np.arange(2 * 4 * 3 * 3, dtype=np.uint8).reshape(2, 4, 3, 3) * 3
  tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
  mean, std = (torch.tensor(t)[None, :, None, None] for t in (mean, std))
  expected = ((tensor - mean) / std).permute(0, 2, 3, 1).numpy()
  found = preprocess(jnp.asarray(pixels), preprocessing(name, 'torch'))
  np.testing.assert_allclose(found, expected, atol=3e-6)
