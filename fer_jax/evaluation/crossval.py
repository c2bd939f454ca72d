"""Figures of a cross-validation: each fold's, their spread, and out of fold.

F folds, S seeds. Reads what training and evaluation of the folds wrote. An
out-of-fold prediction is one by the member whose test fold the example is in:
together they cover all of the data, each example once a seed, and none of them
was trained or selected on it.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fer_jax import files, forms
from fer_jax.errors import UserError
from fer_jax.evaluation import intervals, runs, scores, wording
from fer_jax.evaluation import workdir as workdir_lib
from fer_jax.evaluation.workdir import Evaluation

METRICS = 'metrics_crossval.json'
PREDICTIONS = 'predictions_out_of_fold.npz'

SPREAD = ('accuracy', 'balanced_accuracy', 'macro_f1', 'auc_macro', 'loss')
"""Figures given for each fold, and as mean and deviation over folds; and out of
fold for each seed, and as mean and deviation over seeds."""

DEFINITIONS = {
  'folds': 'each fold scored by itself; mean and standard deviation (n - 1) '
  'over folds and seeds',
  'out_of_fold': 'all examples together, each by the member whose test fold it '
  'is in: scored seed by seed, then mean and standard deviation (n - 1) over '
  'seeds. The interval is of the mean: a unit is resampled with its '
  'predictions under all seeds',
  'confusion': 'out-of-fold counts summed over seeds: an example counts once a '
  'seed',
  'seeds': 'every out-of-fold figure of each seed alone; no interval holds the '
  'noise of seeds, the deviation over them does',
}


@dataclasses.dataclass(frozen=True, eq=False)
class Fold:
  """One member's test part.

  Attributes:
    fold: its number, from 0.
    seed: of the member.
    evaluation: of its test split.
  """

  fold: int
  seed: int
  evaluation: Evaluation


def score(
  workdir: pathlib.Path, members: Sequence[tuple[int, int, pathlib.Path]]
) -> dict[str, Any]:
  """Scores the test fold of every member, and all of them together.

  A test fold is opened once for a checkpoint; a member scored before at the
  same one is not opened again.

  Args:
    workdir: of the cross-validation, where the figures are written.
    members: (fold, seed, workdir) of each.

  Returns:
    The content of metrics_crossval.json.

  Raises:
    UserError: as `evaluate.evaluate`.
  """
  # These pull in JAX, which reading needs not.
  from fer_jax.data import protocol
  from fer_jax.evaluation import evaluate

  for _, _, folder in members:
    evaluate.evaluate_once(folder, 'test')
  folds = read_folds(members)
  first = folds[0].evaluation.metrics
  metrics = {
    'model': first['model'],
    'dataset': first['dataset'],
    'protocol': protocol.facts_of_folds(
      [fold.evaluation.metrics['protocol'] for fold in folds],
      of=len({fold.fold for fold in folds}),
    ),
    **figures(folds),
    'members': [
      {'fold': fold, 'seed': seed, 'workdir': folder.name}
      for fold, seed, folder in members
    ],
    'environment': first['environment'],
  }
  write(workdir, folds, metrics)
  return metrics


def read(workdir: pathlib.Path) -> tuple[dict[str, Any], list[Fold]]:
  """What `score` wrote.

  Raises:
    UserError: a file is missing or damaged.
  """
  metrics = files.read_json(workdir / METRICS)
  wrong = forms.misfit(metrics, _CONTENT)
  if not wrong:
    k = len(metrics['class_names'])
    if [len(row) for row in metrics['out_of_fold']['confusion']] != [k] * k:
      wrong = f'confusion is not {k} by {k} counts'
  if wrong:
    raise UserError(
      f'{workdir / METRICS}: {wrong}; crossval on the same --workdir makes it'
    )
  return metrics, read_folds(
    [(m['fold'], m['seed'], workdir / m['workdir']) for m in metrics['members']]
  )


_SHARE = forms.optional(forms.number)
_SPREAD = dict.fromkeys(SPREAD, _SHARE)
# What the page and the terminal show.
_CONTENT = {
  **workdir_lib.OF,
  'class_names': [forms.text],
  'folds': [
    _SPREAD
    | {
      'fold': forms.count,
      'seed': forms.count,
      'n': forms.count,
      'epoch': forms.number,
      'absent_classes': [forms.text],
    }
  ],
  'mean': _SPREAD,
  'deviation': _SPREAD,
  'seeds': [
    {
      **workdir_lib.ACCURACY,
      'seed': forms.count,
      'macro': {'f1': forms.number},
    }
  ],
  'out_of_fold': {
    'n': forms.count,
    'mean': _SPREAD,
    'deviation': _SPREAD,
    'intervals': workdir_lib.ACCURACY['intervals'],
    'confusion': [[forms.count]],
  },
  'members': [
    {'fold': forms.count, 'seed': forms.count, 'workdir': forms.name}
  ],
  'definitions': {'*': forms.text},
}


def text(metrics: dict[str, Any]) -> str:
  """The figures for the terminal."""
  protocol, together = metrics['protocol'], metrics['out_of_fold']
  lines = [
    f'{metrics["model"]} on {metrics["dataset"]["name"]}, protocol '
    f'{protocol["name"]}: {protocol["reason"]}',
    '',
    f'{"fold":>5}{"seed":>6}{"n":>8}{"accuracy":>12}{"macro F1":>12}'
    f'{"AUC":>8}{"epoch":>7}',
  ]
  for record in metrics['folds']:
    lines.append(
      f'{record["fold"]:>5}{record["seed"]:>6}{record["n"]:>8,}'
      f'{wording.percent(record["accuracy"]):>12}'
      f'{wording.percent(record["macro_f1"]):>12}'
      f'{wording.decimal(record["auc_macro"]):>8}{record["epoch"]:>7}'
    )
  seeds = metrics['seeds']
  lines += [
    '',
    *(
      f'{name}: {spread_of(metrics, key)} over {over(metrics)}'
      for key, name in (('accuracy', 'accuracy'), ('macro_f1', 'macro F1'))
    ),
    f'out of fold: {spread_of(together, "accuracy")} of '
    f'{together["n"]:,} examples '
    f'(95 % {wording.interval(together, "accuracy")})',
  ]
  if len(seeds) > 1:
    lines[-1] += f', the mean over {len(seeds)} seeds'
    lines += [
      f'  seed {one["seed"]}: {wording.percent(one["accuracy"])} '
      f'(95 % {wording.interval(one, "accuracy")})'
      for one in seeds
    ]
  return '\n'.join(lines)


def over(metrics: dict[str, Any]) -> str:
  """What the mean of the folds' own figures is taken over."""
  return 'folds and seeds' if len(metrics['seeds']) > 1 else 'folds'


