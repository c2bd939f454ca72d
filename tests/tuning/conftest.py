"""A sweep whose trials train in a fraction of a second, and its data."""

import pytest
import small_sweeps

from fer_jax.tuning import log_uniform, uniform


@pytest.fixture(scope='session')
def data_dir(tmp_path_factory):
  """A data directory that tests of one process share."""
  return tmp_path_factory.mktemp('data')


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
