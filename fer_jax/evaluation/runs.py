"""Runs as a report reads them: a workdir's files, and which runs are alike.

Runs of one build of the data and one partition whose configs differ in the seed
alone are one group, whose spread is the noise of training.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_jax import files, forms
from fer_jax.errors import UserError
from fer_jax.evaluation import workdir as workdir_lib

NOT_COMPARED = frozenset(
  {
    'seed',
    'data.data_dir',
    'data.workers',
    'data.checksum',
    'data.residence',
    'data.resident_gib',
    'train.block_steps',
    'train.on_divergence',
  }
)
"""Config fields in which runs of one group may differ: the seed, and those
that change no result where the build is the same, see `group`."""

# What is relied on where it is there.
_MEMBERS = {'*': forms.anything}
_CONFIG = {
  'model?': {'name?': forms.text},
  'data?': _MEMBERS,
  'optim?': _MEMBERS,
  'train?': {'select?': forms.text},
}
_FACTS = {
  'parameters?': forms.count,
  'class_names?': [forms.text],
  'dataset?': {
    'name?': forms.text,
    'version?': forms.text,
    'checksum?': forms.text,
    'options?': _MEMBERS,
    'notes?': _MEMBERS,
  },
  'protocol?': {
    'name?': forms.text,
    'leaks?': forms.flag,
    'reason?': forms.text,
    'digest?': forms.text,
    'options?': _MEMBERS,
    'train?': forms.count,
    'validation?': forms.count,
  },
  'environment?': {'versions?': _MEMBERS},
  'seconds_to_first_step?': forms.number,
}
_REPORTED = (
  'n',
  'loss',
  'accuracy',
  'balanced_accuracy',
  'macro',
  'weighted',
  'auc_macro',
  'per_class',
  'confusion',
  'expected_calibration_error',
  'calibration',
  'class_names',
)
_RECORD = {
  'epoch': forms.number,
  'step?': forms.optional(forms.count),
  'train?': forms.optional(_MEMBERS),
  'validation?': forms.optional(_MEMBERS),
}


@dataclasses.dataclass(frozen=True)
class Run:
  """What a workdir holds for a report.

  Attributes:
    path: the workdir.
    name: short and unlike the other runs' of the same report.
    config: nested plain values of config.json.
    facts: content of run.json, {} where it is missing.
    history: epochs' records of metrics.jsonl, oldest first.
    evaluations: by split, those that were evaluated.
    elsewhere: figures on other data sets, those of each metrics_on_*.json, by
      the name of the file's part.
    notes: sentences about what is missing or damaged.
  """

  path: pathlib.Path
  name: str
  config: dict[str, Any]
  facts: dict[str, Any]
  history: list[dict[str, Any]]
  evaluations: dict[str, workdir_lib.Evaluation]
  elsewhere: dict[str, dict[str, Any]]
  notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Group:
  """Runs that differ in their seed alone.

  Attributes:
    label: what tells the group from the others.
    runs: at least one.
  """

  label: str
  runs: tuple[Run, ...]


@dataclasses.dataclass(frozen=True)
class Spread:
  """Mean and sample standard deviation over a group's runs.

  Attributes:
    mean: over the runs that have the figure.
    deviation: None for a single run.
    count: how many runs have it.
  """

  mean: float
  deviation: float | None
  count: int


def read(path: str | pathlib.Path, *, name: str | None = None) -> Run:
  """Reads a workdir.

  Args:
    path: the folder.
    name: to be called by, the folder's own where None.

  Raises:
    UserError: it is no workdir, or one of its files is damaged.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    raise UserError(f'{path} is no folder; expected the workdir of a run')
  has_facts = (path / 'run.json').exists()
  inner = None if has_facts else _first_within(path)
  if inner is not None:
    raise UserError(
      f'{path} is the workdir of several runs, a cross-validation or a sweep; '
      f'expected one of them, as {inner}'
    )
  if not (path / 'config.json').exists():
    raise UserError(f'{path} is no workdir of a run: it has no config.json')
  config = _read_form(path / 'config.json', _CONFIG)
  notes = []
  facts: dict[str, Any] = {}
  if has_facts:
    facts = _read_form(path / 'run.json', _FACTS)
  else:
    notes.append(
      'There is no run.json: data, protocol and environment are unknown.'
    )
  history, torn = _read_history(path / 'metrics.jsonl')
  if not history:
    notes.append('No epoch has been recorded yet, so there are no curves.')
  elif torn:
    notes.append('The last line of metrics.jsonl is cut off and left out.')
  evaluations = {}
  for split in workdir_lib.SPLITS:
    evaluation = workdir_lib.latest_evaluation(path, split)
    if evaluation is not None:
      evaluations[split] = evaluation
  elsewhere, damaged = _elsewhere(path)
  run = Run(
    path=path,
    name=name or path.resolve().name,
    config=config,
    facts=facts,
    history=history,
    evaluations=evaluations,
    elsewhere=elsewhere,
    notes=(*notes, *damaged),
  )
  of_part = {e.split: e.metrics for e in run.evaluations.values()}
  notes = [stale(run, *of) for of in (of_part | elsewhere).items()]
  notes = [f'{note}.' for note in notes if note]
  return dataclasses.replace(run, notes=(*run.notes, *notes))


