"""A sweep as its report reads it: `sweep.json`, and the facts of a trial.

Reads files only: no database, no JAX. What the file leaves out or spoils is
named; a value that is not finite is no value.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from itertools import starmap
from typing import Any

from fer_jax import files, forms
from fer_jax.errors import UserError
from fer_jax.evaluation import runs

FILE = 'sweep.json'
STATES = ('complete', 'pruned', 'failed', 'running', 'waiting')
LOWER_IS_BETTER = frozenset({'loss'})
"""Selection metrics that a search makes small."""


def _state(value: Any) -> bool:
  """One of complete, pruned, failed, running, waiting."""
  return value in STATES


def _quantity(value: Any) -> bool:
  """A number, NaN or null."""
  return value is None or isinstance(value, float) or forms.number(value)


def _deviation(value: Any) -> bool:
  """A number from 0, NaN or null."""
  return _quantity(value) and not (forms.number(value) and value < 0)


def _tried(value: Any) -> bool:
  """A finite number, a text, a flag, a list or null."""
  numeric = isinstance(value, int | float) and not isinstance(value, bool)
  return forms.number(value) if numeric else not isinstance(value, dict)


def _epochs(value: Any) -> bool:
  """An object of values by epoch."""
  return isinstance(value, dict) and all(
    name.isdecimal() and len(name) < 10 and _quantity(v)
    for name, v in value.items()
  )


_MEMBERS = {'*': forms.anything}
_FORM = {
  'space': {
    '*': {
      'kind?': forms.optional(forms.text),
      'low?': forms.optional(forms.number),
      'high?': forms.optional(forms.number),
      'log?': forms.flag,
      'choices?': forms.optional([_tried]),
      'when?': forms.optional(_MEMBERS),
    }
  },
  'config?': {'model?': {'name?': forms.text}, 'data?': {'name?': forms.text}},
  'search?': forms.optional(_MEMBERS),
  'metric': forms.text,
  'trials': [
    {
      'number': forms.count,
      'state': _state,
      'value?': _quantity,
      'params': {'*': _tried},
      'values?': forms.optional(_epochs),
      'epoch?': forms.optional(forms.count),
      'epochs?': forms.optional(forms.count),
      'device_seconds?': forms.optional(forms.number),
      'shape?': forms.optional(forms.text),
      'failure?': forms.optional(forms.text),
      'workdir?': forms.optional(forms.text),
    }
  ],
  'importance?': forms.optional({'*': forms.number}),
  'finalists?': [
    {
      'trial': forms.count,
      'runs': [
        {
          'seed': forms.count,
          'value?': _quantity,
          'failure?': forms.optional(forms.text),
          'device_seconds?': forms.optional(forms.number),
        }
      ],
      'mean?': _quantity,
      'sd?': _deviation,
    }
  ],
  'best?': forms.optional(
    {'trial': forms.count, 'config?': forms.optional(forms.text)}
  ),
  'cost?': forms.optional({'*': forms.optional(forms.number)}),
  'storage?': forms.optional(forms.text),
  'study?': forms.optional(forms.text),
}


@dataclasses.dataclass(frozen=True)
class Parameter:
  """One field that is searched.

  Attributes:
    name: dotted config field.
    kind: as the space calls it.
    low: of a range, None for choices.
    high: of a range, None for choices.
    log: whether the range is searched by orders of magnitude.
    choices: what is chosen from, () for a range.
    when: values of other fields under which it is searched, {} for always.
  """

  name: str
  kind: str
  low: float | None
  high: float | None
  log: bool
  choices: tuple[Any, ...]
  when: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Trial:
  """One trial.

  Attributes:
    number: of the study.
    state: of `STATES`.
    value: of the metric, None where there is none, as of failed ones.
    params: what was tried, by field.
    values: the metric after each validated epoch.
    epoch: epochs trained.
    epochs: epochs of a whole run, None where it is not known.
    device_seconds: its share of a device's time.
    shape: what was compiled for it.
    failure: why it failed, '' where it did not.
    workdir: below the sweep's, '' where it has none.
  """

  number: int
  state: str
  value: float | None
  params: dict[str, Any]
  values: dict[int, float]
  epoch: int
  epochs: int | None
  device_seconds: float
  shape: str
  failure: str
  workdir: str


@dataclasses.dataclass(frozen=True)
class Finalist:
  """A trial repeated over seeds.

  Attributes:
    trial: its number.
    runs: (seed, value) of those that have one.
    failures: (seed, why) of those that failed, for which the trial is left out
      of the choice.
    mean: over seeds, None before all have ended and where one failed.
    deviation: None for fewer than two.
    device_seconds: of all its runs.
  """

  trial: int
  runs: tuple[tuple[int, float], ...]
  failures: tuple[tuple[int, str], ...]
  mean: float | None
  deviation: float | None
  device_seconds: float


@dataclasses.dataclass(frozen=True)
class Sweep:
  """A sweep, under way or ended.

  Attributes:
    path: its workdir.
    config: that the trials start from, nested.
    parameters: that are searched.
    search: how, by name.
    metric: that is searched by.
    trials: by number.
    importance: share of each field, {} where it is not known.
    finalists: in the file's order.
    best: number of the trial that is named best, None before there is one.
    best_config: its config file in the workdir.
    cost: device_minutes, compilations and shapes, those that are known.
    storage: URL without its password.
    study: its name there.
    facts: run.json of a trial, {} where none has one: data and protocol.
  """

  path: pathlib.Path
  config: dict[str, Any]
  parameters: tuple[Parameter, ...]
  search: dict[str, Any]
  metric: str
  trials: tuple[Trial, ...]
  importance: dict[str, float]
  finalists: tuple[Finalist, ...]
  best: int | None
  best_config: str
  cost: dict[str, float]
  storage: str
  study: str
  facts: dict[str, Any]

  @property
  def best_trial(self) -> Trial | None:
    """The trial named best, else the best of those that are complete."""
    for trial in self.trials:
      if trial.number == self.best:
        return trial
    return best_of(self.complete, self.metric)

  def of_config(self, name: str) -> Any:
    """The config's own value of a field, None where it has none."""
    value: Any = self.config
    for part in name.split('.'):
      value = value.get(part) if isinstance(value, dict) else None
    return value

  @property
  def first(self) -> Trial | None:
    """The trial of the config's own values, where there is one."""
    for trial in self.trials:
      own = {name: self.of_config(name) for name in trial.params}
      if own and trial.params == own:
        return trial
    return None

  @property
  def complete(self) -> list[Trial]:
    """Trials that trained to their end and have a value."""
    return [
      t for t in self.trials if t.state == 'complete' and t.value is not None
    ]


