"""One nearest neighbour against scikit-learn's."""

import numpy as np
import pytest
from sklearn import neighbors

from fer_jax.data import nearest


@pytest.fixture
def images():
  rng = np.random.default_rng(0)
  return (
    rng.integers(0, 256, (700, 36)).astype(np.uint8),
    rng.integers(0, 256, (900, 36)).astype(np.uint8),
  )


def test_rows_are_those_of_brute_force(images, monkeypatch):
  queries, references = images
  monkeypatch.setattr(nearest, '_QUERIES', 64)
  monkeypatch.setattr(nearest, '_REFERENCES', 100)
  reference = neighbors.NearestNeighbors(n_neighbors=1, algorithm='brute')
  reference.fit(references.astype(float))
  expected = reference.kneighbors(queries.astype(float))[1][:, 0]
  np.testing.assert_array_equal(
    nearest.nearest_rows(queries, references), expected
  )


def test_a_copy_is_its_own_neighbour(images):
  queries, references = images
  references = np.concatenate([references, queries])
  place = nearest.nearest_rows(queries, references)
  np.testing.assert_array_equal(place, 900 + np.arange(700))
