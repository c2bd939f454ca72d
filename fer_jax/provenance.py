"""Where a figure was measured: versions, machine, accelerator."""

import importlib.metadata
import os
import pathlib
import platform
import resource
import sys
import time
from collections.abc import Sequence
from typing import Any

_IMPORTED = time.time()

_PRECISION = 'jax_default_matmul_precision'

PACKAGES = (
  'fer-jax',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
)


def cpu_name() -> str:
  """The processor's name as the system gives it."""
  try:
    for line in pathlib.Path('/proc/cpuinfo').read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
  """Versions of Python and of those packages that are installed."""
  found = {'python': platform.python_version()}
  for name in packages:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def cores() -> int:
  """How many processors this process may use."""
  if sys.platform == 'linux':
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def environment(devices: Sequence[Any] | None = None) -> dict[str, Any]:
  """Versions, processor and JAX devices, JSON-ready.

  Args:
    devices: that the figure was made on; None for all there are.
  """
  import jax

  devices = jax.devices() if devices is None else devices
  return {
    'versions': versions(),
    'platform': devices[0].platform,
    'device': devices[0].device_kind,
    'device_count': len(devices),
    'cpu': cpu_name(),
    'cores': cores(),
    'system': f'{platform.system()} {platform.machine()}',
    **numerics(),
    # On GPUs CUDA's and the driver's.
    'platform_version': devices[0].client.platform_version,
  }


def numerics() -> dict[str, str]:
  """What decides how products round, beside machine and versions.

  'matmul_precision' is of JAX, where 'default' is TF32 on recent NVIDIA GPUs
  and bfloat16 on TPUs.
  """
  import jax

  return {
    'matmul_precision': getattr(jax.config, _PRECISION) or 'default',
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
  }


def peak_memory() -> int | None:
  """Most bytes this process has held in memory; None where none can tell.

  Files that it has mapped count, as far as they were read. On Linux the
  kernel's figure and not `resource.getrusage`, which begins with the parent's
  peak.
  """
  if sys.platform != 'linux':
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == 'darwin' else peak << 10
  try:
    status = pathlib.Path('/proc/self/status').read_text()
  except OSError:
    return None
  for line in status.splitlines():
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) << 10
  return None


def process_start() -> float:
  """When this process began, in seconds since the epoch.

  To 10 ms on Linux, where the kernel tells; elsewhere when this module was
  imported.
  """
  try:
    stat = pathlib.Path('/proc/self/stat').read_text()
    ticks = int(stat.rpartition(')')[2].split()[19])
    uptime = float(pathlib.Path('/proc/uptime').read_text().split()[0])
    return time.time() - uptime + ticks / os.sysconf('SC_CLK_TCK')
  except (OSError, ValueError, IndexError):
    return _IMPORTED
