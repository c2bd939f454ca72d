"""What a computation is traced for."""

from typing import Any

import jax


def current_platform() -> str:
  """Where a computation that is traced now will most likely run.

  'cpu', 'cuda', 'rocm' or 'tpu'. `jax.export` for another platform than this
  one is not seen here.
  """
  # A name unknown to type checkers: JAX makes these attributes as it goes.
  config: Any = jax.config
  device = config.jax_default_device
  if device is None:
    device = jax.devices()[0]
  elif isinstance(device, str):
    device = jax.devices(device)[0]
  if device.platform != 'gpu':
    return device.platform
  return 'rocm' if 'rocm' in device.client.platform_version else 'cuda'
