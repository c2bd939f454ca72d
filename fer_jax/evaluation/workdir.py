"""What evaluation leaves in a run's folder, and how it is read back.

    predictions_SPLIT.npz  id (n,), logits (n, K), label (n,)
    metrics_SPLIT.json     every figure, and where it comes from
    examples_SPLIT.npz     images for the report: see `Examples`

Each file is written whole or not at all. Reading needs no JAX.
"""

import dataclasses
import hashlib
import io
import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from fer_jax import files
from fer_jax.errors import UserError

SPLITS = ('validation', 'test')


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Some examples with their images and what the model made of them.

  Attributes:
    ids: (m,) text.
    labels: (m,) true classes.
    probs: (m, K) probabilities.
    images: uint8 (m, H, W, C), or (m, T, H, W, C) for clips.
    frame_mask: bool (m, T) of clips, else None.
    attention: (m, T) attention weights that sum to 1, None without attention.
  """

  ids: np.ndarray
  labels: np.ndarray
  probs: np.ndarray
  images: np.ndarray
  frame_mask: np.ndarray | None = None
  attention: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.ids)


@dataclasses.dataclass(frozen=True)
class Examples:
  """Examples for the report.

  Attributes:
    mistakes: wrong predictions, the highest loss first; None where all is
      right.
    attended: examples with attention weights, None for a model without.
    token_grid: (rows, columns) of the tokens on the image, None where a token
      is a frame of a clip.
  """

  mistakes: Pictures | None
  attended: Pictures | None
  token_grid: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """One split's files of one run.

  Attributes:
    split: 'validation' or 'test', or 'on_NAME' of another data set.
    metrics: content of metrics_SPLIT.json.
    ids: (n,) text.
    logits: (n, K) float32.
    labels: (n,) int32.
    examples: None where examples_SPLIT.npz is missing.
  """

  split: str
  metrics: dict[str, Any]
  ids: np.ndarray
  logits: np.ndarray
  labels: np.ndarray
  examples: Examples | None


def digest_of_ids(ids: np.ndarray) -> str:
  """SHA-256 of the ids in order: equal where the same examples were scored."""
  return hashlib.sha256('\n'.join(map(str, ids)).encode()).hexdigest()


def digest_of_predictions(
  ids: np.ndarray, logits: np.ndarray, labels: np.ndarray
) -> str:
  """SHA-256 that ties figures to the predictions they were computed from."""
  digest = hashlib.sha256(digest_of_ids(ids).encode())
  digest.update(np.ascontiguousarray(logits, '<f4').tobytes())
  digest.update(np.ascontiguousarray(labels, '<i4').tobytes())
  return digest.hexdigest()


def write_evaluation(workdir: pathlib.Path, evaluation: Evaluation) -> None:
  """Writes a split's three files, metrics_SPLIT.json last.

  The metrics hold a digest of the predictions, which the reader compares: a
  set of files torn by an interruption is noticed.
  """
  split = evaluation.split
  arrays = {
    'id': np.asarray(evaluation.ids, str),
    'logits': np.asarray(evaluation.logits, np.float32),
    'label': np.asarray(evaluation.labels, np.int32),
  }
  write_npz(workdir / f'predictions_{split}.npz', arrays)
  if evaluation.examples is not None:
    write_npz(
      workdir / f'examples_{split}.npz', _example_arrays(evaluation.examples)
    )
  metrics = evaluation.metrics | {
    'ids_sha256': digest_of_ids(arrays['id']),
    'predictions_sha256': digest_of_predictions(*arrays.values()),
  }
  files.write_json(workdir / f'metrics_{split}.json', metrics)


def read_evaluation(workdir: pathlib.Path, split: str) -> Evaluation | None:
  """Reads a split's files; None where the split was not evaluated.

  Raises:
    UserError: a file is missing, damaged, or not of the same evaluation.
  """
  path = workdir / f'metrics_{split}.json'
  if not path.exists():
    return None
  metrics = files.read_json(path)
  again = f'run evaluate --workdir={workdir} --split={split} again'
  predictions_path = workdir / f'predictions_{split}.npz'
  arrays = _read_npz(predictions_path, ('id', 'logits', 'label'), again)
  ids, logits, labels = arrays['id'], arrays['logits'], arrays['label']
  if digest_of_ids(ids) != metrics.get('ids_sha256'):
    raise UserError(
      f'{predictions_path} holds {len(ids)} ids that are not the '
      f'{metrics.get("n")} that {path.name} was computed from; {again}'
    )
  found = digest_of_predictions(ids, logits, labels)
  if found != metrics.get('predictions_sha256'):
    raise UserError(
      f'{predictions_path} holds other logits or labels than those that '
      f'{path.name} was computed from; {again}'
    )
  num_classes = len(metrics.get('class_names', ()))
  if logits.shape != (len(ids), num_classes):
    raise UserError(
      f'{predictions_path} holds logits of shape {logits.shape}, expected '
      f'({len(ids)}, {num_classes}); {again}'
    )
  examples_path = workdir / f'examples_{split}.npz'
  examples = None
  if examples_path.exists():
    examples = _examples_of(_read_npz(examples_path, (), again), again)
  return Evaluation(split, metrics, ids, logits, labels, examples)


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **dict[str, Any](arrays))
  files.write_bytes(path, buffer.getvalue())


def _read_npz(
  path: pathlib.Path, names: tuple[str, ...], again: str
) -> dict[str, np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
  except FileNotFoundError:
    raise UserError(f'{path} is missing; {again}') from None
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f'{path} is damaged ({error}); {again}') from error
  absent = [name for name in names if name not in arrays]
  if absent:
    raise UserError(f'{path} holds no array {absent[0]!r}; {again}')
  return arrays


_FIELDS = tuple(field.name for field in dataclasses.fields(Pictures))


def _example_arrays(examples: Examples) -> dict[str, np.ndarray]:
  arrays: dict[str, np.ndarray] = {}
  if examples.mistakes is not None:
    arrays |= _prefixed('mistakes', examples.mistakes)
  if examples.attended is not None:
    arrays |= _prefixed('attended', examples.attended)
  if examples.token_grid is not None:
    arrays['token_grid'] = np.asarray(examples.token_grid, np.int32)
  return arrays


def _prefixed(prefix: str, pictures: Pictures) -> dict[str, np.ndarray]:
  values = {name: getattr(pictures, name) for name in _FIELDS}
  return {
    f'{prefix}_{name}': np.asarray(value)
    for name, value in values.items()
    if value is not None
  }


def _examples_of(arrays: dict[str, np.ndarray], again: str) -> Examples:
  def pictures(prefix: str) -> Pictures | None:
    if f'{prefix}_ids' not in arrays:
      return None
    try:
      return Pictures(
        **{
          name: arrays[f'{prefix}_{name}']
          for name in _FIELDS
          if f'{prefix}_{name}' in arrays
        }
      )
    except TypeError:
      raise UserError(
        f'an examples file lacks {prefix} arrays; {again}'
      ) from None

  grid = arrays.get('token_grid')
  return Examples(
    mistakes=pictures('mistakes'),
    attended=pictures('attended'),
    token_grid=None if grid is None else (int(grid[0]), int(grid[1])),
  )
