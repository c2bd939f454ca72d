"""Recurrent layers against torch.nn.LSTM and torch.nn.GRU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch_gates import from_torch

from fer_jax.nn import GRU, LSTM, Bidirectional, Stacked

torch = pytest.importorskip('torch', reason='needs the extra bench: torch')

B, T, D, H = 3, 5, 4, 6


def build(kind, named, suffix, in_features, backend):
  cls = {'lstm': LSTM, 'gru': GRU}[kind]
  layer = cls(in_features, H, backend=backend, rngs=nnx.Rngs(0))
  for name, value in from_torch(kind, named, suffix).items():
    assert getattr(layer, name).shape == value.shape
    getattr(layer, name)[...] = jnp.asarray(value)
  return layer


@pytest.mark.parametrize('kind', ['lstm', 'gru'])
@pytest.mark.parametrize(
  ('layers', 'both', 'backend'),
  [(1, False, 'scan'), (1, False, 'fused'), (2, True, 'fused')],
)
def test_layers_equal_torch(kind, layers, both, backend):
  """Outputs and last hidden states to 1e-5, all gradients to 1e-4."""
  torch.manual_seed(0)
  peer = {'lstm': torch.nn.LSTM, 'gru': torch.nn.GRU}[kind](
    D, H, num_layers=layers, bidirectional=both, batch_first=True
  )
  x_bt = torch.randn(B, T, D, requires_grad=True)
  y_bt, last = peer(x_bt)
  hidden = last[0] if kind == 'lstm' else last
  ramp = np.cos(np.arange(y_bt.numel(), dtype=np.float32)).reshape(y_bt.shape)
  (y_bt * torch.from_numpy(ramp)).sum().backward()
  named = {n: p.detach().numpy() for n, p in peer.named_parameters()}
  slopes = {n: p.grad.numpy() for n, p in peer.named_parameters()}

  stack, features = [], D
  suffixes = []
  for n in range(layers):
    directions = [f'l{n}', f'l{n}_reverse'][: 1 + both]
    cells = [build(kind, named, s, features, backend) for s in directions]
    stack.append(Bidirectional(*cells) if both else cells[0])
    suffixes.append(directions)
    features = H * len(directions)
  graphdef, params = nnx.split(Stacked(stack))

  def loss(params, x):
    y, carry = nnx.merge(graphdef, params)(x)
    return jnp.sum(y * ramp), (y, carry)

  x = jnp.asarray(x_bt.detach().numpy())
  differentiate = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
  (_, (y, carry)), (found, dx) = differentiate(params, x)
  np.testing.assert_allclose(y, y_bt.detach().numpy(), atol=1e-5)
  np.testing.assert_allclose(dx, x_bt.grad.numpy(), atol=1e-4)
  ends = [
    direction[-1]
    for layer in carry
    for direction in (layer if both else [layer])
  ]
  np.testing.assert_allclose(
    jnp.stack(ends), hidden.detach().numpy(), atol=1e-5
  )
  found = nnx.to_pure_dict(found)['layers']
  for n, directions in enumerate(suffixes, 1):
    for side, suffix in zip(('forward', 'backward'), directions, strict=False):
      part = found[f'layer{n}'][side] if both else found[f'layer{n}']
      for name, expected in from_torch(kind, slopes, suffix).items():
        # Each of torch's two biases has the gradient of our one.
        if kind == 'lstm' and name == 'bias':
          expected = expected / 2
        np.testing.assert_allclose(part[name], expected, atol=1e-4)
