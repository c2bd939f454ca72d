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
from fer_jax.evaluation import evaluate, scores
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
  n_boot: int = scores.BOOTSTRAP_DRAWS,
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
  if _same_source(trained_on, dataset) and (
    # An earlier run may know fewer options than there are now.
    trained_on.get('options', {}).items() <= dataset.options.items()
  ):
    raise UserError(
      f'{workdir} was trained on this very {name}; evaluate it without '
      '--dataset'
    )
  mapping = run_classes(
    dataset.class_names, predictor.class_names, class_map or {}
  )
  in_split, index = _rows(dataset, split, mapping)
  own = _own_rows(workdir, config, facts)
  if not isinstance(own, str):
    _require_same_kind(workdir, own[0], dataset)
  ids = dataset.table['id'][index]
  digest = workdir_lib.digest_of_ids(ids)
  of_row = dataset.table['official_split'][index]
  looked = bool(
    np.isin(of_row, _TEST_SPLITS).any()
    or protocol.of_public_test(dataset, index).any()
  )
  evaluate.require_room(workdir, predictor, dataset, len(index))
  if looked:
    # By none of the hosts, unless the first can note it.
    hosts.on_all(
      lambda: ledger.record(
        dataset,
        run=str(workdir),
        protocol=PROTOCOL,
        split=split,
        figures={},
        digest=digest,
        test_digest=workdir_lib.digest_of_ids(np.unique(ids)),
        event=ledger.OPENED,
      )
    )
  if isinstance(own, str):
    seen = _Seen(None, None, own)
  else:
    seen = _seen(predictor, own, (dataset, index))
  rows = SplitRows(
    index=index,
    ids=ids,
    slices={'without_copies': ~seen.any} if seen.leaks else {},
    protocol={
      'name': PROTOCOL,
      'leaks': seen.leaks,
      'reason': "not the run's own protocol, "
      f'{facts.get("protocol", {}).get("name")} on {trained_on.get("name")}; '
      f'{seen.said}',
      'digest': digest,
    },
  )
  try:
    logits, labels = evaluate.predict_rows(predictor, dataset, index, views)
  except UserError:  # a ValueError, of damaged data
    raise
  except ValueError as error:
    raise UserError(
      f'model {config.model.name} of {workdir} does not take what {name} '
      f'holds: {error}'
    ) from error
  labels = mapping[labels]
  chosen = datasets.chosen_options(name, dataset.options)
  if checksum:
    chosen['checksum'] = dataset.checksum
  metrics = {
    'split': split,
    **evaluate.figures(predictor, dataset, rows, logits, labels, n_boot=n_boot),
    **evaluate.circumstances(predictor, dataset, rows, views),
    'trained_on': trained_on,
    'chosen': chosen,
    'class_map': {
      theirs: predictor.class_names[ours] if ours >= 0 else LEFT_OUT
      for theirs, ours in zip(dataset.class_names, mapping, strict=True)
    },
    'left_out': {
      theirs: int(np.sum(dataset.table['label'][in_split] == label))
      for label, theirs in enumerate(dataset.class_names)
      if mapping[label] < 0
    },
    'copies': None if seen.exact is None else int(seen.exact.sum()),
    'near_copies': None if seen.near is None else int(seen.near.sum()),
    'predicted_elsewhere': int(
      np.sum(~np.isin(logits.argmax(axis=-1), mapping))
    ),
  }
  if looked:
    metrics['looks'] = hosts.on_first(
      lambda: evaluate.record_look(workdir, dataset, metrics, ids)
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
    evaluate.units_of(dataset, index)[1],
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


def _rows(
  dataset: Dataset, split: str, mapping: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """(bool (N,) the rows of a split, int64 (n,) those of classes scored)."""
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
  return in_split, index


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
  predictor: Predictor,
  own: tuple[Dataset, np.ndarray],
  scored: tuple[Dataset, np.ndarray],
) -> _Seen:
  """Which of the rows scored are among those that trained or selected."""
  (known, seen_rows), (other, rows) = own, scored
  exact = _copies(predictor, own, scored)
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
  near = _has_near_twin(own, scored) & ~exact
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
