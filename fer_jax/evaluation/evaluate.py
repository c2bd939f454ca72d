"""Evaluates a run on one split: predictions, figures, and the look recorded.

The only code, with `cross_dataset`, that opens a test split. Selection is over
by then: the checkpoint is the one that validation named.
"""

import dataclasses
import datetime
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_jax import config as config_lib
from fer_jax import files, forms, hosts, provenance
from fer_jax.data import ledger, protocol, resident
from fer_jax.datasets import registry
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError
from fer_jax.evaluation import groups, intervals, scores
from fer_jax.evaluation import workdir as workdir_lib
from fer_jax.evaluation.workdir import Evaluation, Examples, Pictures
from fer_jax.training import checkpoint, task
from fer_jax.training.inference import Predictor

AUGMENTATIONS = ('flip', 'crops')
"""Test-time augmentations, each a view that the predictor averages in."""

MISTAKES = 24
ATTENTION_SEED = 0

# More than metrics_SPLIT.json has ever taken.
_METRICS_BYTES = 1 << 18

# Images are read and predicted this many at a time: memory stays flat on sets
# of any size.
ROWS_A_READ = 2048


@dataclasses.dataclass(frozen=True)
class SplitRows:
  """The examples of a split and where they come from.

  Attributes:
    index: (n,) rows of the data set's table.
    ids: (n,) text.
    slices: name -> (n,) bool, parts to be scored alone, as those without
      twins.
    protocol: name, leak flag, reason and digest.
  """

  index: np.ndarray
  ids: np.ndarray
  slices: dict[str, np.ndarray]
  protocol: dict[str, Any]


def evaluate(
  workdir: str | pathlib.Path,
  split: str,
  *,
  augmentations: Sequence[str] = (),
  n_boot: int = intervals.BOOTSTRAP_DRAWS,
) -> dict[str, Any]:
  """Evaluates a run's best checkpoint and writes the split's three files.

  With augmentations under a name of their own, see `workdir.part_of`.

  A look at a test split, or at PublicTest, is recorded in the data set's
  ledger before its figures are written anywhere else, and no split is opened
  whose figures there would be no room for.

  Args:
    workdir: of `train`.
    split: 'validation' or 'test'.
    augmentations: of `AUGMENTATIONS`; none is the plain image alone.
    n_boot: bootstrap resamples of the intervals.

  Returns:
    The content of metrics_SPLIT.json.

  Raises:
    UserError: no workdir, no intact checkpoint, no data, a data set or
      partition other than the run's, a split without examples, or a workdir
      that cannot be written.
    workdir.UnsavedError: it can no longer be.
  """
  workdir = pathlib.Path(workdir)
  views = checked_views(augmentations)
  if split not in workdir_lib.SPLITS:
    raise UserError(
      f'--split is {split!r}; expected one of {", ".join(workdir_lib.SPLITS)}'
    )
  predictor = Predictor.from_workdir(workdir)
  begun = time.monotonic()
  config: Any = predictor.config
  dataset = task.load_dataset(config)
  facts = hosts.on_first(lambda: files.read_json(workdir / 'run.json'))
  require_same_data(workdir, facts, dataset)
  rows = _open_split(workdir, facts, dataset, predictor, split)
  logits, labels = predict_rows(predictor, dataset, rows.index, views)
  metrics = {
    'split': split,
    **figures(predictor, dataset, rows, logits, labels, n_boot=n_boot),
    **circumstances(predictor, dataset, rows, views),
  }
  # Before the look: nothing that may fail comes between it and its figures.
  examples = _examples(predictor, dataset, rows, logits, labels)
  # Of PublicTest, too, which is reported under fer2013_dev.
  if split == 'test' or protocol.of_public_test(dataset, rows.index).any():
    metrics['looks'] = hosts.on_first(
      lambda: record_look(workdir, dataset, metrics, rows.ids)
    )
  metrics['seconds'] = time.monotonic() - begun
  evaluation = Evaluation(
    workdir_lib.part_of(split, views),
    metrics,
    rows.ids,
    logits,
    labels,
    examples,
    units_of(dataset, rows.index)[1],
  )
  hosts.on_first(lambda: workdir_lib.write_evaluation(workdir, evaluation))
  return metrics


