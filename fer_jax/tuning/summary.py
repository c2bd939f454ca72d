"""What a sweep has found so far: sweep.json, best.json, and the text.

Everything is read from the study and the workdirs, so any worker can write it,
at any moment, and all of them write the same.
"""

import collections
import math
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.tuning import queue
from fer_jax.tuning.space import Space, plain
from fer_jax.tuning.study import Study

SUMMARY = 'sweep.json'
BEST = 'best.json'
LOCK = '.sweep.lock'

_STATES = {
  TrialState.COMPLETE: 'complete',
  TrialState.PRUNED: 'pruned',
  TrialState.FAIL: 'failed',
  TrialState.RUNNING: 'running',
  TrialState.WAITING: 'waiting',
}


def build(
  study: Study,
  space: Space,
  workdir: pathlib.Path,
  search: dict[str, Any],
  repeats: Sequence[queue.Repeat] = (),
  *,
  ended: bool = False,
) -> dict[str, Any]:
  """The content of sweep.json.

  Args:
    study: of the sweep.
    space: what was searched.
    workdir: of the sweep.
    search: how: 'search', 'prune', 'population', 'trials', 'seed'.
    repeats: runs of the finalists, where these are known.
    ended: whether nothing is left to train, so that there is a winner.
  """
  frozen = study.trials()
  trials = [_trial(study, space, workdir, trial) for trial in frozen]
  finalists = _finalists(study, repeats, workdir)
  runs = [*trials, *(run for f in finalists for run in f['runs'])]
  seconds = sum(run['device_seconds'] for run in runs)
  return {
    'space': space.to_json(),
    'config': config_lib.to_json(space.base),
    'search': search,
    'metric': space.base.train.select,
    'trials': trials,
    'importance': study.importance() if ended else None,
    'finalists': finalists,
    'best': _best(study, finalists) if ended else None,
    'cost': {
      'device_minutes': seconds / 60,
      'compilations': sum('compiled' in t.user_attrs for t in frozen),
      'shapes': len({t['shape'] for t in trials if t['state'] != 'waiting'}),
    },
    'storage': study.storage.shown,
    'study': study.name,
  }


def write(
  build: Callable[[], dict[str, Any]], workdir: pathlib.Path
) -> dict[str, Any]:
  """Writes sweep.json and, where there is a winner, its config.

  One worker at a time, so that what is written is the newest. One that leaves
  while another does the last of it has seen no winner: what it has seen does
  not take the place of the end.

  Args:
    build: gives the content.
    workdir: of the sweep.

  Returns:
    The content.
  """
  with (workdir / LOCK).open('w') as lock:
    files.taken(lock, wait=True)
    content = build()
    if content['best'] is not None:
      winner = content['trials'][content['best']['trial']]['workdir']
      config = config_lib.load_json(workdir / winner / 'config.json')
      files.write_json(workdir / BEST, config_lib.to_json(config))
    elif _has_ended(workdir, content):
      return content
    files.write_json(workdir / SUMMARY, content)
  return content


def _has_ended(workdir: pathlib.Path, content: dict[str, Any]) -> bool:
  """Whether sweep.json has the end of all that the content is of."""
  path = workdir / SUMMARY
  if not path.exists():
    return False
  there = files.read_json(path)
  if there['best'] is None or _searched(there) != _searched(content):
    return False
  return _repeated(content) <= _repeated(there)


def _searched(content: dict[str, Any]) -> dict[str, Any]:
  """How, but for what each worker has of its own."""
  return {k: v for k, v in content['search'].items() if k != 'population'}


def _repeated(content: dict[str, Any]) -> set[tuple[int, int]]:
  """(trial, seed) of every run of a finalist."""
  return {
    (finalist['trial'], run['seed'])
    for finalist in content['finalists']
    for run in finalist['runs']
  }


def _trial(
  study: Study, space: Space, workdir: pathlib.Path, trial: FrozenTrial
) -> dict[str, Any]:
  params = study.values_of(trial)
  notes = trial.user_attrs
  folder = f'{queue.TRIALS}/{trial.number:04d}'
  if 'device_seconds' in notes:
    seconds, epoch = notes['device_seconds'], notes['epoch']
  else:
    seconds = queue.device_seconds(workdir / folder)
    epoch = queue.epochs_done(workdir / folder)
  # Noted before it was told: where it is complete, it was gone on with since.
  failed = 'failure' in notes and trial.state == TrialState.PRUNED
  state = 'failed' if failed else _STATES[trial.state]
  finite = trial.value is not None and math.isfinite(trial.value)
  return {
    'number': trial.number,
    'state': state,
    'value': trial.value if finite and state != 'failed' else None,
    'params': plain(params),
    'values': {str(e): v for e, v in sorted(trial.intermediate_values.items())},
    'epoch': epoch,
    'epochs': params.get('train.epochs', space.base.train.epochs),
    'device_seconds': seconds,
    'shape': space.shape_text(params),
    'failure': (
      notes.get('failure', queue.ENDED) if state == 'failed' else None
    ),
    'workdir': folder,
    'started': _time(trial.datetime_start),
    'ended': _time(trial.datetime_complete),
  }


