"""Evaluates a run on a data set that it was not trained on.

The classes of the other set are mapped to the run's, by name where the names
are equal and otherwise as the caller says: no mapping is guessed. All of the
run's classes compete, also those that the other set does not have: the model
is judged as it would be used, where nobody tells it which expressions occur.
How often it says a class that none of the other set's counts as is counted.

The figures are under no protocol of the run: nothing here decided who
trained. What can be checked is checked: whether images of the other set are
the very ones that trained or selected, as FER+ repeats FER2013, or near twins
of them. Where near twins mean nothing, photographs saved anew are not found,
and that none was found is no proof.
"""

import dataclasses
import hashlib
import pathlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fer_jax import config as config_lib
from fer_jax import datasets, files, hosts
from fer_jax.data import ledger, protocol, twins
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError, nearest
from fer_jax.evaluation import evaluate, intervals
from fer_jax.evaluation import workdir as workdir_lib
from fer_jax.evaluation.evaluate import SplitRows
from fer_jax.evaluation.workdir import Evaluation
from fer_jax.training import task
from fer_jax.training.inference import Predictor

PROTOCOL = 'cross_dataset'
ALL = 'all'
LEFT_OUT = '-'
"""What a class is mapped to whose examples are not scored."""

# Rows without an official split are the test of one protocol or another; so is
# PublicTest, see `protocol.of_public_test`.
_TEST_SPLITS = ('test', 'test_unsplit', 'none')
# Images of two sets are compared for twins at this (height, width).
_TWIN_SIZE = (48, 48)


@dataclasses.dataclass(frozen=True, eq=False)
class _Seen:
  """Which of n examples trained or selected a run.

  Attributes:
    exact: bool (n,), the very same; None where it is not known.
    near: bool (n,), near twins of one and none of the former; None where that
      is not known, or means nothing.
    said: a clause that tells it.
  """

  exact: np.ndarray | None
  near: np.ndarray | None
  said: str

  @property
  def any(self) -> np.ndarray:
    """bool (n,), where `exact` is known."""
    assert self.exact is not None
    return self.exact if self.near is None else self.exact | self.near

  @property
  def leaks(self) -> bool | None:
    """None where it is not known."""
    if self.exact is not None and self.any.any():
      return True
    return None if self.near is None else False


@dataclasses.dataclass(frozen=True, eq=False)
class _Scored:
  """The rows of another data set that are scored.

  Attributes:
    dataset: of N examples and C classes.
    split: of it, or `ALL`.
    mapping: int (C,), the run's label of each class, -1 for none.
    in_split: bool (N,), the rows of the split.
    index: int64 (n,), those of them whose class is mapped to one.
  """

  dataset: Dataset
  split: str
  mapping: np.ndarray
  in_split: np.ndarray
  index: np.ndarray

  @property
  def ids(self) -> np.ndarray:
    """(n,)."""
    return self.dataset.table['id'][self.index]

  @property
  def digest(self) -> str:
    """Of the ids."""
    return workdir_lib.digest_of_ids(self.ids)

  @property
  def is_test(self) -> bool:
    """Whether some row may be of some protocol's test."""
    of_row = self.dataset.table['official_split'][self.index]
    return bool(
      np.isin(of_row, _TEST_SPLITS).any()
      or protocol.of_public_test(self.dataset, self.index).any()
    )


