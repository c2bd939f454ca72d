"""What a sweep varies: dotted config fields, each with a range or choices.

    def get_space():
      return {
        'optim.learning_rate': log_uniform(1e-4, 1e-2),
        'train.batch_size': choice(32, 64, 128),
        'optim.name': choice('adamw', 'sgd'),
        'optim.momentum': uniform(0.8, 0.99, when={'optim.name': 'sgd'}),
      }

Fields are of two kinds. Scalars are traced: trials that differ in nothing else
share one compiled program and can train side by side. Every other field makes
the *shape*: what is compiled.
"""

import dataclasses
import functools
import importlib.util
import itertools
import math
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from fer_jax import config as config_lib
from fer_jax import forms
from fer_jax.errors import UserError, nearest

SCALARS = frozenset(
  {
    'optim.learning_rate',
    'optim.weight_decay',
    'optim.l2',
    'model.dropout',
    'train.label_smoothing',
    'augment.strength',
    # Of the run's plan, not of its state, but traced all the same.
    'seed',
    'optim.warmup_epochs',
  }
)
"""Fields that change nothing that is compiled."""

OF_DATA = frozenset({'data.image_size', 'data.channels', 'data.balance'})
"""The fields of data that may be searched: they leave validation as it is."""

DRAWS = 200
"""Configs that are drawn and checked before anything compiles."""

SHAPE_DRAWS = 1000
"""For a shape that no trial has had: one that is not among them is let go."""

LARGEST_GRID = 100_000

LARGEST_INTEGER = 2**53
"""A study keeps numbers in 64 bits of a float."""

_LITTLE = (str, bool, int, float)


@dataclasses.dataclass(frozen=True)
class Domain:
  """What one field may be.

  Attributes:
    kind: 'uniform', 'log_uniform', 'integer' or 'choice'.
    low: of a range, which it is part of.
    high: likewise.
    choices: in the order given; empty for a range.
    when: the values of other fields under which this one is searched.
  """

  kind: str
  low: float | None = None
  high: float | None = None
  choices: tuple[Any, ...] = ()
  when: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def labels(self) -> tuple[Any, ...]:
    """The choices as a study stores them: texts where they are tuples."""
    if all(isinstance(c, _LITTLE) for c in self.choices):
      return self.choices
    return tuple(map(str, self.choices))

  def value(self, stored: Any) -> Any:
    """What a config takes for what a study stores."""
    if self.kind != 'choice':
      return stored
    return self.choices[self.labels.index(stored)]

  def stored(self, value: Any) -> Any:
    """What a study stores for what a config takes; None for no choice."""
    if self.kind == 'choice':
      found = [
        label
        for label, choice in zip(self.labels, self.choices, strict=True)
        if choice == value and type(choice) is type(value)
      ]
      return found[0] if found else None
    number = isinstance(value, int | float) and not isinstance(value, bool)
    assert self.low is not None
    assert self.high is not None
    return value if number and self.low <= value <= self.high else None

  def has(self, stored: Any) -> bool:
    """Whether what a study stores is of this domain; it may be by hand."""
    if self.kind == 'choice':
      return stored in self.labels
    if self.stored(stored) is None:
      return False
    return self.kind != 'integer' or stored == int(stored)

  @property
  def text(self) -> str:
    """As a sweep file has it, choices as a study stores them."""
    values = self.labels if self.kind == 'choice' else (self.low, self.high)
    return f'{self.kind}({", ".join(map(repr, values))})'

  def extremes(self) -> tuple[Any, ...]:
    """Values that are allowed if all are."""
    return self.choices or (self.low, self.high)

  def to_json(self) -> dict[str, Any]:
    """As sweep.json and the study hold it."""
    return {
      'kind': self.kind,
      'low': self.low,
      'high': self.high,
      'log': self.kind == 'log_uniform',
      'choices': plain(self.choices) if self.choices else None,
      'when': plain(dict(self.when)) or None,
    }


def uniform(
  low: float, high: float, *, when: Mapping[str, Any] | None = None
) -> Domain:
  """A number in [low, high]."""
  return Domain('uniform', low, high, when=when or {})


def log_uniform(
  low: float, high: float, *, when: Mapping[str, Any] | None = None
) -> Domain:
  """A positive number in [low, high], every order of magnitude as likely."""
  return Domain('log_uniform', low, high, when=when or {})


def integer(
  low: int, high: int, *, when: Mapping[str, Any] | None = None
) -> Domain:
  """A whole number in [low, high]."""
  return Domain('integer', low, high, when=when or {})


def choice(*values: Any, when: Mapping[str, Any] | None = None) -> Domain:
  """One of some values; a list stands for a tuple."""
  return Domain(
    'choice', choices=tuple(map(_hashable, values)), when=when or {}
  )


