"""What records say of where they were made."""

import json

import jax

from fer_jax import provenance


def test_the_environment_says_how_products_round(monkeypatch):
  (device, *_) = jax.devices()
  # Heard only as XLA starts, which ends a process that names an unknown flag.
  monkeypatch.setenv('XLA_FLAGS', '--xla_flag=1')
  assert provenance.environment()['matmul_precision'] == 'default'
  with jax.default_matmul_precision('highest'):
    found = json.loads(json.dumps(provenance.environment()))
  assert found['matmul_precision'] == 'highest'
  assert found['xla_flags'] == '--xla_flag=1'
  assert found['platform_version'] == device.client.platform_version