def evaluate_once(workdir: str | pathlib.Path, split: str) -> Evaluation:
  """As `evaluate` of the plain image, unless that was done before.

  What the workdir holds counts where it is of the checkpoint that would be
  evaluated: a test split is not opened again for nothing.

  Raises:
    UserError: as `evaluate`, or what the workdir holds is damaged.
  """
  workdir = pathlib.Path(workdir)
  kept = workdir_lib.read_evaluation(workdir, split)
  if kept is not None:
    wrong = forms.misfit(kept.metrics, _ONCE)
    if wrong:
      raise UserError(f'{workdir}/metrics_{split}.json: {wrong}')
    step = checkpoint.best_intact(workdir).step
    made = (kept.metrics['checkpoint']['step'], kept.metrics['views'])
    if made == (step, ['plain']):
      return kept
  evaluate(workdir, split)
  kept = workdir_lib.read_evaluation(workdir, split)
  assert kept is not None
  return kept


# What is relied on beside that which every reader does.
_ONCE = {
  **workdir_lib.ACCURACY,
  **workdir_lib.OF,
  'balanced_accuracy': forms.number,
  'loss': forms.number,
  'auc_macro': forms.optional(forms.number),
  'macro': {'f1': forms.number},
  'absent_classes': [forms.text],
  'checkpoint': {'step': forms.count, 'epoch': forms.number},
  'views': [forms.text],
  'slices': {'*': forms.anything},
  'protocol': {
    **workdir_lib.OF['protocol'],
    'options': {'*': forms.anything},
    'digest': forms.text,
  },
  'environment': {'*': forms.anything},
}


def checked_views(augmentations: Sequence[str]) -> tuple[str, ...]:
  """The predictor's views of test-time augmentations, each once.

  Raises:
    UserError: an augmentation nobody knows.
  """
  for name in augmentations:
    if name not in AUGMENTATIONS:
      raise UserError(
        f'--tta names {name!r}; expected {", ".join(AUGMENTATIONS)} or nothing'
      )
  # The crops stand in the place of the whole image.
  whole = 'crops' if 'crops' in augmentations else 'plain'
  return (whole, 'flip') if 'flip' in augmentations else (whole,)


def predict_rows(
  predictor: Predictor,
  dataset: Dataset,
  index: np.ndarray,
  views: tuple[str, ...],
) -> tuple[np.ndarray, np.ndarray]:
  """(logits float32 (n, K), labels int32 (n,)) of rows of a data set.

  Of several hosts each reads and predicts its share of them.

  Raises:
    UserError: the data is damaged, or a logit is not finite.
  """
  logits, labels = [], []
  own = hosts.share(index)
  for start in range(0, len(own), ROWS_A_READ):
    batch = read(predictor, dataset, own[start : start + ROWS_A_READ])
    logits.append(
      predictor.predict(batch['image'], batch.get('frame_mask'), views=views)
    )
    labels.append(batch['label'])
  all_logits = hosts.gathered(np.concatenate(logits), len(index))
  all_labels = hosts.gathered(np.concatenate(labels), len(index))
  bad = np.flatnonzero(~np.isfinite(all_logits).all(axis=-1))
  if len(bad):
    raise UserError(
      f'the checkpoint of step {predictor.step} gives logits that are not '
      f'finite on {len(bad)} of {len(index)} examples, the first '
      f'{dataset.table["id"][index[bad[0]]]}'
    )
  return all_logits, all_labels


def figures(
  predictor: Predictor,
  dataset: Dataset,
  rows: SplitRows,
  logits: np.ndarray,
  labels: np.ndarray,
  *,
  n_boot: int,
) -> dict[str, Any]:
  """Every figure of the predictions on some rows, in (n,) `labels`."""
  names = predictor.class_names
  attributes = {
    name: values[rows.index] for name, values in dataset.attributes.items()
  }
  unit, units = units_of(dataset, rows.index)
  # An oversampled list holds an example several times.
  units = rows.ids if units is None else units
  drawn: dict[str, Any] = {'units': units, 'n_boot': n_boot}
  return {
    **scores.all_scores(logits, labels, names, **drawn),
    'unit': unit,
    'slices': scores.slice_scores(logits, labels, rows.slices, names, **drawn),
    'groups': groups.group_scores(logits, labels, attributes, names, **drawn),
    'class_names': list(names),
    'definitions': scores.DEFINITIONS
    | (groups.DEFINITIONS if attributes else {}),
  }