class OutsideError(UserError):
  """Values that a space does not have."""


class Space:
  """The fields of a sweep, checked against the config that they vary.

  Attributes:
    base: the config.
    domains: by field; those that make the shape first, and each after the
      fields that it is conditional on.
  """

  def __init__(
    self, domains: Mapping[str, Domain], base: config_lib.Config
  ) -> None:
    """Checks everything that can be told before anything compiles.

    Args:
      domains: by dotted field.
      base: a config that validates; fields of no domain keep its values.

    Raises:
      UserError: naming the field, its range or value, and what is allowed.
    """
    self.base = base
    self._known = dict(config_lib.flatten(base))
    if not isinstance(domains, Mapping) or not domains:
      raise UserError(
        f'the space is {domains!r}; expected config fields with ranges, as '
        "{'optim.learning_rate': log_uniform(1e-4, 1e-2)}"
      )
    for field, domain in domains.items():
      _require_searchable(field, self._known)
      _require_range(field, domain)
    self.domains = _in_order(domains, self._known)
    if base.train.select == 'last':
      raise UserError(
        "train.select is 'last', which looks at no validation; a sweep "
        "compares by it, and allowed is 'accuracy' or 'loss'"
      )
    self._require_valid_values()

  def suggest(self, draw: Callable[[str, Domain], Any]) -> dict[str, Any]:
    """A value for every field whose condition holds.

    Args:
      draw: from field and domain to a value.
    """
    params: dict[str, Any] = {}
    for field, domain in self.domains.items():
      if self._applies(domain, params):
        params[field] = draw(field, domain)
    return params

  def require(self, stored: Mapping[str, Any]) -> None:
    """Checks values that somebody gave a study by hand.

    Raises:
      OutsideError: naming the field, the value, and what is allowed.
    """
    for field, value in stored.items():
      if field not in self.domains:
        raise OutsideError(
          f'{field} is not searched{nearest(field, self.domains)}'
        )
      if not self.domains[field].has(value):
        raise OutsideError(
          f'{field} is {value!r}; allowed is {self.domains[field].text}'
        )

  def config_of(self, params: Mapping[str, Any]) -> config_lib.Config:
    """The config of a trial.

    Raises:
      UserError: the config does not take a value.
    """
    config = self.base.copy_and_resolve_references()
    for field, value in params.items():
      try:
        config_lib.set_field(config, field, value)
      except TypeError as error:
        raise UserError(f'the space: {field} is {value!r}: {error}') from error
    return config

  def shape_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a trial's values that make its shape, in the space's order."""
    return {
      field: params[field]
      for field in self.domains
      if field in params and field not in SCALARS
    }

  def shape_text(self, params: Mapping[str, Any]) -> str:
    """The shape in a line, equal where shapes are."""
    shape = self.shape_of(params)
    return ' '.join(f'{f}={v!r}'.replace(' ', '') for f, v in shape.items())

  def unseen_shape(
    self, seen: Collection[str], generator: np.random.Generator
  ) -> dict[str, Any] | None:
    """A shape drawn evenly among those that no trial has had.

    Args:
      seen: texts of the others.
      generator: draws.

    Returns:
      Its values; None where no other was found.
    """
    for _ in range(SHAPE_DRAWS):
      shape = self.shape_of(
        self.suggest(lambda _, domain: _draw_evenly(generator, domain))
      )
      if self.shape_text(shape) not in seen:
        return shape
    return None

  @functools.cached_property
  def has_shapes(self) -> bool:
    """Whether trials can differ in what is compiled."""
    return any(field not in SCALARS for field in self.domains)

  def shape_count(self) -> int | None:
    """How many shapes there are; None where a range has no end of values, or
    of more than `LARGEST_GRID`."""
    makers = [(f, d) for f, d in self.domains.items() if f not in SCALARS]
    if any(d.kind not in ('choice', 'integer') for _, d in makers):
      return None
    if any(len(_points(d)) > LARGEST_GRID for _, d in makers):
      return None
    combinations = self._combinations(makers, {})
    count = sum(1 for _ in itertools.islice(combinations, LARGEST_GRID + 1))
    return count if count <= LARGEST_GRID else None

  def stored_base(self) -> dict[str, Any] | None:
    """The base config's own values as a study stores them.

    None where one of them lies outside its range.
    """
    return None if self.outside() else self._stored_base()

  def outside(self) -> dict[str, Any]:
    """The base config's own values that lie outside their range, by field."""
    own = self._stored_base()
    return {field: self._known[field] for field in own if own[field] is None}

  def _stored_base(self) -> dict[str, Any]:
    """As `stored_base`, with None for what lies outside its range."""
    own = self.suggest(lambda field, _: self._known[field])
    return {f: self.domains[f].stored(value) for f, value in own.items()}

  def grid(self) -> list[dict[str, Any]]:
    """Every combination once, those of one shape together.

    Raises:
      UserError: a range has no end of values, or there are too many.
    """
    count = 1
    for field, domain in self.domains.items():
      if domain.kind not in ('choice', 'integer'):
        raise UserError(
          f'the space: {field} is {domain.kind}, and a grid needs choice(...) '
          'or integer(...); or search otherwise with --search=tpe'
        )
      count *= len(_points(domain))
      if count > LARGEST_GRID:
        raise UserError(
          f'the space has more than {LARGEST_GRID:,} combinations; allowed for '
          '--search=grid are as many, or search otherwise with --search=tpe'
        )
    return list(self._combinations(list(self.domains.items()), {}))

  def to_json(self) -> dict[str, Any]:
    """By field, as sweep.json and the study hold it."""
    return {field: d.to_json() for field, d in self.domains.items()}

  def _combinations(self, rest, params) -> Iterator[dict[str, Any]]:
    if not rest:
      yield params
      return
    (field, domain), *others = rest
    if not self._applies(domain, params):
      yield from self._combinations(others, params)
      return
    for value in _points(domain):
      yield from self._combinations(others, {**params, field: value})

  def _applies(self, domain: Domain, params: Mapping[str, Any]) -> bool:
    """Whether a condition holds; of one whose own does not hold, never."""
    for field, wanted in domain.when.items():
      if field in self.domains and field not in params:
        return False
      value = params.get(field, self._known[field])
      if value not in _alternatives(wanted):
        return False
    return True

  def _require_valid_values(self) -> None:
    """Checks ends and choices one by one, then what goes with what."""
    for field, domain in self.domains.items():
      for value in domain.extremes():
        spec = config_lib.FIELDS.get(field)
        allowed = spec.check(value) if spec else None
        if allowed:
          raise UserError(
            f'the space: {field} may be {value!r}; allowed is {allowed}'
          )
    generator = np.random.default_rng(0)
    for _ in range(DRAWS):
      params = self.suggest(lambda _, domain: _draw(generator, domain))
      try:
        config_lib.validate(self.config_of(params))
      except UserError as error:
        drawn = ', '.join(f'{f}={v!r}' for f, v in params.items())
        raise UserError(f'the space allows {drawn}: {error}') from error


