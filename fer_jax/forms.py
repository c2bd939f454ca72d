"""What the content of a JSON file must be for its readers to rely on it.

A form is one of

    a function     of a value, that says whether it fits, as `number`
    [form]         a list of such
    {name: form}   an object with these members and any others; a name that
                   ends in '?' may be missing, the name '*' stands for all
"""

import math
from collections.abc import Callable
from typing import Any

Form = Any
"""See above; a type of it would have to name itself."""


def anything(value: Any) -> bool:
  """Whatever it is."""
  del value
  return True


def text(value: Any) -> bool:
  """A text."""
  return isinstance(value, str)


def name(value: Any) -> bool:
  """A name of a file or folder, without a path to it."""
  if not text(value) or value in ('', '.', '..') or set(value) & set('/\0'):
    return False
  return len(value.encode('utf-8', 'surrogatepass')) <= 255


def number(value: Any) -> bool:
  """A finite number that a float can hold."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  try:
    return math.isfinite(value)
  except OverflowError:
    return False


def count(value: Any) -> bool:
  """A whole number from 0 that NumPy can hold."""
  return number(value) and isinstance(value, int) and 0 <= value < 2**63


def flag(value: Any) -> bool:
  """True, false or unknown."""
  return value is None or isinstance(value, bool)


def pair(value: Any) -> bool:
  """Two numbers."""
  return isinstance(value, list) and len(value) == 2 and all(map(number, value))


def optional(form: Form) -> Callable[[Any], bool]:
  """A form that null fits too."""

  def fits(value: Any) -> bool:
    return value is None or misfit(value, form) is None

  said = form.__doc__ if callable(form) else 'an object of its members.'
  fits.__doc__ = f'{(said or "").rstrip(".")} or null.'
  return fits


def misfit(value: Any, form: Form, place: str = '') -> str | None:
  """Where a value does not have a form, as "n is 'x'"; None where it does."""
  here = place or 'the content'
  if callable(form):
    if form(value):
      return None
    expected = (form.__doc__ or '').rstrip('.').lower()
    return f'{here} is {_shown(value)}, expected {expected}'
  if isinstance(form, list):
    if not isinstance(value, list):
      return f'{here} is {_shown(value)}, expected a list'
    parts = ((f'{place}[{i}]', part, form[0]) for i, part in enumerate(value))
    return next(filter(None, (misfit(v, f, p) for p, v, f in parts)), None)
  if not isinstance(value, dict):
    return f'{here} is {_shown(value)}, expected an object'
  for name, part in form.items():
    known = name.removesuffix('?')
    names = list(value) if name == '*' else [known]
    for member in names:
      if member in value:
        wrong = misfit(value[member], part, f'{place}.{member}'.lstrip('.'))
      elif name != known:
        wrong = None
      else:
        wrong = f'{f"{place}.{member}".lstrip(".")} is missing'
      if wrong:
        return wrong
  return None


def _shown(value: Any) -> str:
  """A value for a message, kept short."""
  if isinstance(value, dict | list):
    return 'an object' if isinstance(value, dict) else 'a list'
  # Python writes no whole number of over 4,300 digits.
  if isinstance(value, int) and value.bit_length() > 128:
    return 'a huge number'
  said = repr(value)
  return said if len(said) <= 40 else f'{said[:37]}...'
