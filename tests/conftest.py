"""Shared set-up of all tests: strict JAX, quick compilation."""

import os
import shutil
import tempfile

PROGRAMS = 'FER_JAX_TEST_PROGRAMS'


def _compile_quickly() -> None:
  """Most of the tests' time would be XLA's compiler.

  Programs are compiled without optimisation, and kept for this session of
  tests: its workers share them, as do the processes that tests start. Before
  JAX is imported, which reads these variables only then.
  """
  if PROGRAMS in os.environ:  # a worker of xdist
    return
  os.environ[PROGRAMS] = tempfile.mkdtemp(prefix='fer_jax_programs_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = os.environ[PROGRAMS]
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
  os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = 'true'


_compile_quickly()

import jax  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_unconfigure(config):
  if not hasattr(config, 'workerinput'):
    shutil.rmtree(os.environ[PROGRAMS], ignore_errors=True)