def spread_of(figures: dict[str, Any], name: str) -> str:
  """A figure's 'mean' ± 'deviation'; the mean alone where there is no other."""
  mean, deviation = figures['mean'][name], figures['deviation'][name]
  if deviation is None:
    return wording.percent(mean)
  return f'{wording.percent(mean, unit="")} ± {wording.percent(deviation)}'


def read_folds(members: Sequence[tuple[int, int, pathlib.Path]]) -> list[Fold]:
  """The evaluated test parts of members.

  Args:
    members: (fold, seed, workdir) of each.

  Raises:
    UserError: one was not evaluated, or they do not fit together.
  """
  folds = []
  for fold, seed, workdir in members:
    evaluation = workdir_lib.read_evaluation(workdir, 'test')
    if evaluation is None:
      raise UserError(
        f'{workdir} has no evaluation of its test fold; crossval on the same '
        '--workdir makes it'
      )
    folds.append(Fold(fold, seed, evaluation))
  for seed in {fold.seed for fold in folds}:
    ids = np.concatenate([f.evaluation.ids for f in folds if f.seed == seed])
    names, counts = np.unique(ids, return_counts=True)
    if counts.max() > 1:
      raise UserError(
        f'{names[counts.argmax()]} is in the test part of several folds; '
        'out-of-fold predictions need each example once'
      )
    if seed != folds[0].seed:
      first = [f.evaluation.ids for f in folds if f.seed == folds[0].seed]
      if not np.array_equal(names, np.unique(np.concatenate(first))):
        raise UserError(
          f'the folds of seed {seed} hold other examples than those of seed '
          f'{folds[0].seed}; a mean over seeds needs the same'
        )
  return folds


