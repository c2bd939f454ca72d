"""Shared set-up of all tests: strict JAX, quick compilation."""

import os
import shutil
import subprocess
import sys
import tempfile

PROGRAMS = 'FER_JAX_TEST_PROGRAMS'

# Of `small_config` an epoch, traced and compiled, takes 3.0 s of a core with
# these, 5.2 s with JAX_DISABLE_MOST_OPTIMIZATIONS. At level 0 the old emitters
# give updates that are percents off (jaxlib 0.10.2).
QUICK = (
  '--xla_backend_optimization_level=1',
  '--xla_cpu_parallel_codegen_split_count=1',
  '--xla_cpu_use_fusion_emitters=false',
  '--xla_llvm_disable_expensive_passes=true',
)
_ASKS_FOR_FLAGS = """
from jaxlib import _jax
_jax.CompileOptions().executable_build_options.debug_options
"""


def _compile_quickly() -> bool:
  """Most of the tests' time would be XLA's compiler.

  Programs are compiled with little optimisation, and kept for this session of
  tests: its workers share them, as do the processes that tests start. Before
  JAX is imported, which reads these variables only then.

  Returns:
    Whether this process began the session, so that the programs are its own.
  """
  if PROGRAMS in os.environ:  # such as a worker of xdist
    return False
  os.environ[PROGRAMS] = tempfile.mkdtemp(prefix='fer_jax_programs_')
  os.environ['JAX_COMPILATION_CACHE_DIR'] = os.environ[PROGRAMS]
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.1'
  flags = ' '.join([os.environ.get('XLA_FLAGS', ''), *QUICK]).strip()
  known = subprocess.run(
    [sys.executable, '-c', _ASKS_FOR_FLAGS],
    env={**os.environ, 'XLA_FLAGS': flags},
    stderr=subprocess.DEVNULL,
    check=False,
  )
  if known.returncode == 0:
    os.environ['XLA_FLAGS'] = flags
  else:  # another XLA ends a process that names a flag it does not know
    os.environ['JAX_DISABLE_MOST_OPTIMIZATIONS'] = 'true'
  return True


_OWN = _compile_quickly()

# Which reference Keras is must not depend on whose shell runs the tests.
os.environ['KERAS_BACKEND'] = 'jax'

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture(scope='module')
def shared_programs():
  """Equal runs of a file's tests have their programs in common."""
  import shared_programs  # imports for seconds

  with shared_programs.shared():
    yield


def remove_programs() -> None:
  """Of a process that began the session."""
  if _OWN:
    shutil.rmtree(os.environ[PROGRAMS], ignore_errors=True)


def pytest_unconfigure():
  remove_programs()
