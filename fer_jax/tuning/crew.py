"""Several workers of one sweep on this machine, a device each where there are.

Each is a process of its own, started with the same command line; this one only
waits for them.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from fer_jax import provenance
from fer_jax.errors import UserError

_DEVICES = 'import jax; print(jax.default_backend(), jax.local_device_count())'


def run(command: Sequence[str], count: int) -> list[int]:
  """Runs so many processes and waits for all of them.

  SIGTERM and SIGINT are passed on, and each leaves in good order; before they
  are started they are not.

  Args:
    command: of each.
    count: how many.

  Returns:
    Exit statuses of those that were started; negative is the number of a
    signal.

  Raises:
    UserError: the devices of this machine belong to one process.
  """
  workers: list[subprocess.Popen] = []
  with _passing_on(workers) as asked:
    for environment in environments(*devices(), count):
      if asked:
        break
      workers.append(
        subprocess.Popen(command, env={**os.environ, **environment})
      )
    for worker in workers if asked else ():
      worker.terminate()  # that was not there yet to be told
    # Not `wait`: a signal's handler must run meanwhile.
    while any(worker.poll() is None for worker in workers):
      time.sleep(0.2)
  return [worker.returncode for worker in workers]


def devices() -> tuple[str, int]:
  """(platform, number of local devices), asked in a process that ends.

  Raises:
    UserError: JAX cannot tell.
  """
  done = subprocess.run(
    [sys.executable, '-c', _DEVICES], capture_output=True, text=True
  )
  if done.returncode:
    last = (done.stderr.strip().splitlines() or ['no reason given'])[-1]
    raise UserError(f'JAX finds no devices: {last}')
  platform, number = done.stdout.split()[-2:]  # plugins may say things before
  return platform, int(number)


def environments(
  platform: str, available: int, count: int
) -> list[dict[str, str]]:
  """What each worker's environment has beside this process's.

  Args:
    platform: of the devices.
    available: how many there are.
    count: of workers.

  Raises:
    UserError: on TPU, whose chips belong to one process.
  """
  if platform == 'cpu':
    return [_share_of_cores(count) for _ in range(count)]
  if platform == 'tpu':
    raise UserError(
      f'--workers is {count}; on TPU allowed is 1: one process has all chips, '
      'and divides a population among them (--population)'
    )
  seen = os.environ.get('CUDA_VISIBLE_DEVICES')
  names = seen.split(',') if seen else [str(n) for n in range(available)]
  share = math.ceil(count / available)
  return [
    {
      'CUDA_VISIBLE_DEVICES': names[number % available],
      # JAX takes three quarters of a device's memory unless it is told.
      **(
        {'XLA_PYTHON_CLIENT_MEM_FRACTION': f'{0.9 / share:.2f}'}
        if share > 1
        else {}
      ),
    }
    for number in range(count)
  ]


def _share_of_cores(count: int) -> dict[str, str]:
  """A device of each core for all workers together, not for each of them."""
  flags = os.environ.get('XLA_FLAGS', '')
  if 'host_platform_device_count' in flags:
    return {}
  devices = max(1, provenance.cores() // count)
  option = f'--xla_force_host_platform_device_count={devices}'
  return {'XLA_FLAGS': f'{flags} {option}'.strip()}


@contextlib.contextmanager
def _passing_on(
  workers: Sequence[subprocess.Popen],
) -> Iterator[list[int]]:
  """Passes on to workers what asks this process to leave; notes it as well."""
  asked: list[int] = []

  def pass_on(number, frame):
    asked.append(number)
    for worker in workers:
      if worker.poll() is None:
        worker.send_signal(signal.SIGTERM)

  heard = (signal.SIGTERM, signal.SIGINT)
  earlier = {number: signal.signal(number, pass_on) for number in heard}
  try:
    yield asked
  finally:
    for number, handler in earlier.items():
      signal.signal(number, handler)
