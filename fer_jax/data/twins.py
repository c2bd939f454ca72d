"""Images that occur more than once in a data set, exactly or nearly.

Exact twins have the same pixels. Near twins have a Pearson correlation of at
least 0.90 over all their grey pixels: the same photograph brightened, or
compressed again. Hashes of thumbnails would be faster and are wrong either
way: FER2013 has many pairs within two bits that show different faces. So all
pairs are compared, as blocks of one matrix product of the centred images.
Mirrored twins are near when one of them is turned; of those more is asked, for
two people who look straight at the camera are like each other's mirror image.
"""

import dataclasses
import hashlib
import io
import pathlib
import sys
import time

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from fer_jax import datasets, files
from fer_jax.data import resize
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError

THRESHOLD = 0.90
# FER2013's mirrored pairs are one photograph down to 0.92, strangers among
# them below.
MIRRORED_THRESHOLD = 0.93

# Raised when the same images would give other twins.
_FORMAT = 2
# Pixels of pairs that are computed again at a time, 64 MB of both in float64.
_PIXELS_AT_ONCE = 1 << 22
# Rows of a block of the product: 2,048 x 2,048 float32 is 16 MB.
_BLOCK = 2048
# float32 products of unit vectors are right to 1e-6; whatever is this near
# to the threshold is computed again exactly.
_MARGIN = 1e-4
# Larger sets, and sets of unequal images, are compared at 48 x 48.
_FULL_SIZE_BYTES = 1 << 30
_COMMON_SIZE = (48, 48)
# No correlation reaches it: the cache of exact twins alone.
_EXACT = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Twins:
  """Who is whose twin in a data set of N rows with U different images.

  Attributes:
    image: int32 (N,), number of the image in each row, 0 to U - 1; rows with
      one number are exact twins.
    pairs: int32 (P, 2), numbers of different images that are near twins.
    correlation: float32 (P,) of each pair.
    mirrored: int32 (Q, 2), numbers of images that are near twins once one of
      them is turned, and are none as they stand.
    mirrored_correlation: float32 (Q,) of each of those.
  """

  image: np.ndarray
  pairs: np.ndarray
  correlation: np.ndarray
  mirrored: np.ndarray
  mirrored_correlation: np.ndarray

  @classmethod
  def exact(cls, image: np.ndarray) -> 'Twins':
    """Exact twins alone."""
    none, nothing = np.zeros((0, 2), np.int32), np.zeros(0, np.float32)
    return cls(image, none, nothing, none, nothing)

  def groups(self, rows: np.ndarray) -> np.ndarray:
    """int32 (n,): rows with one number are linked by twins among `rows`.

    A twin outside `rows` links nothing, so how training rows are grouped
    does not depend on the test rows.
    """
    present = self._present(rows)
    links = np.concatenate([self.pairs, self.mirrored])
    links = links[present[links].all(-1)]
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

  def near_among(self, rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    """bool (n,): whether a row has an exact or a near twin in `among`."""
    return self._linked_among(rows, among, self.pairs)

  def any_among(self, rows: np.ndarray, among: np.ndarray) -> np.ndarray:
    """bool (n,): as `near_among`, mirrored twins included."""
    links = np.concatenate([self.pairs, self.mirrored])
    return self._linked_among(rows, among, links)

  def _linked_among(self, rows, among, links) -> np.ndarray:
    present = self._present(among)
    touched = present.copy()
    first, second = links[:, 0], links[:, 1]
    touched[first[present[second]]] = True
    touched[second[present[first]]] = True
    return touched[self.image[rows]]

  def of_rows(self, rows: np.ndarray) -> 'Twins':
    """The twins among some rows, which become rows 0 to n - 1."""
    images, image = np.unique(self.image[rows], return_inverse=True)
    number = np.full(int(self.image.max(initial=-1)) + 1, -1, np.int32)
    number[images] = np.arange(len(images))
    pairs, mirrored = number[self.pairs], number[self.mirrored]
    inside, within = (pairs >= 0).all(-1), (mirrored >= 0).all(-1)
    return Twins(
      image.astype(np.int32),
      pairs[inside],
      self.correlation[inside],
      mirrored[within],
      self.mirrored_correlation[within],
    )

  def _present(self, rows: np.ndarray) -> np.ndarray:
    present = np.zeros(int(self.image.max(initial=-1)) + 1, bool)
    present[self.image[rows]] = True
    return present


def find(dataset: Dataset, *, threshold: float = THRESHOLD) -> Twins:
  """All twins of a data set; computed once and kept beside the build.

  Args:
    dataset: a built data set of at least one row.
    threshold: least correlation of near twins; mirrored ones need
      `MIRRORED_THRESHOLD`, or this where it is more.

  Returns:
    The twins. A clip is compared by the mean of its frames.
  """
  if dataset.rows is not None:
    whole = find(dataset.build(), threshold=threshold)
    return whole.of_rows(dataset.rows)
  kept = _read_cache(dataset, threshold)
  if kept is not None:
    return kept
  started = time.monotonic()
  print(
    f'{dataset.name}: comparing {len(dataset):,} images for twins (once)',
    file=sys.stderr,
  )
  image = image_numbers(dataset)
  _, first_rows = np.unique(image, return_index=True)
  size = common_size(_shapes(dataset), len(first_rows))
  pixels = grey_images(dataset, first_rows, size)
  pairs, correlation = near_pairs(pixels, threshold)
  mirrored, turned = _mirrored_pairs(
    pixels,
    pixels,
    size,
    pairs,
    threshold=max(threshold, MIRRORED_THRESHOLD),
    below=True,
  )
  twins = Twins(image, pairs, correlation, mirrored, turned)
  print(
    f'{dataset.name}: {len(image) - len(pixels):,} exact copies, '
    f'{len(pairs):,} near and {len(mirrored):,} mirrored pairs, '
    f'{time.monotonic() - started:.0f} s',
    file=sys.stderr,
  )
  _write_cache(dataset, threshold, twins)
  return twins


def known(dataset: Dataset) -> Twins:
  """The twins that mean something on this set.

  Near twins of photographs gathered from the web are copies. Of faces that
  were aligned, rendered or taken in one room they are not: strangers
  correlate above any threshold there, so only exact twins count.
  """
  if near_twins_are_copies(dataset):
    return find(dataset)
  if dataset.rows is not None:
    return known(dataset.build()).of_rows(dataset.rows)
  kept = _read_cache(dataset, _EXACT)
  if kept is None:
    kept = Twins.exact(image_numbers(dataset))
    _write_cache(dataset, _EXACT, kept)
  return kept


def near_twins_are_copies(dataset: Dataset) -> bool:
  """Whether the builder of a set says that its near twins are copies."""
  module = datasets.builder_module(dataset.name)
  if hasattr(module, 'near_twins_are_copies'):
    return module.near_twins_are_copies(dataset.options)
  return getattr(module, 'NEAR_TWINS_ARE_COPIES', False)


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
  return correlated_pairs(pixels, pixels, threshold, below=True)


def correlated_pairs(
  pixels: np.ndarray,
  others: np.ndarray,
  threshold: float = THRESHOLD,
  *,
  below: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """As `near_pairs`, of each of one lot of images with each of another.

  Args:
    pixels: (U, P) grey values.
    others: (V, P) grey values.
    threshold: above 0, at most 1.
    below: only pairs (i, j) with i < j, where the other half says the same.

  Returns:
    (pairs int32 (n, 2), rising, rows of `pixels` and of `others`;
    correlation float32).
  """
  unit = _unit_rows(pixels)
  other = unit if others is pixels else _unit_rows(others)
  found: list[np.ndarray] = [np.zeros((0, 2), np.int64)]
  for top in range(0, len(unit), _BLOCK):
    upper = unit[top : top + _BLOCK]
    for left in range(top if below else 0, len(other), _BLOCK):
      product = upper @ other[left : left + _BLOCK].T
      pairs = np.argwhere(product >= threshold - _MARGIN)
      pairs += np.array([top, left])
      found.append(pairs[pairs[:, 0] < pairs[:, 1]] if below else pairs)
  pairs = np.concatenate(found)
  pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
  step = max(_PIXELS_AT_ONCE // pixels.shape[1], 1)
  correlation = np.concatenate(
    [
      _exact_correlation(pixels, others, pairs[start : start + step])
      for start in range(0, max(len(pairs), 1), step)
    ]
  )
  kept = correlation >= threshold
  return pairs[kept].astype(np.int32), correlation[kept].astype(np.float32)


def pairs_between(
  pixels: np.ndarray, others: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
  """Near twins of one lot of images in another, mirrored ones too.

  They mean something where `near_twins_are_copies` of both sets.

  Args:
    pixels: (U, H * W) grey values.
    others: (V, H * W) grey values.
    size: (H, W).

  Returns:
    As `correlated_pairs`.
  """
  near, correlation = correlated_pairs(pixels, others)
  mirrored, turned = _mirrored_pairs(pixels, others, size, near)
  return (
    np.concatenate([near, mirrored]),
    np.concatenate([correlation, turned]),
  )


def grey_images(
  dataset: Dataset, rows: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
  """(n, H * W) grey values of rows: uint8, or float32 means of clips' frames.

  Args:
    dataset: a built data set.
    rows: (n,) of its table.
    size: (height, width) that images are resized to.
  """
  clips = 'frame_count' in dataset.table
  pixels = np.zeros(
    (len(rows), size[0] * size[1]), np.float32 if clips else np.uint8
  )
  for n, stored in enumerate(dataset.each(rows)):
    grey = resize.convert(stored, size=size, channels=1)
    pixels[n] = (grey.mean(0) if clips else grey).reshape(-1)
  return pixels


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


def _exact_correlation(
  pixels: np.ndarray, others: np.ndarray, pairs: np.ndarray
) -> np.ndarray:
  first, second = pixels[pairs[:, 0]], others[pairs[:, 1]]
  first, second = first.astype(np.float64), second.astype(np.float64)
  first -= first.mean(-1, keepdims=True)
  second -= second.mean(-1, keepdims=True)
  covariance = np.einsum('np,np->n', first, second)
  norms = np.einsum('np,np->n', first, first)
  norms *= np.einsum('np,np->n', second, second)
  return covariance / np.sqrt(norms)


def _mirrored_pairs(
  pixels: np.ndarray,
  others: np.ndarray,
  size: tuple[int, int],
  near: np.ndarray,
  *,
  threshold: float = MIRRORED_THRESHOLD,
  below: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
  """As `correlated_pairs`, near once turned and not among the `near`."""
  turned = others.reshape(-1, *size)[:, :, ::-1].reshape(len(others), -1)
  pairs, correlation = correlated_pairs(pixels, turned, threshold, below=below)
  plain = {tuple(pair) for pair in near.tolist()}
  kept = np.array([tuple(pair) not in plain for pair in pairs.tolist()], bool)
  return pairs[kept], correlation[kept]


def common_size(shapes: set[tuple[int, ...]], count: int) -> tuple[int, int]:
  """(height, width) at which images are compared: theirs, if one and small."""
  sizes = {shape[:2] for shape in shapes}
  size = next(iter(sizes))
  if len(sizes) > 1 or 4 * count * size[0] * size[1] > _FULL_SIZE_BYTES:
    return _COMMON_SIZE
  return (size[0], size[1])


def image_numbers(dataset: Dataset) -> np.ndarray:
  """int32 (N,): rows of equal pixels share a number, 0 to U - 1."""
  number: dict[bytes, int] = {}
  image = np.zeros(len(dataset), np.int32)
  for row, stored in enumerate(dataset.each()):
    digest = hashlib.sha256(repr(stored.shape).encode())
    digest.update(stored.tobytes())
    image[row] = number.setdefault(digest.digest(), len(number))
  return image


def _shapes(dataset: Dataset) -> set[tuple[int, ...]]:
  """(H, W, C) of all images and frames."""
  return {stored.shape[-3:] for stored in dataset.each()}


def _read_cache(dataset: Dataset, threshold: float) -> Twins | None:
  path = cache_path(dataset, threshold)
  try:
    if not path.exists():
      return None
    kept = files.read_npz(path)
    if str(kept['key']) != _cache_key(dataset, threshold):
      return None
    fields = dataclasses.fields(Twins)
    twins = Twins(**{field.name: kept[field.name] for field in fields})
    if _fits(twins, len(dataset)):
      return twins
    wrong = f'{path} is damaged'
  except (UserError, KeyError) as error:
    wrong = f'{path} is damaged' if isinstance(error, KeyError) else error
  print(f'{wrong}; comparing the images anew', file=sys.stderr)
  return None


def _fits(twins: Twins, rows: int) -> bool:
  """Whether what was read are twins among so many rows."""
  if twins.image.dtype != np.int32 or twins.image.shape != (rows,):
    return False
  images = np.unique(twins.image)
  return np.array_equal(images, np.arange(len(images))) and all(
    correlation.dtype == np.float32
    and correlation.ndim == 1
    and pairs.dtype == np.int32
    and pairs.shape == (len(correlation), 2)
    and bool(np.all((pairs >= 0) & (pairs < len(images))))
    for pairs, correlation in (
      (twins.pairs, twins.correlation),
      (twins.mirrored, twins.mirrored_correlation),
    )
  )


def _write_cache(dataset: Dataset, threshold: float, twins: Twins) -> None:
  path = cache_path(dataset, threshold)
  try:
    buffer = io.BytesIO()
    np.savez_compressed(
      buffer, key=_cache_key(dataset, threshold), **vars(twins)
    )
    files.write_bytes(path, buffer.getvalue())
  except OSError as error:
    print(f'twins not kept in {path}: {error.strerror}', file=sys.stderr)


def _cache_key(dataset: Dataset, threshold: float) -> str:
  options = sorted(dataset.options.items())
  return (
    f'{_FORMAT} {dataset.name} {dataset.version} {dataset.checksum} '
    f'{options} {len(dataset)} {threshold!r}'
  )
