"""Figures in words: percentages, intervals, spreads and durations."""

from collections.abc import Iterable
from typing import Any

from fer_jax.evaluation import groups, runs

PER_CENT = '\N{NO-BREAK SPACE}%'

MISSING = '–'
"""Stands for a figure that is not defined or not known."""


def percent(
  value: float | None, *, unit: str = PER_CENT, digits: int = 1
) -> str:
  """A share as a percentage."""
  if value is None:
    return MISSING
  return f'{100 * float(value):.{digits}f}{unit}'


def decimal(value: float | None) -> str:
  """A number to three places."""
  return MISSING if value is None else f'{value:.3f}'


def quantity(name: str, value: float) -> str:
  """A point of a curve: accuracy as a percentage, loss as a number."""
  return percent(value) if name == 'accuracy' else decimal(value)


def interval(metrics: dict[str, Any], name: str) -> str:
  """The interval of a figure of `scores.all_scores` or of a slice."""
  bounds = metrics.get('intervals', {}).get(name)
  if bounds is None:
    return MISSING
  low, high = bounds
  return f'{100 * low:.1f}–{100 * high:.1f}{PER_CENT}'


def gap(found: dict[str, Any] | None) -> str:
  """A gap of `groups.accuracy_gap` in a sentence."""
  if found is None:
    return (
      f'No gap: fewer than two groups have {groups.LEAST_IN_GAP} examples, or '
      'people or recordings where these are known.'
    )
  bounds = ''
  if found['interval']:
    low, high = (100 * bound for bound in found['interval'])
    bounds = f' [{low:.1f}, {high:.1f}]'
  return (
    f'Largest gap: {100 * found["accuracy"]:.1f} points{bounds}, '
    f'{found["best"]} over {found["worst"]}.'
  )


def spread(values: Iterable[float | None], form: str, *, unit: str = '') -> str:
  """Mean ± standard deviation over runs, the mean alone for a single one."""
  found = runs.spread(list(values))
  if found is None:
    return MISSING
  said = form.format(found.mean)
  if found.deviation is not None:
    said += f' ± {form.format(found.deviation)}'
  return said + unit


def spread_percent(values: Iterable[float | None]) -> str:
  """`spread` of shares, as percentages."""
  shares = [None if value is None else 100 * value for value in values]
  return spread(shares, '{:.1f}', unit=PER_CENT)


def duration(seconds: float) -> str:
  """Seconds in the unit that suits them."""
  if seconds < 90:
    return f'{seconds:.0f} s'
  minutes = round(seconds / 60)
  if minutes < 90:
    return f'{minutes} min'
  return f'{minutes // 60} h {minutes % 60:02d} min'


def moment(time: str | None) -> str:
  """An ISO time of ours, readable."""
  if not time:
    return 'at an unknown time'
  return time.replace('T', ' ').replace('+00:00', ' UTC')


def plain(value: Any) -> str:
  """A value of a config or an environment."""
  if isinstance(value, str):
    return value or "''"
  if isinstance(value, list):
    return '(' + ', '.join(plain(item) for item in value) + ')'
  if isinstance(value, dict):
    return ', '.join(f'{key}={plain(item)}' for key, item in value.items())
  return str(value)
