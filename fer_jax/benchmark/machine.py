"""What a timing must say about the machine it was taken on."""

import os
import pathlib
import platform

from fer_jax import provenance


def describe() -> dict:
  """CPU, cores, system, Python, and how busy the machine was."""
  return {
    'cpu': provenance.cpu_name(),
    'cores': provenance.cores(),
    'system': f'{platform.system()} {platform.machine()}',
    'python': platform.python_version(),
    # Above a few tenths, something else was running too.
    'load_average_before': os.getloadavg()[0],
  }


def peak_memory() -> int | None:
  """Most bytes this process has held in memory; None where none can tell.

  Files that it has mapped count, as far as they were read. The kernel's figure
  and not `resource.getrusage`, which begins with the parent's peak.
  """
  try:
    status = pathlib.Path('/proc/self/status').read_text()
  except OSError:
    return None
  for line in status.splitlines():
    if line.startswith('VmHWM:'):
      return int(line.split()[1]) << 10
  return None


def thread_environment(count: int) -> dict[str, str]:
  """Environment variables that give every framework `count` CPU threads.

  XLA has no variable of its own: it takes one thread for each core that the
  process may use, which is what `provenance.cores` counts.
  """
  names = (
    'OMP_NUM_THREADS',
    'MKL_NUM_THREADS',
    'OPENBLAS_NUM_THREADS',
    'TF_NUM_INTRAOP_THREADS',
    'TF_NUM_INTEROP_THREADS',
  )
  return {name: str(count) for name in names}