def units_of(
  dataset: Dataset, index: np.ndarray
) -> tuple[str, np.ndarray | None]:
  """What is resampled of rows: (its name, (n,) text or None for the ids).

  Pictures of one person, or frames of one recording, are not independent.
  """
  for column in ('subject', 'sequence'):
    if column in dataset.table:
      return column, dataset.table[column][index]
  return 'example', None


def circumstances(
  predictor: Predictor,
  dataset: Dataset,
  rows: SplitRows,
  views: tuple[str, ...],
) -> dict[str, Any]:
  """What the figures are of, and how they were made."""
  return {
    'model': predictor.config.model.name,
    'dataset': dataset.facts(),
    'protocol': rows.protocol,
    'checkpoint': {
      'which': 'last' if predictor.config.train.select == 'last' else 'best',
      'step': predictor.step,
      'epoch': predictor.epoch,
    },
    'views': list(views),
    'environment': provenance.environment(),
    'time': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
  }


def require_same_data(
  workdir: pathlib.Path, facts: dict[str, Any], dataset: Dataset
) -> None:
  """Raises UserError unless it is the data set that the run trained on."""
  trained_on = facts.get('dataset', {})
  if trained_on.get('checksum') != dataset.checksum:
    raise UserError(
      f'{workdir} was trained on {dataset.name} with checksum '
      f'{trained_on.get("checksum")}, but the one built here has '
      f'{dataset.checksum}; build that source'
    )
  # Raised whenever the same source would give other examples.
  if trained_on.get('version', dataset.version) != dataset.version:
    raise UserError(
      f'{workdir} was trained on version {trained_on["version"]} of '
      f'{dataset.name}, but the one built here is {dataset.version}, whose '
      'examples differ; evaluate it with the fer_jax that trained it'
    )


def require_room(
  workdir: pathlib.Path, predictor: Predictor, dataset: Dataset, n: int
) -> None:
  """Checks that an evaluation can be saved, before a split is opened for it.

  Args:
    workdir: of the run.
    predictor: of the run.
    dataset: that is scored.
    n: how many of its rows are.

  Raises:
    UserError: the workdir does not take a file as large as its files together
      are, uncompressed.
  """
  data: Any = predictor.config.data
  num_classes = len(predictor.class_names)
  texts = (dataset.table['id'], units_of(dataset, np.zeros(0, int))[1])
  a_row = 4 * num_classes + 4
  a_row += sum(column.itemsize for column in texts if column is not None)
  size = _METRICS_BYTES + n * a_row
  size += resident.resident_bytes(
    MISTAKES + num_classes,
    image_size=(data.image_size, data.image_size),
    channels=data.channels,
    num_classes=num_classes,
    frames=resident.longest_clip(dataset),
  )

  def probe() -> None:
    with files.writing(f'the figures to {workdir} ({size:,} bytes)'):
      files.probe(workdir / 'evaluation', size)

  hosts.on_first(probe)


def _open_split(
  workdir: pathlib.Path,
  facts: dict[str, Any],
  dataset: Dataset,
  predictor: Predictor,
  split: str,
) -> SplitRows:
  """The rows of a split, and proof that they are of the run's partition."""
  config: Any = predictor.config
  name = config.data.protocol
  options = config_lib.protocol_options(config)
  partition = protocol.resolve(dataset, name, **options)
  trained_under = facts.get('protocol', {}).get('digest')
  if partition.digest != trained_under:
    raise UserError(
      f'{workdir} was trained under protocol {name} with digest '
      f'{trained_under}, but it now gives {partition.digest}: examples may '
      'have changed sides'
    )
  count = partition.test_count if split == 'test' else len(partition.validation)
  require_room(workdir, predictor, dataset, count)
  if split == 'test':
    # By none of the hosts, unless the first can note it.
    opened = hosts.on_all(
      lambda: protocol.open_test(dataset, name, run=str(workdir), **options)
    )
    index, ids = opened.index, opened.ids
    # The whole split is scored anyway.
    slices = {
      name: mask for name, mask in opened.slices.items() if name != 'all'
    }
  else:
    index, ids, slices = partition.validation, partition.validation_ids, {}
  if not len(index):
    hint = ''
    if split == 'validation' and partition.test_count:
      hint = f'; --split=test has {partition.test_count:,}'
    raise UserError(
      f'the {split} split of {dataset.name} under protocol {name} has no '
      f'examples{hint}'
    )
  return SplitRows(
    index=np.asarray(index),
    ids=np.asarray(ids, str),
    slices=slices,
    protocol=partition.facts(),
  )


