"""What a timing must say about the machine it was taken on."""

import os
import platform

from fer_jax import provenance


def describe() -> dict:
  """CPU, cores, system, Python, and how busy the machine was."""
  return {
    'cpu': provenance.cpu_name(),
    'cores': provenance.cores(),
    'system': f'{platform.system()} {platform.machine()}',
    'python': platform.python_version(),
    **provenance.numerics(),
    # Of the minute before, with what a script ran in it for an earlier case;
    # else above a few tenths something else was running too.
    'load_average_before': os.getloadavg()[0],
  }


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
