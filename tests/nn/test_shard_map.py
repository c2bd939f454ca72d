"""Layers and models inside `jax.shard_map`, which checks what varies, and on a
mesh whose axes are explicit.

The reference is the same on one device, to 1e-5: values, gradients and running
statistics. The checks are in `on_two_devices`, for a process that was started
with two CPU devices.
"""

import pathlib

import jax.numpy as jnp
import many_devices

from fer_jax.nn import varying_axes


def test_two_devices_give_what_one_does():
  script = pathlib.Path(__file__).with_name('on_two_devices.py')
  assert many_devices.checks_passed(script, devices=2) == 8


def test_outside_of_it_arrays_stay_as_they_are():
  x = jnp.ones(3)
  assert varying_axes.alike(x, (x, None)) == (x, (x, None))
