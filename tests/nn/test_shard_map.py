"""Layers and models inside `jax.shard_map`, which checks what varies.

The reference is the same on one device, to 1e-5: values, gradients and running
statistics. The checks are in `on_two_devices`, for a process that was started
with two CPU devices.
"""

import os
import pathlib
import subprocess
import sys

import jax.numpy as jnp

from fer_jax.nn import varying_axes


def test_two_devices_give_what_one_does():
  done = subprocess.run(
    [sys.executable, '-W', 'error', 'on_two_devices.py'],
    capture_output=True,
    text=True,
    cwd=pathlib.Path(__file__).parent,
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUMPY_RANK_PROMOTION': 'raise',
      'XLA_FLAGS': os.environ.get('XLA_FLAGS', '')
      + ' --xla_force_host_platform_device_count=2',
    },
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.count('checked') == 6


def test_outside_of_it_arrays_stay_as_they_are():
  x = jnp.ones(3)
  assert varying_axes.alike(x, (x, None)) == (x, (x, None))