def evaluate_on(
  workdir: str | pathlib.Path,
  name: str,
  *,
  split: str = ALL,
  class_map: Mapping[str, str] | None = None,
  options: Mapping[str, Any] | None = None,
  data_dir: str = '',
  checksum: str = '',
  augmentations: Sequence[str] = (),
  n_boot: int = intervals.BOOTSTRAP_DRAWS,
) -> dict[str, Any]:
  """Scores a run's best checkpoint on another data set.

  Writes metrics_on_NAME.json and predictions_on_NAME.npz, or those of
  on_NAME_SPLIT; of a build that was chosen by options or its checksum, and with
  augmentations, under a name of their own, see `workdir.part_on` and
  `workdir.part_of`. A look at rows that may be some protocol's test is recorded
  in the other set's ledger before its figures are written anywhere else.

  Args:
    workdir: of `train`.
    name: the other data set.
    split: one of its official splits, or `ALL`.
    class_map: its class -> the run's class, or `LEFT_OUT`; classes of equal
      names need no entry.
    options: of its builder, as the build was given them.
    data_dir: where it is built; where the run's data set is by default.
    checksum: first characters of its source's, where several are built.
    augmentations: as for `evaluate.evaluate`.
    n_boot: bootstrap resamples of the intervals.

  Returns:
    The content of the metrics file: that of metrics_SPLIT.json, with
    `trained_on`, `chosen` (see `workdir.part_on`), `class_map`, `left_out`
    (examples by class), `copies` (how many examples the run has seen, None
    where that is not known), `near_copies` (how many more are near twins of
    such, None where that is not known or means nothing) and
    `predicted_elsewhere` (how often the class said is one that no class of the
    other set is mapped to).

  Raises:
    UserError: no workdir or data set, the run's own data set, classes that
      are not mapped, a split it does not have, clips for a model of images or
      the reverse, a workdir that cannot be written.
    workdir.UnsavedError: it can no longer be.
  """
  workdir = pathlib.Path(workdir)
  views = evaluate.checked_views(augmentations)
  predictor = Predictor.from_workdir(workdir)
  begun = time.monotonic()
  config: Any = predictor.config
  dataset = datasets.load(
    name,
    data_dir=data_dir or config.data.data_dir or datasets.default_data_dir(),
    checksum=checksum or None,
    **(options or {}),
  )
  facts = hosts.on_first(lambda: files.read_json(workdir / 'run.json'))
  trained_on = facts.get('dataset', {})
  _require_another(workdir, trained_on, dataset)
  scored = _scored(dataset, split, predictor.class_names, class_map or {})
  own = _own_rows(workdir, config, facts)
  if not isinstance(own, str):
    _require_same_kind(workdir, own[0], dataset)
  evaluate.require_room(workdir, predictor, dataset, len(scored.index))
  if scored.is_test:
    _note_opening(workdir, scored)
  seen = _seen(predictor, own, scored)
  rows = _split_rows(facts, scored, seen)
  logits, labels = _predictions(workdir, predictor, scored, views)
  chosen = datasets.chosen_options(name, dataset.options)
  if checksum:
    chosen['checksum'] = dataset.checksum
  metrics = {
    'split': split,
    **evaluate.figures(predictor, dataset, rows, logits, labels, n_boot=n_boot),
    **evaluate.circumstances(predictor, dataset, rows, views),
    'trained_on': trained_on,
    'chosen': chosen,
    **_class_facts(scored, predictor.class_names),
    'copies': None if seen.exact is None else int(seen.exact.sum()),
    'near_copies': None if seen.near is None else int(seen.near.sum()),
    'predicted_elsewhere': int(
      np.sum(~np.isin(logits.argmax(axis=-1), scored.mapping))
    ),
  }
  if scored.is_test:
    metrics['looks'] = hosts.on_first(
      lambda: evaluate.record_look(workdir, dataset, metrics, scored.ids)
    )
  metrics['seconds'] = time.monotonic() - begun
  part = workdir_lib.part_on(name, '' if split == ALL else split, chosen)
  evaluation = Evaluation(
    workdir_lib.part_of(part, views),
    metrics,
    rows.ids,
    logits,
    labels,
    None,
    evaluate.units_of(dataset, scored.index)[1],
  )
  hosts.on_first(lambda: workdir_lib.write_evaluation(workdir, evaluation))
  return metrics


def parse_class_map(pairs: Sequence[str]) -> dict[str, str]:
  """A class map from texts such as 'happiness:happy'.

  Raises:
    UserError: a text without a colon, or a class given twice.
  """
  class_map: dict[str, str] = {}
  for pair in pairs:
    theirs, colon, ours = (part.strip() for part in pair.partition(':'))
    if not (colon and theirs and ours):
      raise UserError(
        f'--class_map has {pair!r}; expected THEIRS:OURS, as happiness:happy, '
        f'or THEIRS:{LEFT_OUT} to leave a class out'
      )
    if theirs in class_map:
      raise UserError(f'--class_map has class {theirs!r} twice')
    class_map[theirs] = ours
  return class_map