def best_of(trials: Sequence[Trial], metric: str) -> Trial | None:
  """The trial of the best value, the earliest of equals."""
  sign = -1 if metric in LOWER_IS_BETTER else 1
  known = [
    (sign * t.value, -t.number, t) for t in trials if t.value is not None
  ]
  return max(known, key=lambda entry: entry[:2])[2] if known else None


def read(workdir: str | pathlib.Path) -> Sweep:
  """Reads a sweep's workdir.

  Raises:
    UserError: sweep.json is missing or damaged, naming the place in it.
  """
  workdir = pathlib.Path(workdir)
  path = workdir / FILE
  content = files.read_json(path)
  wrong = forms.misfit(content, _FORM)
  if wrong:
    raise UserError(f'{path}: {wrong}')
  trials = tuple(sorted(map(_trial, content['trials']), key=lambda t: t.number))
  best = content.get('best') or {}
  return Sweep(
    path=workdir,
    config=content.get('config', {}),
    parameters=tuple(starmap(_parameter, content['space'].items())),
    search=content.get('search') or {},
    metric=content['metric'],
    trials=trials,
    importance=content.get('importance') or {},
    finalists=tuple(map(_finalist, content.get('finalists', ()))),
    best=best.get('trial'),
    best_config=best.get('config') or '',
    cost={
      name: cost
      for name, cost in (content.get('cost') or {}).items()
      if cost is not None
    },
    storage=_without_password(content.get('storage') or ''),
    study=content.get('study') or '',
    facts=_facts(workdir, trials),
  )


def _parameter(name: str, content: dict[str, Any]) -> Parameter:
  low = content.get('low')
  return Parameter(
    name=name,
    kind=content.get('kind') or '',
    low=low,
    high=content.get('high'),
    # A logarithmic axis has no place for what is not positive.
    log=bool(content.get('log')) and low is not None and low > 0,
    choices=tuple(content.get('choices') or ()),
    when=content.get('when') or {},
  )


def _trial(content: dict[str, Any]) -> Trial:
  values = (content.get('values') or {}).items()
  return Trial(
    number=content['number'],
    state=content['state'],
    value=None
    if content['state'] == 'failed'
    else _finite(content.get('value')),
    params=content['params'],
    values=dict(
      sorted((int(e), v) for e, v in values if _finite(v) is not None)
    ),
    epoch=content.get('epoch') or 0,
    epochs=content.get('epochs'),
    device_seconds=content.get('device_seconds') or 0.0,
    shape=content.get('shape') or '',
    failure=content.get('failure') or '',
    workdir=content.get('workdir') or '',
  )


def _finalist(content: dict[str, Any]) -> Finalist:
  return Finalist(
    trial=content['trial'],
    runs=tuple(
      (run['seed'], run['value'])
      for run in content['runs']
      if _finite(run.get('value')) is not None
    ),
    failures=tuple(
      (run['seed'], run['failure'])
      for run in content['runs']
      if run.get('failure')
    ),
    mean=_finite(content.get('mean')),
    deviation=_finite(content.get('sd')),
    device_seconds=sum(
      run.get('device_seconds') or 0.0 for run in content['runs']
    ),
  )


def _finite(value: float | None) -> float | None:
  """None for NaN, which a diverged trial leaves."""
  return value if forms.number(value) else None


def _facts(workdir: pathlib.Path, trials: Sequence[Trial]) -> dict[str, Any]:
  """The first run.json there is: data and protocol are those of all trials."""
  for trial in trials:
    place = workdir / trial.workdir
    # Not a path's own question, which fails on a name that no file can have.
    if trial.workdir and os.path.isfile(place / 'run.json'):
      return runs.read(place).facts
  return {}


def _without_password(url: str) -> str:
  """A database's URL as a page may show it."""
  url = re.sub(r'(?<=://)([^/:@]*):.*@', r'\1:***@', url)
  return re.sub(r'(?<=[?&]password=)[^&]*', '***', url)


def by_shape(trials: Sequence[Trial]) -> dict[str, list[Trial]]:
  """Trials by what was compiled for them, in the order of first use."""
  groups: dict[str, list[Trial]] = {}
  for trial in trials:
    groups.setdefault(trial.shape, []).append(trial)
  return groups


def count_states(trials: Sequence[Trial]) -> dict[str, int]:
  """How many trials are in each state that any is in."""
  counts = {s: sum(t.state == s for t in trials) for s in STATES}
  return {state: count for state, count in counts.items() if count}