def _time(moment: Any) -> str | None:
  """Optuna keeps local times without a zone."""
  return moment.astimezone().isoformat('T', 'seconds') if moment else None


def _finalists(
  study: Study, repeats: Sequence[queue.Repeat], workdir: pathlib.Path
) -> list[dict[str, Any]]:
  """In the order of their trials' values."""
  by_number = {t.number: t for t in study.trials()}
  found = []
  for number in dict.fromkeys(r.number for r in repeats):
    runs = [
      {
        'seed': r.seed,
        **queue.outcome(r.workdir),
        'device_seconds': queue.device_seconds(r.workdir),
        'workdir': str(r.workdir.relative_to(workdir)),
      }
      for r in repeats
      if r.number == number
    ]
    values = [run['value'] for run in runs]
    whole = None not in values
    found.append(
      {
        'trial': number,
        'params': plain(study.values_of(by_number[number])),
        'runs': runs,
        'mean': statistics.fmean(values) if whole else None,
        'sd': statistics.stdev(values) if whole and len(values) > 1 else None,
      }
    )
  return found


def _best(
  study: Study, finalists: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
  """The finalist of the best mean, else the best trial.

  A finalist that failed under another seed has no mean and is passed over;
  `text` and the report say so, and that none was left.
  """
  sign = 1 if study.larger_is_better else -1
  means = [f for f in finalists if f['mean'] is not None]
  if means:
    winner = max(means, key=lambda f: sign * f['mean'])
    number, value = winner['trial'], winner['mean']
  else:
    complete = study.best_first()
    if not complete:
      return None
    number, value = complete[0].number, complete[0].value
  return {'trial': number, 'value': value, 'config': BEST}


def counts(content: dict[str, Any]) -> str:
  """How many trials are in which state, in a line."""
  states = [t['state'] for t in content['trials']]
  each = ', '.join(
    f'{states.count(state)} {state}' for state in dict.fromkeys(states)
  )
  return f'{len(states)} of {content["search"]["trials"]} trials ({each})'


def _failures(content: dict[str, Any]) -> list[str]:
  """How many trials failed for each reason, a line each."""
  reasons = [t['failure'] for t in content['trials'] if t['failure']]
  return [
    f'{count} failed: {reason}'
    for reason, count in collections.Counter(reasons).most_common()
  ]


def text(content: dict[str, Any]) -> str:
  """The result for the terminal."""
  metric, cost = content['metric'], content['cost']
  lines = [
    f'{counts(content)}, shapes {cost["shapes"]}, compilations '
    f'{cost["compilations"]}, device minutes {cost["device_minutes"]:.1f}',
    *_failures(content),
  ]
  for finalist in content['finalists']:
    trial = content['trials'][finalist['trial']]
    line = f'trial {finalist["trial"]}: {metric} {trial["value"]:.4f}'
    if finalist['mean'] is not None:
      line += f', under {len(finalist["runs"])} other seeds '
      line += f'{finalist["mean"]:.4f}'
    if finalist['sd'] is not None:
      line += f' ± {finalist["sd"]:.4f}'
    failed = [
      f'failed under seed {run["seed"]} ({run["failure"]})'
      for run in finalist['runs']
      if run['failure']
    ]
    if failed:
      line += f', left out of the choice: {", ".join(failed)}'
    lines.append(line)
  best = content['best']
  params = content['trials'][best['trial']]['params']
  repeated = any(f['mean'] is not None for f in content['finalists'])
  if repeated:
    chosen_by = ', the mean over those seeds'
  elif content['finalists']:
    chosen_by = (
      ', the value that it was selected by: every finalist failed under '
      'another seed'
    )
  else:
    chosen_by = ''
  lines.append(
    f'best: trial {best["trial"]}, validation {metric} {best["value"]:.4f}'
    f'{chosen_by}'
  )
  return '\n'.join([*lines, *(f'  {f} = {v}' for f, v in params.items())])
