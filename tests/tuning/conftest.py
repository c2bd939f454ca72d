"""A sweep whose trials train in a fraction of a second, and its data."""

import jax
import pytest
import small_sweeps
from jax.experimental.compilation_cache import compilation_cache

from fer_jax.tuning import log_uniform, uniform


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """A data directory that tests of one process share."""
  return tmp_path_factory.mktemp('data')


@pytest.fixture(autouse=True, scope='package')
def _compiled_quickly(tmp_path_factory):
  """Programs are kept between sweeps, as the command line keeps them."""
  wanted = {
    'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
  }
  earlier = {name: getattr(jax.config, name) for name in wanted}
  for name, value in wanted.items():
    jax.config.update(name, value)
  jax.config.update('jax_disable_most_optimizations', True)
  compilation_cache.reset_cache()
  yield
  jax.config.update('jax_disable_most_optimizations', False)
  jax.clear_caches()  # nobody else should run what is not optimised
  for name, value in earlier.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture
def config(data_dir):
  return small_sweeps.config(data_dir)


@pytest.fixture
def domains():
  """Scalars alone: one shape."""
  return {
    'optim.learning_rate': log_uniform(1e-3, 1e-1),
    'model.dropout': uniform(0.0, 0.5),
  }