def figures(
  folds: Sequence[Fold], *, n_boot: int = intervals.BOOTSTRAP_DRAWS
) -> dict[str, Any]:
  """All figures of a cross-validation, JSON-able.

  Args:
    folds: of `read_folds`.
    n_boot: bootstrap resamples of the intervals.

  Returns:
    'folds': a record of each; 'mean' and 'deviation' over them; 'seeds':
    `scores.all_scores` of each seed's out-of-fold predictions; 'out_of_fold':
    of those, 'mean' and 'deviation' over seeds, the 'intervals' of the mean,
    and the 'confusion' counts of all seeds.
  """
  names = folds[0].evaluation.metrics['class_names']
  records = [_record(fold) for fold in folds]
  predictions = {
    seed: out_of_fold(folds, seed)
    for seed in sorted({fold.seed for fold in folds})
  }
  first = next(iter(predictions.values()))
  by_seed: list[dict[str, Any]] = [
    {'seed': seed}
    | scores.all_scores(
      arrays['logits'],
      arrays['label'],
      names,
      units=arrays.get('unit'),
      n_boot=n_boot,
    )
    for seed, arrays in predictions.items()
  ]
  over_seeds = _mean_and_deviation(
    [one | {'macro_f1': one['macro']['f1']} for one in by_seed]
  )
  return {
    'class_names': names,
    'folds': records,
    **_mean_and_deviation(records),
    'seeds': by_seed,
    'out_of_fold': {
      'n': len(first['id']),
      **over_seeds,
      'intervals': _intervals_of_mean(
        list(predictions.values()),
        over_seeds['mean'],
        len(names),
        n_boot=n_boot,
      )
      if len(by_seed) > 1
      else by_seed[0]['intervals'],
      'confusion': np.sum([one['confusion'] for one in by_seed], 0).tolist(),
      'unit': folds[0].evaluation.metrics['unit']
      if 'unit' in first
      else 'example',
    },
    'definitions': scores.DEFINITIONS | DEFINITIONS,
  }


def _intervals_of_mean(
  seeds: Sequence[dict[str, np.ndarray]],
  means: Mapping[str, Any],
  num_classes: int,
  *,
  n_boot: int,
) -> dict[str, list[float] | None]:
  """Intervals of the mean over seeds, each unit drawn with all its seeds.

  Args:
    seeds: `out_of_fold` of each, of the same ids.
    means: of the figures over seeds.
    num_classes: K.
    n_boot: bootstrap resamples.
  """
  units, labels = seeds[0].get('unit', seeds[0]['id']), seeds[0]['label']
  predicted = np.array([arrays['logits'].argmax(axis=-1) for arrays in seeds])
  resampled = intervals.resampled_figures(
    units, labels, predicted, num_classes, n_boot=n_boot
  )
  draws = {name: values.mean(axis=1) for name, values in resampled.items()}
  return intervals.intervals_of(means, draws, labels, predicted, units)


