"""Compares runs by what they predict of the same examples.

Reads the files of `evaluate` and nothing else. A test split is not opened
here, so the ledger gets no line: it got one for each run when that run was
evaluated, and every figure below is of those same predictions.

S systems (the runs, then their ensemble), n positions of a split, K classes.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

from fer_jax.errors import UserError
from fer_jax.evaluation import counts, intervals, scores
from fer_jax.evaluation import runs as runs_lib
from fer_jax.evaluation import workdir as workdir_lib
from fer_jax.evaluation.runs import Run
from fer_jax.evaluation.workdir import Evaluation

ALL_PAIRS = 4
"""Up to so many runs every pair is compared, of more each with the first."""

SIGNIFICANCE = 0.05

DEFINITIONS = {
  'interval': (
    "95 % interval by Student's t, with as many degrees of freedom as there "
    'are units but one, and the standard error of '
    f'{intervals.BOOTSTRAP_DRAWS:,} bootstrap resamples of the units (seeded), '
    'the same for all runs; of the figure of a run on the logit scale. It '
    'holds the noise of sampling units, not that of training seeds, and is '
    'not adjusted for the number of pairs'
  ),
  'unit': (
    'a person with all pictures where the data set says who is in them, else a '
    'recording where it says that, else an example with its copies'
  ),
  'difference': "the first run's figure minus the second's",
  'mcnemar': (
    "McNemar's exact test: of the units of which one run of the two has more "
    'right, b are of the first and c of the second; p is the probability of '
    'a split at least as uneven in b + c tosses of a fair coin'
  ),
  'p_holm': 'p after the correction of Holm (1979) for all pairs shown',
  'agreement': 'share of the examples of which both predict the same class',
  'kappa': (
    "Cohen's kappa between the two runs' predictions: agreement beyond what "
    'their class frequencies give by chance; None where both predict one and '
    'the same class alone'
  ),
  'better': (
    'which run is right more often, counted by examples and by units, where '
    f'p_holm is below {SIGNIFICANCE}; None is no difference found, which does '
    'not show that there is none, or one that turns round between the two '
    'counts'
  ),
  'ensemble': (
    "mean of the runs' softmax probabilities. Its best member, by accuracy, "
    'is chosen on this very split, which flatters that member; better is '
    "'ensemble' or 'member' where the interval of the accuracy difference "
    'excludes 0, else None'
  ),
  'macro_f1': scores.DEFINITIONS['macro'],
} | {
  name: scores.DEFINITIONS[name]
  for name in ('balanced_accuracy', 'loss', 'expected_calibration_error')
}
"""What each figure means, in words that are printed."""


def compare(
  workdirs: Sequence[str | pathlib.Path],
  split: str | None = None,
  *,
  n_boot: int = intervals.BOOTSTRAP_DRAWS,
  seed: int = 0,
) -> dict[str, Any]:
  """Compares evaluated runs on a split.

  Args:
    workdirs: of at least two runs.
    split: 'validation' or 'test'; None takes test where every run has it,
      else validation.
    n_boot: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    A JSON-able dict: `split`, `split_taken` (why that one), `n`,
    `distinct_ids`, `units` (how many), `ids_sha256`, `class_names`, `runs`
    (where each comes from, and its figures), `pairs` and `ensemble` of
    `compare_predictions`, `warnings` and `notes` (sentences), `bootstrap` and
    `definitions`.

  Raises:
    UserError: fewer than two workdirs or one given twice, a split that a run
      was not evaluated on, or runs that differ in classes, ids or labels.
  """
  if split is not None and split not in workdir_lib.SPLITS:
    raise UserError(
      f'--split is {split!r}; expected one of {", ".join(workdir_lib.SPLITS)}'
    )
  members = _read(workdirs)
  split, split_taken = _taken(members, split)
  evaluations = [_evaluation(run, split) for run in members]
  first = evaluations[0]
  for run, evaluation in zip(members[1:], evaluations[1:], strict=True):
    _require_same_examples(members[0], first, run, evaluation)
  # An evaluation made before units were kept has the others' of these ids.
  units = next((e.units for e in evaluations if e.units is not None), first.ids)
  found = compare_predictions(
    units,
    first.labels,
    {
      run.name: evaluation.logits
      for run, evaluation in zip(members, evaluations, strict=True)
    },
    n_boot=n_boot,
    seed=seed,
  )
  return {
    'split': split,
    'split_taken': split_taken,
    'n': len(first.ids),
    'distinct_ids': len(np.unique(first.ids)),
    'units': len(np.unique(units)),
    'ids_sha256': workdir_lib.digest_of_ids(first.ids),
    'class_names': list(first.metrics['class_names']),
    'runs': [
      _origin(run, evaluation) | figures
      for run, evaluation, figures in zip(
        members, evaluations, found['runs'], strict=True
      )
    ],
    'pairs': found['pairs'],
    'ensemble': found['ensemble'],
    'warnings': _warnings(members, evaluations, split),
    'notes': _notes(members, first.ids, units),
    'bootstrap': {
      'draws': n_boot,
      'seed': seed,
      'level': intervals.CONFIDENCE_LEVEL,
    },
    'definitions': DEFINITIONS,
  }


def compare_predictions(
  units: np.ndarray,
  labels: np.ndarray,
  logits: Mapping[str, np.ndarray],
  *,
  n_boot: int = intervals.BOOTSTRAP_DRAWS,
  seed: int = 0,
) -> dict[str, Any]:
  """Figures of several runs, of their pairs and of their ensemble.

  Every position counts in the figures of a run; the bootstrap and McNemar's
  test take those of one unit together, which are not independent: the copies
  of an example, the pictures of a person.

  Args:
    units: (n,) text.
    labels: (n,) integers below K.
    logits: run's name -> (n, K), at least two.
    n_boot: bootstrap resamples.
    seed: of the bootstrap.

  Returns:
    `runs`, in their order: `accuracy`, `balanced_accuracy`, `macro_f1`,
    `loss`, `expected_calibration_error` and `intervals`. `pairs`: `first`,
    `second`, `accuracy` and `macro_f1` (`difference`, `interval`), `mcnemar`
    (`b`, `c`, `p`, `p_holm`), `agreement`, `kappa`, `better` and `statement`.
    `ensemble`: a run's figures, `best_member`, `accuracy_difference` and
    `macro_f1_difference` from it, `better` and `statement`.
  """
  units, labels = np.asarray(units), np.asarray(labels)
  names = list(logits)
  log_probs = [scores.log_softmax(values) for values in logits.values()]
  mean = scipy.special.logsumexp(log_probs, axis=0) - np.log(len(names))
  log_probs = np.stack([*log_probs, mean])
  predicted = log_probs.argmax(axis=-1)
  draws = intervals.resampled_figures(
    units, labels, predicted, log_probs.shape[-1], n_boot=n_boot, seed=seed
  )
  unit_count = len(np.unique(units))
  figures = [_figures(values, labels) for values in log_probs]
  for system, of_system in enumerate(figures):
    of_system['intervals'] = intervals.intervals_of(
      of_system,
      {name: values[:, system] for name, values in draws.items()},
      labels,
      predicted[system : system + 1],
      units,
    )

  def difference(name: str, first: int, second: int) -> dict[str, Any]:
    found = figures[first][name] - figures[second][name]
    drawn = draws[name][:, first] - draws[name][:, second]
    return {
      'difference': found,
      'interval': intervals.difference_interval(found, drawn, unit_count),
    }

  right = predicted == labels
  pairs = [
    {
      'first': names[first],
      'second': names[second],
      'accuracy': difference('accuracy', first, second),
      'macro_f1': difference('macro_f1', first, second),
      'mcnemar': mcnemar(units, right[first], right[second]),
      'agreement': float((predicted[first] == predicted[second]).mean()),
      'kappa': kappa(predicted[first], predicted[second]),
    }
    for first, second in pairs_of(len(names))
  ]
  adjusted = holm([pair['mcnemar']['p'] for pair in pairs])
  for pair, p_holm in zip(pairs, adjusted, strict=True):
    pair['mcnemar']['p_holm'] = p_holm
    pair['better'] = _better_of(pair)
    pair['statement'] = _statement(pair)
  best = int(np.argmax([of_run['accuracy'] for of_run in figures[:-1]]))
  ensemble = {
    **figures[-1],
    'best_member': names[best],
    'accuracy_difference': difference('accuracy', -1, best),
    'macro_f1_difference': difference('macro_f1', -1, best),
  }
  low, high = ensemble['accuracy_difference']['interval'] or (0, 0)
  ensemble['better'] = 'ensemble' if low > 0 else 'member' if high < 0 else None
  ensemble['statement'] = _ensemble_statement(ensemble)
  return {'runs': figures[:-1], 'pairs': pairs, 'ensemble': ensemble}


def pairs_of(count: int) -> list[tuple[int, int]]:
  """The pairs that are compared among so many runs, by their positions."""
  firsts = range(count) if count <= ALL_PAIRS else range(1)
  return [(a, b) for a in firsts for b in range(a + 1, count)]


def mcnemar(
  units: np.ndarray, first_right: np.ndarray, second_right: np.ndarray
) -> dict[str, Any]:
  """McNemar's exact test of two runs' being right on distinct units.

  Args:
    units: (n,) text; a repeated one counts once, for the run that has more of
      its positions right.
    first_right: bool (n,).
    second_right: bool (n,).

  Returns:
    `b` units of which the first run has more right, `c` of which the second
    has, and the two-sided `p`.
  """
  unit = np.unique(units, return_inverse=True)[1]
  lead = np.bincount(unit, first_right.astype(float) - second_right)
  b, c = int((lead > 0).sum()), int((lead < 0).sum())
  p = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0
  return {'b': b, 'c': c, 'p': float(p)}


def holm(p_values: Sequence[float]) -> list[float]:
  """p values adjusted for their number (Holm 1979), in the order given."""
  adjusted = [0.0] * len(p_values)
  largest = 0.0
  order = sorted(range(len(p_values)), key=p_values.__getitem__)
  for rank, place in enumerate(order):
    largest = max(largest, (len(p_values) - rank) * p_values[place])
    adjusted[place] = min(1.0, largest)
  return adjusted


def kappa(first: np.ndarray, second: np.ndarray) -> float | None:
  """Cohen's kappa of two lists of classes (n,); None where chance is 1."""
  size = max(first.max(), second.max()) + 1
  shares = [np.bincount(x, minlength=size) / len(x) for x in (first, second)]
  chance = float(shares[0] @ shares[1])
  if chance == 1:
    return None
  return (float((first == second).mean()) - chance) / (1 - chance)


