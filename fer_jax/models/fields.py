"""Fields of a preset: default, where it comes from, and what is allowed."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from fer_jax.errors import nearest
from fer_jax.models.specification import dtype_name
from fer_jax.nn.arguments import is_int, is_share

SOURCES = ('stated', 'inferred', 'chosen')
"""Whether a default stands in the paper, follows from what does, or is ours."""


@dataclasses.dataclass(frozen=True)
class Field:
  """One tunable field.

  Attributes:
    default: a number, string, bool, or tuple of those.
    source: one of `SOURCES`.
    note: why, in a few words.
    check: takes a value and returns None where it will do, else what is
      expected.
  """

  default: Any
  source: str
  note: str
  check: Callable[[Any], str | None]


MOST_WIDE = 1_000_000
"""Units, filters or pixels: more is a slip of the hand, and JAX counts what
they multiply to in 32 bits."""


def positive(value: Any) -> str | None:
  """A positive int."""
  good = is_int(value) and 0 < value <= MOST_WIDE
  return None if good else f'a positive int of at most {MOST_WIDE}'


def odd(value: Any) -> str | None:
  """A positive odd int."""
  good = not positive(value) and value % 2
  return None if good else f'a positive odd int of at most {MOST_WIDE}'


def rate(value: Any) -> str | None:
  """A probability below 1."""
  return None if is_share(value) else 'a number in [0, 1)'


def boolean(value: Any) -> str | None:
  """A bool."""
  return None if isinstance(value, bool) else 'True or False'


def among(*allowed: Any) -> Callable[[Any], str | None]:
  """One of `allowed`."""

  def check(value):
    return (
      None if value in allowed else f'one of {", ".join(map(str, allowed))}'
    )

  return check


MOST_LAYERS = 1000
"""Of one kind, one after another: more is a slip of the hand."""


def layers(value: Any) -> str | None:
  """How many layers there are of a kind."""
  good = is_int(value) and 0 < value <= MOST_LAYERS
  return None if good else f'a positive int of at most {MOST_LAYERS}'


def all_layers(value: Any) -> str | None:
  """A tuple of those."""
  good = isinstance(value, tuple) and value and not any(map(layers, value))
  if good:
    return None
  return f'a non-empty tuple of positive ints of at most {MOST_LAYERS}'


def positives(*, least: int = 0, length: int | None = None):
  """A tuple of positive ints, with at least `least` or just `length`."""
  if length is not None:
    expected = f'{length} positive ints'
  elif least:
    expected = 'a non-empty tuple of positive ints'
  else:
    expected = 'a tuple of positive ints'
  expected += f' of at most {MOST_WIDE}'

  def check(value):
    good = isinstance(value, tuple) and not any(map(positive, value))
    if length is not None:
      good = good and len(value) == length
    return None if good and len(value) >= least else expected

  return check


def resolve(
  model: str, fields: dict[str, Field], overrides: dict[str, Any]
) -> dict[str, Any]:
  """The values of all fields, checked.

  Args:
    model: its name, for messages.
    fields: by name.
    overrides: values in the place of defaults; a list does for a tuple, and
      NumPy's values do for Python's.

  Raises:
    ValueError: for an unknown field, and for a value out of range or of another
      type.
  """
  values = {name: field.default for name, field in fields.items()}
  for name, value in overrides.items():
    if name not in fields:
      raise ValueError(
        f'{model} has no field {name!r}{nearest(name, fields)} (it has '
        f'{", ".join(fields)})'
      )
    value = _plain(value)
    expected = fields[name].check(value)
    if expected:
      raise ValueError(f'{model}: {name} must be {expected}, got {value!r}')
    values[name] = value
  return values


def _plain(value: Any) -> Any:
  """As a config has it: numbers of Python, tuples, names of dtypes."""
  if isinstance(value, np.generic | np.ndarray):
    value = value.tolist()
  if isinstance(value, list | tuple):
    return tuple(map(_plain, value))
  return dtype_name(value)
