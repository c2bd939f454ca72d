"""What a computation is traced for, and who asks."""

import types

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from fer_jax.nn import LSTM, conv2d, depthwise_conv2d
from fer_jax.nn.platforms import current_platform
from fer_jax.nn.recurrent import backends


@pytest.fixture
def put_on(monkeypatch):
  """What makes the first device one of another platform."""

  def put(platform, version=''):
    client = types.SimpleNamespace(platform_version=version)
    device = types.SimpleNamespace(platform=platform, client=client)
    monkeypatch.setattr(jax, 'devices', lambda: [device])

  return put


def test_the_platform_is_where_a_computation_would_run(put_on):
  for device in ('cpu', jax.devices('cpu')[0]):
    with jax.default_device(device):
      assert current_platform() == 'cpu'
  for version, platform in (('rocm 60300', 'rocm'), ('cuda 12090', 'cuda')):
    put_on('gpu', version)
    assert current_platform() == platform


def test_convolution_and_recurrence_ask_the_same(put_on, monkeypatch):
  """On an accelerator, and on a CPU as the default device beside it."""
  cpu = jax.devices('cpu')[0]
  image, kernel = jnp.ones((1, 6, 6, 8)), jnp.ones((3, 3, 8, 8))
  lstm = LSTM(3, 4, rngs=nnx.Rngs(0))
  asked = []

  def choose(*arguments, platform, **options):
    asked.append(platform)
    return 'fused'

  monkeypatch.setattr(backends, 'choose_backend', choose)

  def by_xla():
    lstm(jnp.ones((1, 2, 3)))
    calls = (
      lambda: conv2d(image, kernel),
      lambda: depthwise_conv2d(image, kernel[:, :, :1]),
    )
    return ['conv_general' in str(jax.make_jaxpr(call)()) for call in calls]

  put_on('tpu')
  assert by_xla() == [True, True]
  with jax.default_device(cpu):
    assert by_xla() == [False, False]
  assert asked == ['tpu', 'cpu']