def _figures(log_probs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
  """A system's figures from (n, K) log-probabilities."""
  n, num_classes = log_probs.shape
  confusion = counts.confusion_counts(
    labels, log_probs.argmax(axis=-1), num_classes
  )
  figures = counts.figures_of_counts(
    np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
  )
  bins = scores.calibration_bins(np.exp(log_probs), labels)
  return {
    **{name: float(value) for name, value in figures.items()},
    'loss': float(-log_probs[np.arange(n), labels].mean()),
    'expected_calibration_error': scores.expected_calibration_error(bins),
  }


def _better_of(pair: dict[str, Any]) -> str | None:
  """The better run of a pair, None where no difference was found."""
  test, difference = pair['mcnemar'], pair['accuracy']['difference']
  if test['p_holm'] >= SIGNIFICANCE:
    return None
  # The accuracy can be against the count of units: then neither is.
  if test['b'] > test['c'] and difference > 0:
    return pair['first']
  if test['b'] < test['c'] and difference < 0:
    return pair['second']
  return None


def _statement(pair: dict[str, Any]) -> str:
  first, second, better = pair['first'], pair['second'], pair['better']
  p = f'p = {pair["mcnemar"]["p_holm"]:.2g}'
  if better is None and pair['mcnemar']['p_holm'] < SIGNIFICANCE:
    return (
      f'{first} and {second} differ by units ({p}), and by examples not the '
      'same way: neither is the better one'
    )
  if better is None:
    return f'no difference found between {first} and {second} ({p})'
  worse = second if better == first else first
  points = 100 * abs(pair['accuracy']['difference'])
  return f'{better} is better than {worse} by {points:.2f} points ({p})'


def _ensemble_statement(ensemble: dict[str, Any]) -> str:
  best, difference = ensemble['best_member'], ensemble['accuracy_difference']
  points = f'{100 * difference["difference"]:+.2f} points'
  if difference['interval']:
    low, high = (100 * bound for bound in difference['interval'])
    points += f' [{low:+.2f}, {high:+.2f}]'
  said = {
    'ensemble': f'the ensemble is better than its best member, {best}',
    'member': f'the ensemble is worse than its best member, {best}',
    None: f'no difference found between the ensemble and its best, {best}',
  }[ensemble['better']]
  return f'{said}: {points}; that member was chosen on this very split'


def _read(workdirs: Sequence[str | pathlib.Path]) -> list[Run]:
  if len(workdirs) < 2:
    raise UserError(
      f'compare got {len(workdirs)} workdir{"" if len(workdirs) == 1 else "s"}'
      '; expected at least two'
    )
  seen: dict[pathlib.Path, str | pathlib.Path] = {}
  for path in workdirs:
    resolved = pathlib.Path(path).resolve()
    if resolved in seen:
      raise UserError(
        f'{path} is the same workdir as {seen[resolved]}; expected each run '
        'once'
      )
    seen[resolved] = path
  return runs_lib.read_all(workdirs)


def _taken(members: Sequence[Run], split: str | None) -> tuple[str, str]:
  """(the split to compare on, why that one)."""
  if split is not None:
    return split, 'as asked for'
  untested = [run.name for run in members if 'test' not in run.evaluations]
  if not untested:
    return 'test', 'every run has it'
  return 'validation', f'{", ".join(untested)} has no test predictions'


def _evaluation(run: Run, split: str) -> Evaluation:
  if split not in run.evaluations:
    raise UserError(
      f'{run.path} has no predictions of the {split} split; make them with '
      f'python -m fer_jax evaluate --workdir={run.path} --split={split}'
    )
  return run.evaluations[split]


def _require_same_examples(
  first_run: Run, first: Evaluation, second_run: Run, second: Evaluation
) -> None:
  """Raises UserError unless classes, ids and labels are equal, in order."""
  a, b = first_run.name, second_run.name
  classes = [tuple(e.metrics['class_names']) for e in (first, second)]
  if classes[0] != classes[1]:
    raise UserError(
      f'the classes of {a} are {", ".join(classes[0])} and those of {b} are '
      f'{", ".join(classes[1])}; expected the same in the same order'
    )
  if not np.array_equal(first.ids, second.ids):
    raise UserError(_other_ids(a, first.ids, b, second.ids))
  differ = np.flatnonzero(first.labels != second.labels)
  if len(differ):
    place = differ[0]
    label_a = classes[0][first.labels[place]]
    label_b = classes[0][second.labels[place]]
    raise UserError(
      f'{len(differ)} of {len(first.ids)} labels differ between {a} and {b}, '
      f'the first that of {first.ids[place]}: {label_a} in {a}, {label_b} in '
      f'{b}; expected runs on the same labels'
    )


def _other_ids(a: str, first: np.ndarray, b: str, second: np.ndarray) -> str:
  only_a = first[~np.isin(first, second)]
  only_b = second[~np.isin(second, first)]
  if len(only_a) or len(only_b):
    name, where = (only_a[0], a) if len(only_a) else (only_b[0], b)
    return (
      f'{a} and {b} were evaluated on other examples: {len(only_a)} of the '
      f'{len(first)} ids of {a} are not among the {len(second)} of {b}, and '
      f'{len(only_b)} the other way round; the first is {name} of {where}; '
      'expected runs with equal id lists'
    )
  size = min(len(first), len(second))
  differ = np.flatnonzero(first[:size] != second[:size])
  place = int(differ[0]) if len(differ) else size
  return (
    f'{a} and {b} have the same ids in another order or number '
    f'({len(first)} and {len(second)}): they differ first at position '
    f'{place}; expected runs with equal id lists'
  )


def _origin(run: Run, evaluation: Evaluation) -> dict[str, Any]:
  """Which run it is and where its predictions come from."""
  return {
    'name': run.name,
    'workdir': str(run.path),
    'model': run.config.get('model', {}).get('name'),
    'seed': run.config.get('seed'),
    'dataset': run.facts.get('dataset', {}),
    'protocol': _protocol(run),
    'checkpoint': evaluation.metrics.get('checkpoint', {}),
    'views': evaluation.metrics.get('views', []),
  }


def _protocol(run: Run) -> dict[str, Any]:
  known = run.facts.get('protocol', {})
  names = ('name', 'seed', 'options', 'leaks', 'reason', 'digest')
  return {name: known.get(name) for name in names}


def _selects(run: Run) -> bool:
  return run.config.get('train', {}).get('select') != 'last'


def _partition(run: Run) -> str:
  protocol = _protocol(run)
  return f'{protocol["name"]} (digest {str(protocol["digest"])[:12]})'


def _warnings(
  members: Sequence[Run], evaluations: Sequence[Evaluation], split: str
) -> list[str]:
  """What speaks against the figures, a sentence each."""
  said = []
  for run in members:
    protocol = _protocol(run)
    if protocol['leaks'] is None:
      said.append(f'{run.name}: whether its protocol leaks is not known')
    elif protocol['leaks']:
      said.append(
        f'{run.name}: protocol {protocol["name"]} LEAKS: {protocol["reason"]}'
      )
  for what, values in (
    ('protocols', [_partition(run) for run in members]),
    (
      'builds of the data',
      [str(run.facts.get('dataset', {}).get('checksum')) for run in members],
    ),
    ('views', ['+'.join(e.metrics.get('views', [])) for e in evaluations]),
  ):
    if len(set(values)) > 1:
      each = ', '.join(
        f'{run.name} {value}'
        for run, value in zip(members, values, strict=True)
      )
      said.append(f'the runs are of different {what}: {each}')
  for run, evaluation in zip(members, evaluations, strict=True):
    outdated = runs_lib.stale(run, split, evaluation.metrics)
    if outdated:
      said.append(f'{run.name}: {outdated}')
  selected = [run.name for run in members if _selects(run)]
  if split == 'validation' and selected:
    said.append(
      f'validation chose the checkpoints of {", ".join(selected)}: its figures '
      'flatter them'
    )
  return said


def _notes(
  members: Sequence[Run], ids: np.ndarray, units: np.ndarray
) -> list[str]:
  """What helps to read the figures, a sentence each."""
  said = [
    f'{", ".join(run.name for run in group.runs)} are of one config but for '
    'the seed, and of the same data: a difference between them is the noise of '
    'training'
    for group in runs_lib.group(members)
    if len(group.runs) > 1
  ]
  distinct = len(np.unique(ids))
  if distinct < len(ids):
    said.append(
      f'{len(ids)} positions hold {distinct} distinct ids: accuracy and F1 '
      'count positions, the intervals and tests take each id with its copies '
      'as one'
    )
  if len(np.unique(units)) < distinct:
    said.append(
      f'the examples are of {len(np.unique(units))} people or recordings: the '
      'intervals and tests take the pictures of each as one'
    )
  return said