def out_of_fold(folds: Sequence[Fold], seed: int) -> dict[str, np.ndarray]:
  """One seed's out-of-fold predictions.

  Returns:
    'id' text (n,), 'logits' float32 (n, K), 'label' int32 (n,), 'fold' int32
    (n,), in the order of the ids; 'unit' text (n,) where people or recordings
    are known.
  """
  those = [fold for fold in folds if fold.seed == seed]
  arrays = {
    'id': np.concatenate([f.evaluation.ids for f in those]),
    'logits': np.concatenate([f.evaluation.logits for f in those]),
    'label': np.concatenate([f.evaluation.labels for f in those]),
    'fold': np.concatenate(
      [np.full(len(f.evaluation.ids), f.fold, np.int32) for f in those]
    ),
  }
  units = [f.evaluation.units for f in those]
  known = [values for values in units if values is not None]
  if len(known) == len(those):
    arrays['unit'] = np.concatenate(known)
  order = np.argsort(arrays['id'], kind='stable')
  return {name: values[order] for name, values in arrays.items()}


def write(
  workdir: pathlib.Path, folds: Sequence[Fold], metrics: dict[str, Any]
) -> None:
  """Writes the figures and the out-of-fold predictions of all seeds."""
  seeds = sorted({fold.seed for fold in folds})
  parts = [out_of_fold(folds, seed) for seed in seeds]
  arrays = {
    name: np.concatenate([part[name] for part in parts])
    for name in parts[0]
    if all(name in part for part in parts)
  }
  arrays['seed'] = np.repeat(seeds, [len(part['id']) for part in parts])
  workdir_lib.write_npz(workdir / PREDICTIONS, arrays)
  files.write_json(workdir / METRICS, metrics)


def _record(fold: Fold) -> dict[str, Any]:
  metrics = fold.evaluation.metrics
  return {
    'fold': fold.fold,
    'seed': fold.seed,
    'n': metrics['n'],
    'accuracy': metrics['accuracy'],
    'accuracy_interval': metrics['intervals']['accuracy'],
    'balanced_accuracy': metrics['balanced_accuracy'],
    'macro_f1': metrics['macro']['f1'],
    'auc_macro': metrics['auc_macro'],
    'loss': metrics['loss'],
    'epoch': metrics['checkpoint']['epoch'],
    'absent_classes': metrics['absent_classes'],
  }


def _mean_and_deviation(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """'mean' and 'deviation' of the figures of `SPREAD`, None of none known."""
  found = {key: runs.spread([r[key] for r in records]) for key in SPREAD}
  return {
    'mean': {key: one and one.mean for key, one in found.items()},
    'deviation': {key: one and one.deviation for key, one in found.items()},
  }


@dataclasses.dataclass(frozen=True, eq=False)
class MeanRoc:
  """ROC curves read off at the same false-positive rates.

  Attributes:
    false_positive_rate: (p,).
    folds: (F * S, p) true-positive rates.
    mean: (p,) over the folds.
    deviation: (p,) over the folds; 0 where there is one.
  """

  false_positive_rate: np.ndarray
  folds: np.ndarray
  mean: np.ndarray
  deviation: np.ndarray


def mean_roc(folds: Sequence[Fold], *, points: int = 101) -> MeanRoc | None:
  """ROC of each fold, averaged over classes, and their mean with its spread.

  Every class is set against the rest in each fold, and the curves of the
  classes that the fold has are averaged at equal false-positive rates (macro).

  Args:
    folds: of `read_folds`.
    points: false-positive rates at which curves are read off.

  Returns:
    None where every fold has one class alone, which no curve tells apart.
  """
  grid = np.linspace(0, 1, points)
  curves = []
  for fold in folds:
    evaluation = fold.evaluation
    probs = np.exp(scores.log_softmax(evaluation.logits))
    names = evaluation.metrics['class_names']
    found = [
      np.interp(grid, curve['false_positive_rate'], curve['true_positive_rate'])
      for curve in scores.roc_curves(probs, evaluation.labels, names)
      if curve is not None
    ]
    if found:
      curves.append(np.mean(found, axis=0))
  if not curves:
    return None
  stacked = np.array(curves)
  several = len(stacked) > 1
  return MeanRoc(
    grid,
    stacked,
    stacked.mean(0),
    stacked.std(0, ddof=1) if several else np.zeros(points),
  )