def stale(run: Run, part: str, metrics: dict[str, Any]) -> str | None:
  """A clause where figures are not of the checkpoint that was chosen.

  Args:
    run: whose records say which that is.
    part: what the figures are of.
    metrics: those figures.
  """
  last = run.config.get('train', {}).get('select') == 'last'
  chosen = run.history[-1] if last and run.history else best_validation(run)
  step = (chosen or {}).get('step')
  at = metrics.get('checkpoint', {})
  if chosen is None or None in (step, at.get('step')) or step == at['step']:
    return None
  return (
    f'the {part} figures are of epoch {at.get("epoch")}, step {at["step"]}, '
    f'and training chooses epoch {chosen["epoch"]}, step {step}, by now: '
    'evaluate again'
  )


def _first_within(path: pathlib.Path) -> pathlib.Path | None:
  """The first workdir of a run inside another."""
  found = (path.glob(f'{folder}/run.json') for folder in ('*', 'trials/*'))
  return min((file.parent for file in itertools.chain(*found)), default=None)


def _read_form(path: pathlib.Path, form: forms.Form) -> dict[str, Any]:
  value = files.read_json(path)
  wrong = forms.misfit(value, form)
  if wrong:
    raise UserError(f'{path}: {wrong}')
  return value


def _elsewhere(
  path: pathlib.Path,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
  """(see `Run.elsewhere`, a sentence on each that is damaged)."""
  found, damaged = {}, []
  for file in sorted(path.glob('metrics_on_*.json')):
    part = file.stem.removeprefix('metrics_')
    try:
      evaluation = workdir_lib.read_evaluation(path, part)
      if evaluation is not None:
        _require_figures(file, evaluation.metrics)
        found[part] = evaluation.metrics
    except UserError as error:
      damaged.append(f'Left out: {error}.')
  return found, damaged


def require_figures(run: Run) -> None:
  """Checks that evaluations hold what a report shows.

  Raises:
    UserError: a figure is missing, or the confusion is not of its classes.
  """
  for split, evaluation in run.evaluations.items():
    where = f'the {split} evaluation of {run.path}'
    _require_figures(where, evaluation.metrics)


def _require_figures(where: object, metrics: dict[str, Any]) -> None:
  for name in _REPORTED:
    if name not in metrics:
      raise UserError(f'{where} holds no {name}; evaluate again')
  k = len(metrics['class_names'])
  if [len(row) for row in metrics['confusion']] != [k] * k:
    raise UserError(
      f'{where}: confusion is not {k} by {k} counts; evaluate again'
    )


def read_all(paths: Sequence[str | pathlib.Path]) -> list[Run]:
  """Reads several workdirs, each once, under names that tell them apart."""
  unique: dict[pathlib.Path, pathlib.Path] = {}
  for path in paths:
    unique.setdefault(pathlib.Path(path).resolve(), pathlib.Path(path))
  names = _short_names(list(unique))
  return [
    read(path, name=name)
    for path, name in zip(unique.values(), names, strict=True)
  ]


def _short_names(paths: list[pathlib.Path]) -> list[str]:
  """The fewest last parts of the paths that tell all of them apart."""
  longest = max((len(path.parts) for path in paths), default=1)
  for parts in range(1, longest + 1):
    names = ['/'.join(path.parts[-parts:]) for path in paths]
    if len(set(names)) == len(names):
      return names
  return [str(path) for path in paths]


def _read_history(path: pathlib.Path) -> tuple[list[dict[str, Any]], bool]:
  """(records, whether the last line was cut off while it was written)."""
  if not path.exists():
    return [], False
  try:
    lines = path.read_bytes().splitlines()
  except OSError as error:
    raise UserError(f'cannot read {path}: {error.strerror}') from error
  records = []
  for number, line in enumerate(lines, start=1):
    where = f'{path}, line {number}'
    try:
      record = files.parse_json(line, where)
      wrong = forms.misfit(record, _RECORD)
      if wrong:
        raise UserError(f'{where}: {wrong}')
    except UserError:
      if number == len(lines):
        return records, True
      raise
    records.append(record)
  return records, False


def flatten(config: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """Dotted name -> value of every leaf of nested dicts."""
  leaves = {}
  for name, value in config.items():
    if isinstance(value, dict) and value:
      leaves |= flatten(value, f'{prefix}{name}.')
    else:
      leaves[f'{prefix}{name}'] = value
  return leaves


def group(runs: Sequence[Run]) -> list[Group]:
  """Groups runs of the same data that differ in nothing but `NOT_COMPARED`.

  In their order. The same data are one build under one partition. A field that
  an earlier run's config.json lacks is at its default. A group is labelled by
  the fields in which the groups differ, and by its data where only those do, or
  by its model where there is only one group.
  """
  members: dict[str, list[Run]] = {}
  compared: dict[str, dict[str, Any]] = {}
  for run, config in zip(runs, _completed(runs), strict=True):
    leaves = {
      name: value
      for name, value in flatten(config).items()
      if name not in NOT_COMPARED
    }
    key = _key([leaves, _data(run)])
    members.setdefault(key, []).append(run)
    compared[key] = leaves
  names = sorted({name for leaves in compared.values() for name in leaves})
  differing = [
    name
    for name in names
    if len({json.dumps(leaves.get(name)) for leaves in compared.values()}) > 1
  ]
  configs = [_key(leaves) for leaves in compared.values()]
  groups = []
  for key, alike in members.items():
    leaves = compared[key]
    said = [
      f'{name}={_plain(leaves[name])}' if name in leaves else f'no {name}'
      for name in differing
    ]
    if configs.count(_key(leaves)) > 1:
      said += [f'{k} {str(v)[:12]}' for k, v in _data(alike[0]).items()]
    label = ', '.join(said)
    # Many differing fields make no label: the runs' own names do.
    if not label or len(differing) > 4:
      label = _common_name(alike) if differing else _model_name(alike[0])
    groups.append(Group(label, tuple(alike)))
  return groups


def _key(value: Any) -> str:
  return json.dumps(value, sort_keys=True, default=str)


def _data(run: Run) -> dict[str, Any]:
  """Digests of what a run was trained on."""
  return {
    'build': run.facts.get('dataset', {}).get('checksum'),
    'partition': run.facts.get('protocol', {}).get('digest'),
  }


def _completed(runs: Sequence[Run]) -> list[dict[str, Any]]:
  """The runs' configs; where those of a kind differ in fields, with all."""
  fields: dict[tuple[str, str], set[frozenset[str]]] = {}
  for run in runs:
    fields.setdefault(_kind(run), set()).add(frozenset(flatten(run.config)))
  return [
    _with_defaults(run) if len(fields[_kind(run)]) > 1 else run.config
    for run in runs
  ]


def _kind(run: Run) -> tuple[str, str]:
  """Model and data set, which give a config its fields."""
  config = run.config
  return (
    str(config.get('model', {}).get('name')),
    str(config.get('data', {}).get('name')),
  )


def _with_defaults(run: Run) -> dict[str, Any]:
  # It imports JAX, which runs of equal fields are spared.
  from fer_jax import config as config_lib

  try:
    config = config_lib.from_json(run.config, source=str(run.path))
  except UserError:  # of fields, a model or data that are no longer there
    return run.config
  return config_lib.to_json(config)


def _plain(value: Any) -> str:
  return value if isinstance(value, str) else json.dumps(value)


def _model_name(run: Run) -> str:
  return str(run.config.get('model', {}).get('name', run.name))


def _common_name(runs: Sequence[Run]) -> str:
  return ' + '.join(run.name for run in runs)


def spread(values: Sequence[float | None]) -> Spread | None:
  """Mean and sample standard deviation; None where no run has the figure."""
  known = [value for value in values if value is not None]
  if not known:
    return None
  return Spread(
    mean=float(np.mean(known)),
    deviation=float(np.std(known, ddof=1)) if len(known) > 1 else None,
    count=len(known),
  )


def curve(run: Run, part: str, quantity: str) -> tuple[np.ndarray, np.ndarray]:
  """(epochs, values) of a run's curve.

  Args:
    run: of `read`.
    part: 'train' or 'validation'.
    quantity: 'loss' or 'accuracy'.

  Returns:
    The epochs that have a finite value, and those values.
  """
  points = [
    (record['epoch'], record[part][quantity])
    for record in run.history
    if isinstance(record.get(part), dict)
    and forms.number(record[part].get(quantity))
  ]
  epochs, values = zip(*points, strict=True) if points else ((), ())
  return np.asarray(epochs, float), np.asarray(values, float)


def mean_curve(
  group: Group, part: str, quantity: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
  """(epochs, mean, standard deviation) over the epochs all runs have.

  The deviation is None for a single run.
  """
  curves = [
    dict(zip(*curve(run, part, quantity), strict=True)) for run in group.runs
  ]
  curves = [points for points in curves if points]
  if not curves:
    return np.zeros(0), np.zeros(0), None
  epochs = sorted(set.intersection(*(set(points) for points in curves)))
  values = np.array([[points[epoch] for epoch in epochs] for points in curves])
  deviation = values.std(axis=0, ddof=1) if len(curves) > 1 else None
  return np.asarray(epochs), values.mean(axis=0), deviation


def best_validation(run: Run) -> dict[str, Any] | None:
  """The record that selection prefers: {epoch, step, loss, accuracy}.

  The metric is the config's `train.select`, accuracy where it names none.
  """
  metric = run.config.get('train', {}).get('select', 'accuracy')
  sign = -1 if metric == 'loss' else 1
  records = [
    record
    for record in run.history
    if isinstance(record.get('validation'), dict)
    and forms.number(record['validation'].get(metric))
  ]
  if not records:
    return None
  best = max(records, key=lambda record: sign * record['validation'][metric])
  return {
    'epoch': best['epoch'],
    'step': best.get('step'),
    **best['validation'],
  }


def training_seconds(run: Run) -> float | None:
  """Seconds in recorded epochs."""
  seconds = [
    r['seconds'] for r in run.history if forms.number(r.get('seconds'))
  ]
  return float(sum(seconds)) if seconds else None


def images_per_second(run: Run) -> float | None:
  """Median over the epochs, which the first one's compilation leaves alone."""
  rates = [
    record['images_per_second']
    for record in run.history
    if forms.number(record.get('images_per_second'))
  ]
  return float(np.median(rates)) if rates else None
