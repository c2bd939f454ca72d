"""Shared set-up of all tests: strict JAX and a place for real data."""

import os
import pathlib

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')


def _fer2013_csv() -> pathlib.Path | None:
  """The real challenge file where FER2013_CSV names one, else None."""
  named = os.environ.get('FER2013_CSV')
  return pathlib.Path(named) if named and pathlib.Path(named).exists() else None


@pytest.fixture(scope='session')
def fer2013_csv() -> pathlib.Path:
  """Path of the real fer2013.csv; skips the test where there is none."""
  path = _fer2013_csv()
  if path is None:
    pytest.skip('real_data: FER2013_CSV names no file')
  return path
