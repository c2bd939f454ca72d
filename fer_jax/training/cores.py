"""A JAX device for each core of a CPU, and how many of them a run takes.

Inside one device XLA divides each operation by itself among the cores, and of
small ones little. Devices of their own compute side by side what is given to
each: members of a population, or parts of a batch.
"""

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Any

import jax

from fer_jax import provenance

LEAST_IMAGES = 16
"""Of a batch, on each device. Smaller parts make some models slower; from here
on most gain up to two thirds, and `vgg16_gru` loses 8 % (docs/LOG.md)."""

_made = threading.Event()  # set once the devices are those of `spread`


def parts_of_batch(batch_size: int) -> int:
  """How many even parts one run on CPU divides its batches into.

  As many as there are cores, as long as each has `LEAST_IMAGES`; 1 where none
  would have that many, or no number of parts is even.
  """
  most = min(provenance.cores(), batch_size // LEAST_IMAGES)
  even = (n for n in range(most, 1, -1) if batch_size % n == 0)
  return next(even, 1)


def spread(parts: int) -> None:
  """Makes a device of each CPU core, as long as there are parts for them.

  To be called before JAX computes anything; afterwards it changes nothing.
  Accelerators are not concerned, nor a user who has set the number of CPU
  devices.

  Args:
    parts: members of a population, or of `parts_of_batch`.
  """
  if 'host_platform_device_count' in os.environ.get('XLA_FLAGS', ''):
    return
  config: Any = jax.config  # its fields are made as JAX starts
  if config.jax_num_cpu_devices == -1:
    count = max(1, min(provenance.cores(), parts))
    with contextlib.suppress(RuntimeError):  # JAX has its devices already
      config.update('jax_num_cpu_devices', count)
      _made.set()


def of_run(batch_size: int) -> Sequence[Any]:
  """The devices of one run, in a process whose runs differ in batch size.

  As many as a process of its own would have made by `spread`; all of them
  where the user has set their number, and of accelerators.
  """
  devices = jax.devices()
  if _made.is_set() and devices[0].platform == 'cpu':
    return devices[: parts_of_batch(batch_size)]
  return devices