def run_classes(
  theirs: Sequence[str], ours: Sequence[str], class_map: Mapping[str, str]
) -> np.ndarray:
  """int (len(theirs),): the run's label of each class, -1 for none.

  Args:
    theirs: classes of the other data set, in label order.
    ours: the run's.
    class_map: as for `evaluate_on`.

  Raises:
    UserError: an entry of a class that there is not, or classes that are in
      neither the map nor the run.
  """
  for source, target in class_map.items():
    for name, known, whose in (
      (source, theirs, 'the data set'),
      (target, (*ours, LEFT_OUT), 'the run'),
    ):
      if name not in known:
        raise UserError(
          f'--class_map has {source}:{target}, but {whose} has no class '
          f'{name!r}; it has {", ".join(known)}{nearest(name, known)}'
        )
  targets = [class_map.get(name, name) for name in theirs]
  unmapped = [
    name
    for name, target in zip(theirs, targets, strict=True)
    if target != LEFT_OUT and target not in ours
  ]
  if unmapped:
    raise UserError(
      f'the run has no class {", ".join(unmapped)} (it has {", ".join(ours)}); '
      f'map each, as --class_map={unmapped[0]}:CLASS, or leave it out, as '
      f'{unmapped[0]}:{LEFT_OUT}'
    )
  return np.array([-1 if t == LEFT_OUT else ours.index(t) for t in targets])


def _require_another(
  workdir: pathlib.Path, trained_on: dict[str, Any], dataset: Dataset
) -> None:
  """Raises UserError where it is the one that the run was trained on."""
  if _same_source(trained_on, dataset) and (
    # An earlier run may know fewer options than there are now.
    trained_on.get('options', {}).items() <= dataset.options.items()
  ):
    raise UserError(
      f'{workdir} was trained on this very {dataset.name}; evaluate it without '
      '--dataset'
    )


def _scored(
  dataset: Dataset,
  split: str,
  class_names: Sequence[str],
  class_map: Mapping[str, str],
) -> _Scored:
  """The rows of a split of the classes that are scored.

  Raises:
    UserError: there are none; or as `run_classes`.
  """
  mapping = run_classes(dataset.class_names, class_names, class_map)
  of_row = dataset.table['official_split']
  in_split = np.ones(len(dataset), bool) if split == ALL else of_row == split
  if not in_split.any():
    there = ', '.join([ALL, *dataset.counts()])
    raise UserError(
      f'{dataset.name} has no split {split!r}; expected one of {there}'
    )
  index = np.flatnonzero(in_split & (mapping[dataset.table['label']] >= 0))
  if not len(index):
    raise UserError(
      f'{split} of {dataset.name} has no example of a class that is scored'
    )
  return _Scored(dataset, split, mapping, in_split, index)


def _note_opening(workdir: pathlib.Path, scored: _Scored) -> None:
  """Records in the ledger that rows of a test are about to be looked at."""
  # By none of the hosts, unless the first can note it.
  hosts.on_all(
    lambda: ledger.record(
      scored.dataset,
      run=str(workdir),
      protocol=PROTOCOL,
      split=scored.split,
      figures={},
      digest=scored.digest,
      test_digest=workdir_lib.digest_of_ids(np.unique(scored.ids)),
      event=ledger.OPENED,
    )
  )


def _split_rows(
  facts: dict[str, Any], scored: _Scored, seen: _Seen
) -> SplitRows:
  """The rows as `evaluate` wants them, under no protocol of the run."""
  own = facts.get('protocol', {}).get('name')
  trained_on = facts.get('dataset', {}).get('name')
  return SplitRows(
    index=scored.index,
    ids=scored.ids,
    slices={'without_copies': ~seen.any} if seen.leaks else {},
    protocol={
      'name': PROTOCOL,
      'leaks': seen.leaks,
      'reason': f"not the run's own protocol, {own} on {trained_on}; "
      f'{seen.said}',
      'digest': scored.digest,
    },
  )


def _predictions(
  workdir: pathlib.Path,
  predictor: Predictor,
  scored: _Scored,
  views: tuple[str, ...],
) -> tuple[np.ndarray, np.ndarray]:
  """(logits (n, K), labels of the run's (n,)).

  Raises:
    UserError: images that the model does not take, or damaged data.
  """
  dataset = scored.dataset
  try:
    logits, labels = evaluate.predict_rows(
      predictor, dataset, scored.index, views
    )
  except UserError:  # a ValueError, of damaged data
    raise
  except ValueError as error:
    raise UserError(
      f'model {predictor.config.model.name} of {workdir} does not take what '
      f'{dataset.name} holds: {error}'
    ) from error
  return logits, scored.mapping[labels]


def _class_facts(scored: _Scored, class_names: Sequence[str]) -> dict[str, Any]:
  """What each class is mapped to, and how many examples were left out."""
  theirs = scored.dataset.class_names
  of_row = scored.dataset.table['label'][scored.in_split]
  return {
    'class_map': {
      name: class_names[ours] if ours >= 0 else LEFT_OUT
      for name, ours in zip(theirs, scored.mapping, strict=True)
    },
    'left_out': {
      name: int(np.sum(of_row == label))
      for label, name in enumerate(theirs)
      if scored.mapping[label] < 0
    },
  }


