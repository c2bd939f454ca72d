"""One nearest neighbour on raw pixels: what memory alone scores.

A classifier that learns nothing. Where it is far above chance, what is tested
was seen in training, or looks like it for reasons that are no expression: the
same photograph, the same person, the next frame.
"""

import numpy as np

# 512 x 8,192 float32 distances are 16 MB.
_QUERIES = 512
_REFERENCES = 8192


def nearest_rows(queries: np.ndarray, references: np.ndarray) -> np.ndarray:
  """Place of the nearest reference, in Euclidean distance, for every query.

  Args:
    queries: (n, P) grey values.
    references: (m, P) grey values, m at least 1.

  Returns:
    int64 (n,); among equals the first. Distances are float32 of centred
    values, right to about one part in a million of the images' own norms.
  """
  mean = references.mean(0, dtype=np.float64).astype(np.float32)
  best = np.full(len(queries), np.inf, np.float32)
  place = np.zeros(len(queries), np.int64)
  for left in range(0, len(references), _REFERENCES):
    known = references[left : left + _REFERENCES].astype(np.float32) - mean
    half = 0.5 * np.einsum('mp,mp->m', known, known)
    for top in range(0, len(queries), _QUERIES):
      asked = queries[top : top + _QUERIES].astype(np.float32) - mean
      # |q - r|^2 / 2 without the query's own norm, which changes no order.
      distance = half - asked @ known.T
      nearest = distance.argmin(-1)
      least = distance[np.arange(len(asked)), nearest]
      here = slice(top, top + _QUERIES)
      closer = least < best[here]
      best[here] = np.where(closer, least, best[here])
      place[here] = np.where(closer, nearest + left, place[here])
  return place