def load(path: str | pathlib.Path) -> dict[str, Domain]:
  """The space of a sweep file, not checked yet. The file is Python, and runs.

  Raises:
    UserError: it has no `get_space`, or that fails.
  """
  path = pathlib.Path(path)
  spec = None
  if path.suffix == '.py':
    spec = importlib.util.spec_from_file_location(f'sweep_{path.stem}', path)
  if spec is None or spec.loader is None:
    raise UserError(
      f'--config={path} is no sweep file; expected a Python file with '
      'get_config() and get_space(), such as configs/sweeps/p0.py'
    )
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    get_space = getattr(module, 'get_space', None)
    if get_space is not None:
      return get_space()
  except UserError:
    raise
  except Exception as error:  # whatever a user's Python file may raise
    raise UserError(
      f'{path}: get_space(): {type(error).__name__}: {error}'
    ) from error
  raise UserError(
    f'{path} has no get_space(), which says what is searched; '
    'configs/sweeps/p0.py is an example'
  )


def _require_searchable(field: Any, known: Mapping[str, Any]) -> None:
  if field not in known:
    raise UserError(
      f'the space: unknown config field {field}{nearest(field, known)}'
    )
  why = None
  if field.startswith('data.') and field not in OF_DATA:
    why = (
      'it changes who trains, who selects or who is reported; allowed of data '
      f'are {", ".join(sorted(OF_DATA))}'
    )
  elif field == 'train.select':
    why = 'trials are compared by it'
  elif field == 'train.loss' and known['train.select'] == 'loss':
    # Of label smoothing and class weights validation knows nothing.
    why = "train.select is 'loss', and each trial's would be another measure"
  elif field == 'model.name':
    why = 'models have fields of their own; allowed is one sweep a model'
  elif field in config_lib.FREE_ON_RESUME:
    why = 'it changes no result'
  if why:
    raise UserError(f'the space: {field} cannot be searched: {why}')


