"""What evaluation leaves in a run's folder, and how it is read back.

    predictions_SPLIT.npz  id (n,), logits (n, K), label (n,), and unit (n,)
                           where people or recordings are resampled
    metrics_SPLIT.json     every figure, and where it comes from
    examples_SPLIT.npz     images for the report: see `Examples`

With test-time augmentation SPLIT is `part_of` it, as test_flip, so that the
plain evaluation stays. All three files are replaced together or not at all.
Reading needs no JAX.
"""

import dataclasses
import hashlib
import io
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fer_jax import files, forms
from fer_jax.datasets.dataset import OFFICIAL_SPLITS
from fer_jax.errors import UserError

SPLITS = ('validation', 'test')
VIEWS = (('plain',), ('plain', 'flip'), ('crops',), ('crops', 'flip'))
"""What a model can be shown of an example; its answers are averaged."""


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
    split: of the files' names: 'validation' or 'test', either with the views
      as `part_of` gives it, or of another data set, as `part_on`.
    metrics: content of metrics_SPLIT.json.
    ids: (n,) text.
    logits: (n, K) float32.
    labels: (n,) int32.
    examples: None where examples_SPLIT.npz is missing.
    units: (n,) text, equal for examples that are resampled together; None
      where that is each example with its copies.
  """

  split: str
  metrics: dict[str, Any]
  ids: np.ndarray
  logits: np.ndarray
  labels: np.ndarray
  examples: Examples | None
  units: np.ndarray | None = None

  @property
  def resampled(self) -> np.ndarray:
    """(n,) text: `units`, or the ids."""
    return self.ids if self.units is None else self.units


class UnsavedError(UserError):
  """An evaluation was made and cannot be written.

  Attributes:
    metrics: its figures, which nothing else holds.
  """

  def __init__(self, message: str, metrics: dict[str, Any]):
    super().__init__(message)
    self.metrics = metrics


def digest_of_ids(ids: np.ndarray) -> str:
  """SHA-256 of the ids in order: equal where the same examples were scored."""
  return hashlib.sha256('\n'.join(map(str, ids)).encode()).hexdigest()


def digest_of_predictions(
  ids: np.ndarray,
  logits: np.ndarray,
  labels: np.ndarray,
  units: np.ndarray | None = None,
) -> str:
  """SHA-256 that ties figures to the predictions they were computed from."""
  digest = hashlib.sha256(digest_of_ids(ids).encode())
  digest.update(np.ascontiguousarray(logits, '<f4').tobytes())
  digest.update(np.ascontiguousarray(labels, '<i4').tobytes())
  if units is not None:
    digest.update(digest_of_ids(units).encode())
  return digest.hexdigest()


def part_of(split: str, views: Sequence[str]) -> str:
  """What the files of a split under some views, one of `VIEWS`, end in."""
  return '_'.join([split, *(view for view in views if view != 'plain')])


def part_on(name: str, split: str, chosen: Mapping[str, Any]) -> str:
  """What the files of another data set's split end in, views aside.

  Args:
    name: of the data set.
    split: one of its official splits, or '' for all of it.
    chosen: what tells its build from others of that name: options that are not
      at their defaults, and the checksum where it was asked for.
  """
  build = f'_of_{files.digest(dict(chosen))[:8]}' if chosen else ''
  return f'on_{name}{build}' + (f'_{split}' if split else '')


def write_evaluation(workdir: pathlib.Path, evaluation: Evaluation) -> None:
  """Writes a split's three files.

  The metrics hold a digest of the predictions. What belongs to them is written
  before them, under a name with that digest, by which it is found where an
  interruption came before it got its own: until the metrics are replaced, an
  earlier evaluation stands whole.

  Raises:
    UnsavedError: a file cannot be written.
  """
  try:
    _write_evaluation(workdir, evaluation)
  except OSError as error:
    raise UnsavedError(
      f'cannot write the evaluation of {evaluation.split} to {workdir}: '
      f'{error.strerror}',
      evaluation.metrics,
    ) from error


def _write_evaluation(workdir: pathlib.Path, evaluation: Evaluation) -> None:
  split = evaluation.split
  arrays = {
    'id': np.asarray(evaluation.ids, str),
    'logits': np.asarray(evaluation.logits, np.float32),
    'label': np.asarray(evaluation.labels, np.int32),
  }
  if evaluation.units is not None:
    arrays['unit'] = np.asarray(evaluation.units, str)
  metrics = evaluation.metrics | {
    'ids_sha256': digest_of_ids(arrays['id']),
    'predictions_sha256': digest_of_predictions(*arrays.values()),
  }
  content = {workdir / f'predictions_{split}.npz': arrays}
  if evaluation.examples is not None:
    path = workdir / f'examples_{split}.npz'
    content[path] = _example_arrays(evaluation.examples)
  for path, named in content.items():
    write_npz(_pending(path, metrics), named)
  files.write_json(workdir / f'metrics_{split}.json', metrics)
  for path in content:
    _pending(path, metrics).replace(path)
    for other in path.parent.glob(f'.{path.name}.of_*'):
      other.unlink()


def _pending(path: pathlib.Path, metrics: dict[str, Any]) -> pathlib.Path:
  """What a file of certain metrics is called until they are written."""
  digest = re.sub('[^0-9a-f]', '', str(metrics.get('predictions_sha256')))[:12]
  return path.with_name(f'.{path.name}.of_{digest}')


def _whole(path: pathlib.Path, metrics: dict[str, Any]) -> pathlib.Path:
  """Where the file of certain metrics is."""
  pending = _pending(path, metrics)
  return pending if pending.exists() else path


def latest_evaluation(workdir: pathlib.Path, split: str) -> Evaluation | None:
  """The evaluation of a split that was made last, under whatever views.

  Args:
    workdir: of the run.
    split: of `SPLITS`, which it is called by as well.

  Raises:
    UserError: as `read_evaluation`.
  """
  found = [read_evaluation(workdir, part_of(split, views)) for views in VIEWS]
  known = [evaluation for evaluation in found if evaluation is not None]
  if not known:
    return None
  # Of equal times the last one.
  latest = max(reversed(known), key=lambda e: e.metrics.get('time') or '')
  return dataclasses.replace(latest, split=split)


def read_evaluation(workdir: pathlib.Path, split: str) -> Evaluation | None:
  """Reads a split's files; None where the split was not evaluated.

  Raises:
    UserError: a file is missing, damaged, or not of the same evaluation.
  """
  path = workdir / f'metrics_{split}.json'
  if not path.exists():
    return None
  metrics = files.read_json(path)
  again = f'run evaluate --workdir={workdir} {_flags(split)} again'
  wrong = forms.misfit(metrics, _METRICS)
  if wrong:
    raise UserError(f'{path}: {wrong}; {again}')
  predictions_path = _whole(workdir / f'predictions_{split}.npz', metrics)
  arrays = _read_npz(predictions_path, _PREDICTIONS, again)
  ids, logits, labels = arrays['id'], arrays['logits'], arrays['label']
  units = arrays.get('unit')
  if units is not None:
    _check_array(predictions_path, 'unit', units, 1, 'U', again)
  if digest_of_ids(ids) != metrics.get('ids_sha256'):
    raise UserError(
      f'{predictions_path} holds {len(ids)} ids that are not the '
      f'{metrics.get("n")} that {path.name} was computed from; {again}'
    )
  found = digest_of_predictions(ids, logits, labels, units)
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
  _check_predictions(predictions_path, logits, labels, units, again)
  examples_path = _whole(workdir / f'examples_{split}.npz', metrics)
  examples = None
  if examples_path.exists():
    arrays = _read_npz(examples_path, {}, again)
    examples = _examples_of(examples_path, arrays, num_classes, again)
  return Evaluation(split, metrics, ids, logits, labels, examples, units)


def _flags(split: str) -> str:
  """The flags of `evaluate` that make the files of a split."""
  # The plain view, of which nothing is said, fits last.
  views = next(v for v in reversed(VIEWS) if split.endswith(part_of('', v)))
  split = split.removesuffix(part_of('', views))
  names = [view for view in views if view != 'plain']
  augmented = f' --tta={",".join(names)}' if names else ''
  if not split.startswith('on_'):
    return f'--split={split}{augmented}'
  name = split.removeprefix('on_')
  for official in OFFICIAL_SPLITS:
    if name.endswith(f'_{official}'):
      name = name.removesuffix(f'_{official}')
      augmented = f' --split={official}{augmented}'
  name, chosen = re.subn('_of_[0-9a-f]{8}$', '', name)
  given = ' (with its --option or --checksum)' if chosen else ''
  return f'--dataset={name}{augmented}{given}'


def write_npz(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  buffer = io.BytesIO()
  np.savez_compressed(buffer, **dict[str, Any](arrays))
  files.write_bytes(path, buffer.getvalue())


OF = {
  'model': forms.text,
  'dataset': {'name': forms.text},
  'protocol': {
    'name': forms.text,
    'leaks': forms.flag,
    'reason': forms.text,
  },
}
"""What figures are of, where they are shown."""

ACCURACY = {
  'accuracy': forms.number,
  'intervals': {'accuracy': forms.optional(forms.pair)},
}

# What readers rely on where it is there; which figures they need, they say.
_TRIPLE = {
  'precision': forms.number,
  'recall': forms.number,
  'f1': forms.number,
}
_INTERVALS = {'*': forms.optional(forms.pair)}
_PART = {
  'n': forms.count,
  'accuracy': forms.optional(forms.number),
  'macro_f1': forms.optional(forms.number),
  'intervals': _INTERVALS,
}
_GAP = {
  'best': forms.text,
  'worst': forms.text,
  'accuracy': forms.number,
  'interval': forms.optional(forms.pair),
}
_MEMBERS = {'*': forms.anything}
_METRICS = {
  'n?': forms.count,
  'class_names?': [forms.text],
  'accuracy?': forms.number,
  'balanced_accuracy?': forms.number,
  'loss?': forms.number,
  'expected_calibration_error?': forms.number,
  'auc_macro?': forms.optional(forms.number),
  'macro?': _TRIPLE,
  'weighted?': _TRIPLE,
  'intervals?': _INTERVALS,
  'per_class?': [
    {
      'name': forms.text,
      'support': forms.count,
      'precision': forms.number,
      'recall': forms.optional(forms.number),
      'f1': forms.optional(forms.number),
      'auc': forms.optional(forms.number),
    }
  ],
  'confusion?': [[forms.count]],
  'calibration?': [
    {
      'lower': forms.number,
      'upper': forms.number,
      'count': forms.count,
      'accuracy': forms.optional(forms.number),
      'confidence': forms.optional(forms.number),
    }
  ],
  'absent_classes?': [forms.text],
  'slices?': {'*': _PART},
  'groups?': {
    '*': {'groups': {'*': _PART}, 'gap': forms.optional(_GAP)},
  },
  'views?': [forms.text],
  'unit?': forms.text,
  'checkpoint?': _MEMBERS,
  'definitions?': {'*': forms.text},
  'looks?': forms.optional(forms.count),
  'seconds?': forms.number,
  'time?': forms.optional(forms.text),
  'dataset?': _MEMBERS,
  'chosen?': _MEMBERS,
  'class_map?': {'*': forms.text},
  'left_out?': {'*': forms.count},
  'copies?': forms.optional(forms.count),
  'near_copies?': forms.optional(forms.count),
}
# Axes, and kinds of dtype: (1, 'U') is a list of texts.
_PREDICTIONS = {'id': (1, 'U'), 'logits': (2, 'f'), 'label': (1, 'iu')}


def _read_npz(
  path: pathlib.Path, expected: Mapping[str, tuple[int, str]], again: str
) -> dict[str, np.ndarray]:
  """An .npz that has the arrays expected, of their axes and kinds.

  Raises:
    UserError: it is missing, damaged or has not.
  """
  if not path.exists():
    raise UserError(f'{path} is missing; {again}')
  try:
    arrays = files.read_npz(path)
  except UserError as error:
    raise UserError(f'{error}; {again}') from error
  for name, (axes, kinds) in expected.items():
    if name not in arrays:
      raise UserError(f'{path} holds no array {name!r}; {again}')
    _check_array(path, name, arrays[name], axes, kinds, again)
  return arrays


def _check_array(
  path: pathlib.Path,
  name: str,
  array: np.ndarray,
  axes: int,
  kinds: str,
  again: str,
) -> None:
  if array.ndim != axes or array.dtype.kind not in kinds:
    raise UserError(
      f'{path}: {name} is {array.dtype} {array.shape}, expected {axes} axes of '
      f'kind {" or ".join(kinds)}; {again}'
    )


def _check_predictions(
  path: pathlib.Path,
  logits: np.ndarray,
  labels: np.ndarray,
  units: np.ndarray | None,
  again: str,
) -> None:
  """Raises UserError where no figure can be computed of them."""
  num_classes = logits.shape[1]
  wrong = None
  if not len(labels) or labels.shape != logits.shape[:1]:
    wrong = f'{len(labels)} labels for {len(logits)} logits'
  elif units is not None and units.shape != labels.shape:
    wrong = f'{len(units)} units for {len(labels)} labels'
  elif labels.min() < 0 or labels.max() >= num_classes:
    wrong = f'labels from {labels.min()} to {labels.max()}'
  elif not np.isfinite(logits).all():
    wrong = 'logits that are not finite'
  if wrong:
    raise UserError(f'{path} holds {wrong}; {again}')


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


# Their axes and kinds; images have five axes for clips.
_SHOWN = {
  'ids': ((1,), 'U'),
  'labels': ((1,), 'iu'),
  'probs': ((2,), 'f'),
  'images': ((4, 5), 'u'),
  'frame_mask': ((2,), 'b'),
  'attention': ((2,), 'f'),
}


def _examples_of(
  path: pathlib.Path,
  arrays: dict[str, np.ndarray],
  num_classes: int,
  again: str,
) -> Examples:
  def pictures(prefix: str) -> Pictures | None:
    if f'{prefix}_ids' not in arrays:
      return None
    found = {
      name: arrays[f'{prefix}_{name}']
      for name in _FIELDS
      if f'{prefix}_{name}' in arrays
    }
    try:
      shown = Pictures(**found)
    except TypeError:
      raise UserError(f'{path} lacks {prefix} arrays; {again}') from None
    for name, array in found.items():
      axes, kinds = _SHOWN[name]
      _check_array(
        path,
        f'{prefix}_{name}',
        array,
        array.ndim if array.ndim in axes else axes[0],
        kinds,
        again,
      )
    wrong = _unshowable(shown, found, num_classes)
    if wrong:
      raise UserError(f'{path}: {prefix}: {wrong}; {again}')
    return shown

  grid = arrays.get('token_grid')
  if grid is not None:
    _check_array(path, 'token_grid', grid, 1, 'iu', again)
    if grid.shape != (2,) or grid.min() < 1 or grid.max() > 1 << 12:
      raise UserError(f'{path}: token_grid is {grid}, two sides; {again}')
  attended = pictures('attended')
  if attended is not None and attended.attention is None:
    raise UserError(f'{path} lacks attended arrays; {again}')
  return Examples(
    mistakes=pictures('mistakes'),
    attended=attended,
    token_grid=None if grid is None else (int(grid[0]), int(grid[1])),
  )


def _unshowable(
  shown: Pictures, found: dict[str, np.ndarray], num_classes: int
) -> str | None:
  """Why pictures cannot be shown; None where they can."""
  m, images = len(shown.ids), shown.images
  if any(len(array) != m for array in found.values()):
    return 'arrays of different lengths'
  if images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
    return f'images are {images.dtype} {images.shape}'
  if not images.size or max(images.shape[-3:-1]) > 1 << 12:
    return f'images of {images.shape}'
  if shown.probs.shape != (m, num_classes):
    return f'probs are {shown.probs.shape}, expected ({m}, {num_classes})'
  if shown.labels.min() < 0 or shown.labels.max() >= num_classes:
    return f'labels from {shown.labels.min()} to {shown.labels.max()}'
  if any(
    not np.isfinite(a).all() for a in found.values() if a.dtype.kind == 'f'
  ):
    return 'values that are not finite'
  mask = shown.frame_mask
  if mask is not None and (
    images.ndim != 5 or mask.shape != images.shape[:2] or not mask.any(1).all()
  ):
    return f'frame_mask is {mask.shape} for images {images.shape}'
  return None