def read(
  predictor: Predictor, dataset: Dataset, index: np.ndarray
) -> dict[str, np.ndarray]:
  """Rows as `resident.load_resident` gives them, in the run's size."""
  data: Any = predictor.config.data
  return resident.load_resident(
    dataset,
    index,
    image_size=(data.image_size, data.image_size),
    channels=data.channels,
  )


def record_look(
  workdir: pathlib.Path,
  dataset: Dataset,
  metrics: dict[str, Any],
  ids: np.ndarray,
) -> int:
  """Records the look; returns how many there have been at just these examples.

  Looks at the same ids are looks at the same examples, whatever their order
  and number, the protocol, and who trained; of a set whose ids are places, only
  where the checksum is the same, too. One at a part of them, or at more,
  is in the ledger and is not counted.
  """
  name, digest = metrics['protocol']['name'], metrics['protocol']['digest']
  split = metrics['split']
  test_digest = workdir_lib.digest_of_ids(np.unique(ids))
  ledger.record(
    dataset,
    run=str(workdir),
    protocol=name,
    split=split,
    digest=digest,
    test_digest=test_digest,
    figures={
      'n': metrics['n'],
      'accuracy': metrics['accuracy'],
      'accuracy_interval': metrics['intervals']['accuracy'],
      'balanced_accuracy': metrics['balanced_accuracy'],
      'macro_f1': metrics['macro']['f1'],
      'step': metrics['checkpoint']['step'],
      'views': metrics['views'],
    },
  )
  return looks(dataset, name, split, digest, test_digest)


def looks(
  dataset: Dataset, protocol: str, split: str, digest: str, test_digest: str
) -> int:
  """How many looks at a split the ledger has.

  Args:
    dataset: whose ledger.
    protocol: its name.
    split: its name.
    digest: of the protocol's id lists.
    test_digest: of the ids looked at.
  """
  module = registry.builder_module(dataset.name)
  of_one_build = getattr(module, 'IDS_ARE_PLACES', False)

  def same_examples(entry: dict[str, Any]) -> bool:
    if of_one_build and entry.get('checksum') != dataset.checksum:
      return False
    if entry.get('test_digest'):
      return entry['test_digest'] == test_digest
    # Older entries have a digest of all lists, and none of the test ids alone.
    found = (entry['protocol'], entry['split'], entry.get('digest'))
    return found == (protocol, split, digest)

  return sum(map(same_examples, ledger.read(dataset)))


def _examples(
  predictor: Predictor,
  dataset: Dataset,
  rows: SplitRows,
  logits: np.ndarray,
  labels: np.ndarray,
) -> Examples:
  """Images of the worst mistakes, and of one example a class with attention."""
  log_probs = scores.log_softmax(logits)
  losses = -log_probs[np.arange(len(labels)), labels]
  wrong = np.flatnonzero(log_probs.argmax(axis=-1) != labels)
  worst = wrong[np.argsort(-losses[wrong], kind='stable')][:MISTAKES]
  rng = np.random.default_rng(ATTENTION_SEED)
  shown = np.array(
    [
      rng.choice(np.flatnonzero(labels == label)) for label in np.unique(labels)
    ],
    int,
  )

  def pictures(chosen: np.ndarray, **extra: Any) -> Pictures:
    batch = read(predictor, dataset, rows.index[chosen])
    return Pictures(
      ids=rows.ids[chosen],
      labels=labels[chosen],
      probs=np.exp(log_probs[chosen]).astype(np.float32),
      images=batch['image'],
      frame_mask=batch.get('frame_mask'),
      **extra,
    )

  mistakes = pictures(worst) if len(worst) else None
  attended = pictures(shown)
  found = predictor.attention(attended.images, attended.frame_mask)
  if found is None:
    return Examples(mistakes, None, None)
  weights, token_grid = found
  return Examples(
    mistakes, dataclasses.replace(attended, attention=weights), token_grid
  )
