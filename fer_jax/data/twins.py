"""Images that occur more than once in a data set, exactly or nearly.

Exact twins have the same pixels. Near twins have a Pearson correlation of at
least 0.90 over all their grey pixels: the same photograph brightened, or
compressed again. Hashes of thumbnails would be faster and are wrong either
way: FER2013 has many pairs within two bits that show different faces. So all
pairs are compared, as blocks of one matrix product of the centred images.
"""

import dataclasses
import hashlib
import os
import pathlib
import sys
import tempfile
import time
import zipfile

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from fer_jax.data import resize
from fer_jax.datasets.dataset import Dataset

THRESHOLD = 0.90

# Raised when the same images would give other twins.
_FORMAT = 1
_ROWS_A_READ = 1024
# Rows of a block of the product: 2,048 x 2,048 float32 is 16 MB.
_BLOCK = 2048
# float32 products of unit vectors are right to 1e-6; whatever is this near
# to the threshold is computed again exactly.
_MARGIN = 1e-4
# Larger sets, and sets of unequal images, are compared at 48 x 48.
_FULL_SIZE_BYTES = 1 << 30
_COMMON_SIZE = (48, 48)


@dataclasses.dataclass(frozen=True, eq=False)
class Twins:
  """Who is whose twin in a data set of N rows with U different images.

  Attributes:
    image: int32 (N,), number of the image in each row, 0 to U - 1; rows with
      one number are exact twins.
    pairs: int32 (P, 2), numbers of different images that are near twins.
    correlation: float32 (P,) of each pair.
  """

  image: np.ndarray
  pairs: np.ndarray
  correlation: np.ndarray

  def groups(self, rows: np.ndarray) -> np.ndarray:
    """int32 (n,): rows with one number are linked by twins among `rows`.

    A twin outside `rows` links nothing, so how training rows are grouped
    does not depend on the test rows.
    """
    present = self._present(rows)
    links = self.pairs[present[self.pairs].all(-1)]
    count = len(present)
    graph = sparse.coo_matrix(
      (np.ones(len(links), np.int8), (links[:, 0], links[:, 1])),
      shape=(count, count),
    )
    _, component = csgraph.connected_components(graph, directed=False)
    _, group = np.unique(component[self.image[rows]], return_inverse=True)
    return group.astype(np.int32)

  def exact_among(self, rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    """bool (n,): whether a row's image occurs, pixel by pixel, in `among`."""
    return self._present(among)[self.image[rows]]

  def any_among(self, rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    """bool (n,): whether a row has an exact or a near twin in `among`."""
    present = self._present(among)
    touched = present.copy()
    first, second = self.pairs[:, 0], self.pairs[:, 1]
    touched[first[present[second]]] = True
    touched[second[present[first]]] = True
    return touched[self.image[rows]]

  def _present(self, rows: np.ndarray) -> np.ndarray:
    present = np.zeros(int(self.image.max(initial=-1)) + 1, bool)
    present[self.image[rows]] = True
    return present


def find(dataset: Dataset, *, threshold: float = THRESHOLD) -> Twins:
  """All twins of a data set; computed once and kept beside the build.

  Args:
    dataset: a built data set of at least one row.
    threshold: least correlation of near twins.

  Returns:
    The twins. A clip is compared by the mean of its frames.
  """
  path = cache_path(dataset, threshold)
  known = _read_cache(path, dataset, threshold)
  if known is not None:
    return known
  started = time.monotonic()
  print(
    f'{dataset.name}: comparing {len(dataset):,} images for twins (once)',
    file=sys.stderr,
  )
  image, pixels = _different_images(dataset)
  pairs, correlation = near_pairs(pixels, threshold)
  twins = Twins(image, pairs, correlation)
  print(
    f'{dataset.name}: {len(image) - len(pixels):,} exact copies, '
    f'{len(pairs):,} near pairs, {time.monotonic() - started:.0f} s',
    file=sys.stderr,
  )
  _write_cache(path, dataset, threshold, twins)
  return twins


def near_pairs(
  pixels: np.ndarray, threshold: float = THRESHOLD
) -> tuple[np.ndarray, np.ndarray]:
  """Pairs of images whose correlation reaches the threshold: all of them.

  Args:
    pixels: (U, P) uint8 or float32 grey values, different rows.
    threshold: above 0, at most 1.

  Returns:
    (pairs int32 (n, 2), rising, first below second; correlation float32).
    An image of one value correlates with nothing.
  """
  unit = _unit_rows(pixels)
  found = []
  for top in range(0, len(unit), _BLOCK):
    upper = unit[top : top + _BLOCK]
    for left in range(top, len(unit), _BLOCK):
      product = upper @ unit[left : left + _BLOCK].T
      first, second = np.nonzero(product >= threshold - _MARGIN)
      first, second = first + top, second + left
      below = first < second
      found.append(np.stack([first[below], second[below]], -1))
  pairs = np.concatenate(found) if found else np.zeros((0, 2), np.int64)
  pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
  correlation = np.concatenate(
    [
      _exact_correlation(pixels, pairs[start : start + _ROWS_A_READ])
      for start in range(0, max(len(pairs), 1), _ROWS_A_READ)
    ]
  )
  kept = correlation >= threshold
  return pairs[kept].astype(np.int32), correlation[kept].astype(np.float32)


def cache_path(dataset: Dataset, threshold: float) -> pathlib.Path:
  """File beside the build that keeps its twins."""
  root = pathlib.Path(dataset.root)
  return root.parent / f'{root.name}.twins-{threshold:.4g}.npz'


def _unit_rows(pixels: np.ndarray) -> np.ndarray:
  """float32 (U, P): mean 0 and norm 1, or all 0 for a constant image."""
  unit = pixels.astype(np.float32)
  unit -= unit.mean(-1, keepdims=True, dtype=np.float64).astype(np.float32)
  constant = pixels.max(-1) == pixels.min(-1)
  norm = np.sqrt(np.einsum('up,up->u', unit, unit))
  norm[constant] = 1.0
  unit /= norm[:, None]
  unit[constant] = 0.0
  return unit


def _exact_correlation(pixels: np.ndarray, pairs: np.ndarray) -> np.ndarray:
  first, second = pixels[pairs[:, 0]], pixels[pairs[:, 1]]
  first, second = first.astype(np.float64), second.astype(np.float64)
  first -= first.mean(-1, keepdims=True)
  second -= second.mean(-1, keepdims=True)
  covariance = np.einsum('np,np->n', first, second)
  norms = np.einsum('np,np->n', first, first)
  norms *= np.einsum('np,np->n', second, second)
  return covariance / np.sqrt(norms)


def _different_images(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
  """(image (N,), grey pixels (U, P)) with exact copies taken together."""
  number: dict[bytes, int] = {}
  image = np.zeros(len(dataset), np.int32)
  shapes = set()
  first_rows = []
  for start in range(0, len(dataset), _ROWS_A_READ):
    rows = np.arange(start, min(start + _ROWS_A_READ, len(dataset)))
    for row, stored in zip(rows, dataset.read(rows), strict=True):
      shapes.add(stored.shape[-3:])
      digest = hashlib.sha256(repr(stored.shape).encode())
      digest.update(stored.tobytes())
      image[row] = number.setdefault(digest.digest(), len(number))
      if image[row] == len(first_rows):
        first_rows.append(row)
  size = shapes.pop()[:2]
  if shapes or 4 * len(first_rows) * size[0] * size[1] > _FULL_SIZE_BYTES:
    size = _COMMON_SIZE
  clips = 'frame_count' in dataset.table
  pixels = np.zeros(
    (len(first_rows), size[0] * size[1]), np.float32 if clips else np.uint8
  )
  for start in range(0, len(first_rows), _ROWS_A_READ):
    rows = np.asarray(first_rows[start : start + _ROWS_A_READ])
    for n, stored in enumerate(dataset.read(rows), start):
      grey = resize.convert(stored, size=size, channels=1)
      pixels[n] = (grey.mean(0) if clips else grey).reshape(-1)
  return image, pixels


def _read_cache(
  path: pathlib.Path, dataset: Dataset, threshold: float
) -> Twins | None:
  try:
    # Opened here: np.load leaves a damaged file open.
    with path.open('rb') as f, np.load(f, allow_pickle=False) as kept:
      if str(kept['key']) != _cache_key(dataset, threshold):
        return None
      return Twins(kept['image'], kept['pairs'], kept['correlation'])
  except FileNotFoundError:
    return None
  except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
    print(f'{path} is damaged; comparing the images anew', file=sys.stderr)
    return None


def _write_cache(
  path: pathlib.Path, dataset: Dataset, threshold: float, twins: Twins
) -> None:
  try:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix='.twins-')
    try:
      with os.fdopen(handle, 'wb') as f:
        np.savez_compressed(
          f,
          key=_cache_key(dataset, threshold),
          image=twins.image,
          pairs=twins.pairs,
          correlation=twins.correlation,
        )
      os.replace(temporary, path)
    except BaseException:
      pathlib.Path(temporary).unlink(missing_ok=True)
      raise
  except OSError as error:
    print(f'twins not kept in {path}: {error.strerror}', file=sys.stderr)


def _cache_key(dataset: Dataset, threshold: float) -> str:
  options = sorted(dataset.options.items())
  return (
    f'{_FORMAT} {dataset.name} {dataset.version} {dataset.checksum} '
    f'{options} {len(dataset)} {threshold!r}'
  )
