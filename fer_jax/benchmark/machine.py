"""What a timing must say about the machine it was taken on."""

import importlib.metadata
import os
import pathlib
import platform

PACKAGES = ('fer-jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')


def cores() -> int:
  """CPU cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def cpu_name() -> str:
  """The processor's model name as its system gives it."""
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    for line in info.read_text(errors='replace').splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return platform.processor() or platform.machine()


def versions(packages=PACKAGES) -> dict[str, str]:
  """Installed versions of the packages that are there."""
  found = {}
  for package in packages:
    try:
      found[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def describe() -> dict:
  """CPU, cores, system, Python, versions, and how busy the machine was."""
  return {
    'cpu': cpu_name(),
    'cores': cores(),
    'system': f'{platform.system()} {platform.machine()}',
    'python': platform.python_version(),
    'versions': versions(),
    # Above about half the cores, something else was running too.
    'load_average_before': os.getloadavg()[0],
  }


def thread_environment(count: int) -> dict[str, str]:
  """Environment variables that give every framework `count` CPU threads.

  XLA has no variable of its own: it takes one thread for each core that the
  process may use, which is what `cores` counts.
  """
  names = (
    'OMP_NUM_THREADS',
    'MKL_NUM_THREADS',
    'OPENBLAS_NUM_THREADS',
    'TF_NUM_INTRAOP_THREADS',
    'TF_NUM_INTEROP_THREADS',
  )
  return {name: str(count) for name in names}