def _own_rows(
  workdir: pathlib.Path, config: Any, facts: dict[str, Any]
) -> tuple[Dataset, np.ndarray] | str:
  """The run's data set and its rows that trained or selected.

  Returns:
    Where they are not at hand, a text that says so.
  """
  unknown = 'whether it has seen these examples is not known'
  try:
    own = task.load_dataset(config)
    evaluate.require_same_data(workdir, facts, own)
    partition = protocol.resolve(
      own, config.data.protocol, **config_lib.protocol_options(config)
    )
  except UserError as error:
    return f'{unknown} ({error})'
  if partition.digest != facts.get('protocol', {}).get('digest'):
    return f'{unknown} (its protocol now gives another partition)'
  return own, np.union1d(partition.train, partition.validation)


def _require_same_kind(
  workdir: pathlib.Path, own: Dataset, other: Dataset
) -> None:
  """Raises UserError where one holds clips and the other images."""
  if own.is_clips != other.is_clips:
    kinds = {True: 'clips', False: 'images'}
    raise UserError(
      f'{workdir} was trained on {kinds[own.is_clips]}, but {other.name} '
      f'holds {kinds[other.is_clips]}'
    )


def _same_source(trained_on: dict[str, Any], dataset: Dataset) -> bool:
  """Whether it was built from what the run's data set was, of equal ids."""
  known = (trained_on.get('name'), trained_on.get('checksum'))
  return known == (dataset.name, dataset.checksum)


def _seen(
  predictor: Predictor, own: tuple[Dataset, np.ndarray] | str, scored: _Scored
) -> _Seen:
  """Which of the rows scored are among those that trained or selected.

  Args:
    predictor: of the run.
    own: of `_own_rows`.
    scored: n rows.
  """
  if isinstance(own, str):
    return _Seen(None, None, own)
  (known, seen_rows), other, rows = own, scored.dataset, scored.index
  exact = _copies(predictor, own, (other, rows))
  if _same_source(known.facts(), other):
    exact |= np.isin(other.table['id'][rows], known.table['id'][seen_rows])
  said = (
    f'{exact.sum():,} of {len(rows):,} examples are ones that trained or '
    'selected it, as the model gets them or by their ids'
  )
  alike = [s.name for s in (known, other) if not twins.near_twins_are_copies(s)]
  if alike:
    unknown = (
      f'photographs saved anew would not be found: in {alike[0]} strangers '
      'look as near as copies'
    )
    return _Seen(exact, None, f'{said}; {unknown}')
  near = _has_near_twin(own, (other, rows)) & ~exact
  said += f', and {near.sum():,} more are near twins of such'
  return _Seen(exact, near, said)


def _copies(
  predictor: Predictor,
  own: tuple[Dataset, np.ndarray],
  scored: tuple[Dataset, np.ndarray],
) -> np.ndarray:
  """bool (n,): which of the rows scored are pixel by pixel among the run's.

  Images are the same where the model gets the same pixels, whatever size and
  colour they are stored in.
  """
  known = set(_digests(predictor, *own))
  return np.array([one in known for one in _digests(predictor, *scored)])


def _has_near_twin(
  own: tuple[Dataset, np.ndarray], scored: tuple[Dataset, np.ndarray]
) -> np.ndarray:
  """bool (n,): which of the rows scored have a near or mirrored twin."""
  print(
    f'comparing {len(scored[1]):,} images of {scored[0].name} with '
    f'{len(own[1]):,} of {own[0].name} for twins',
    file=sys.stderr,
  )
  there = twins.grey_images(*own, _TWIN_SIZE)
  here = twins.grey_images(*scored, _TWIN_SIZE)
  pairs, _ = twins.pairs_between(here, there, _TWIN_SIZE)
  found = np.zeros(len(here), bool)
  found[pairs[:, 0]] = True
  return found


def _digests(
  predictor: Predictor, dataset: Dataset, index: np.ndarray
) -> Iterator[bytes]:
  """SHA-256 of each row's pixels as the model gets them."""
  for start in range(0, len(index), evaluate.ROWS_A_READ):
    rows = index[start : start + evaluate.ROWS_A_READ]
    batch = evaluate.read(predictor, dataset, rows)
    mask = batch.get('frame_mask')
    for row, image in enumerate(batch['image']):
      there = image if mask is None else image[mask[row]]
      yield hashlib.sha256(there.tobytes()).digest()
