"""Servers and schedulers of one's own, for a session of tests."""

import postgres_server
import pytest
import slurm_cluster


@pytest.fixture(scope='session')
def postgres():
  """A PostgreSQL server that runs."""
  with postgres_server.running() as server:
    yield server


@pytest.fixture(scope='session')
def cluster():
  """A Slurm cluster that takes jobs."""
  with slurm_cluster.running() as running:
    yield running
