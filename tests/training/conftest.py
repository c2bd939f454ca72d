"""A config that trains in seconds, and its data."""

import pytest
from small_config import small_config


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory):
  """A data directory that tests of one process share."""
  return tmp_path_factory.mktemp('data')


@pytest.fixture
def tiny_config(tiny_data):
  return small_config(tiny_data)