def _require_range(field: str, domain: Any) -> None:
  if not isinstance(domain, Domain):
    raise UserError(
      f'the space: {field} is {domain!r}; expected uniform(...), '
      'log_uniform(...), integer(...) or choice(...) of fer_jax.tuning'
    )
  if not isinstance(domain.when, Mapping):
    raise UserError(
      f'the space: {field} has when={domain.when!r}; expected values of other '
      "fields, as {'optim.name': 'sgd'}"
    )
  if domain.kind == 'choice':
    _require_choices(field, domain)
    return
  shown = f'the space: {field} is {domain.kind}({domain.low}, {domain.high})'
  whole = domain.kind == 'integer'
  for end in (domain.low, domain.high):
    fits = isinstance(end, int if whole else int | float)
    if not fits or not forms.number(end):
      raise UserError(
        f'{shown}; expected two {"whole" if whole else "finite"} numbers'
      )
  assert domain.low is not None
  assert domain.high is not None
  if domain.low >= domain.high:
    raise UserError(f'{shown}; expected the smaller number first')
  if whole and max(-domain.low, domain.high) > LARGEST_INTEGER:
    raise UserError(
      f'{shown}; expected numbers of at most {LARGEST_INTEGER}, as a study '
      'keeps them'
    )
  if domain.kind == 'log_uniform' and domain.low <= 0:
    raise UserError(f'{shown}; expected numbers above 0')


def _require_choices(field: str, domain: Domain) -> None:
  shown = f'the space: {field} is choice{domain.choices!r}'
  if not domain.choices:
    raise UserError(f'{shown}; expected at least one value')
  for value in domain.choices:
    if not isinstance(value, (*_LITTLE, tuple)):
      raise UserError(
        f'{shown}; expected numbers, texts, True or False, or tuples of those'
      )
  if len(set(domain.labels)) < len(domain.labels):
    raise UserError(f'{shown}; expected every value once')


def _in_order(
  domains: Mapping[str, Domain], known: Mapping[str, Any]
) -> dict[str, Domain]:
  """The domains, shapes first, each after those that its condition names."""
  for field, domain in domains.items():
    for other, wanted in domain.when.items():
      if other not in known:
        raise UserError(
          f'the space: {field} has a condition on {other}, which is no config '
          f'field{nearest(other, known)}'
        )
      if other in SCALARS and field not in SCALARS and other in domains:
        raise UserError(
          f'the space: {field} changes what is compiled and has a condition on '
          f'{other}, which does not; allowed are conditions on fields that do'
        )
      parent = domains.get(other)
      if parent is None or parent.kind != 'choice':
        continue
      for value in _alternatives(wanted):
        if value not in parent.choices:
          raise UserError(
            f'the space: {field} has the condition {other}={value!r}, which is '
            f'not among {parent.choices!r}'
          )
  left = dict(
    sorted(domains.items(), key=lambda item: item[0] in SCALARS)  # stable
  )
  ordered: dict[str, Domain] = {}
  while left:
    ready = [f for f, d in left.items() if not d.when.keys() & left.keys()]
    if not ready:
      raise UserError(
        f'the space: the conditions of {", ".join(left)} depend on each other'
      )
    ordered[ready[0]] = left.pop(ready[0])
  return ordered


def _alternatives(wanted: Any) -> list[Any]:
  """A list stands for any of its values; a tuple is one value."""
  return (
    [_hashable(v) for v in wanted] if isinstance(wanted, list) else [wanted]
  )


def _points(domain: Domain) -> tuple[Any, ...]:
  if domain.kind == 'choice':
    return domain.choices
  assert isinstance(domain.low, int)
  assert isinstance(domain.high, int)
  # Not the whole of a range that is refused anyway.
  return tuple(
    itertools.islice(range(domain.low, domain.high + 1), LARGEST_GRID + 1)
  )


def _draw(generator: np.random.Generator, domain: Domain) -> Any:
  """A value, the ends more often than not: mistakes lie there."""
  ends = domain.extremes()
  if domain.kind == 'choice' or generator.random() < 0.5:
    return ends[generator.integers(len(ends))]
  return _draw_evenly(generator, domain)


def _draw_evenly(generator: np.random.Generator, domain: Domain) -> Any:
  """A value as a search at random draws it."""
  if domain.kind == 'choice':
    return domain.choices[generator.integers(len(domain.choices))]
  assert domain.low is not None
  assert domain.high is not None
  low, high = domain.low, domain.high
  if domain.kind == 'integer':
    return int(generator.integers(int(low), int(high), endpoint=True))
  if domain.kind == 'uniform':
    return float(generator.uniform(low, high))
  drawn = math.exp(generator.uniform(math.log(low), math.log(high)))
  return float(np.clip(drawn, low, high))  # rounding may leave the range


def _hashable(value: Any) -> Any:
  if isinstance(value, list | tuple):
    return tuple(map(_hashable, value))
  return value


def plain(value: Any) -> Any:
  """Tuples as lists, as JSON has them."""
  if isinstance(value, dict):
    return {k: plain(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [plain(v) for v in value]
  return value
