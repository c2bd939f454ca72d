"""The options of a protocol."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fer_jax.data import sampling
from fer_jax.errors import UserError

TWIN_RULES = (
  'keep',
  'drop_from_train',
  'drop_copies_from_test',
  'drop_from_test',
)
"""What is done about twins: nothing; training and validation rows with a twin
in test are left out, and training rows with one in validation; test rows with
an exact copy among the others; test rows with any twin there."""

SELECTS = frozenset({'validation_share', 'inner_folds', 'inner_fold'})
"""Options that set apart, of what is not test, what selects."""


@dataclasses.dataclass(frozen=True)
class Settings:
  """A protocol and its options; those it does not use keep their defaults.

  Attributes:
    name: of `names()`.
    seed: draws what is left to chance.
    folds: how many parts a k-fold protocol makes.
    fold: which of them is the test, from 0; of leave_one_subject_out, which
      subject, in the order of their names.
    test_share: of a hold-out.
    validation_share: of what is not test, set apart to select; 0 for none.
    inner_folds: of nested cross-validation: what is not test is divided into
      as many parts, and one of them selects; 0 for a share instead.
    inner_fold: which of them.
    train_share: of the training list, class by class, that trains.
    balance: of `sampling.BALANCES`, done to the training list alone.
    twins: of `TWIN_RULES`.
  """

  name: str = 'official'
  seed: int = 0
  folds: int = 10
  fold: int = 0
  test_share: float = 0.2
  validation_share: float = 0.1
  inner_folds: int = 0
  inner_fold: int = 0
  train_share: float = 1.0
  balance: str = 'none'
  twins: str = 'keep'

  def chosen(self) -> dict[str, Any]:
    """The options that are not at their defaults, without name and seed."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.name not in ('name', 'seed')
      and getattr(self, field.name) != field.default
    }


def _whole(value: Any) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


# What every option may be: a check of its value, and what it then should be.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
  'folds': (lambda v: _whole(v) and v >= 2, 'a whole number of at least 2'),
  'fold': (lambda v: _whole(v) and v >= 0, 'a whole number of at least 0'),
  'test_share': (lambda v: 0 < v < 1, 'a share above 0 and below 1'),
  'validation_share': (lambda v: 0 <= v < 1, 'a share of 0 or more, below 1'),
  'inner_folds': (
    lambda v: _whole(v) and (v == 0 or v >= 2),
    '0, or a whole number of at least 2',
  ),
  'inner_fold': (
    lambda v: _whole(v) and v >= 0,
    'a whole number of at least 0',
  ),
  'train_share': (lambda v: 0 < v <= 1, 'a share above 0, at most 1'),
  'balance': (
    lambda v: v in sampling.BALANCES,
    f'one of {", ".join(sampling.BALANCES)}',
  ),
  'twins': (lambda v: v in TWIN_RULES, f'one of {", ".join(TWIN_RULES)}'),
}


def check(settings: Settings) -> None:
  """Checks the values of all options.

  Raises:
    UserError: naming the option and what is allowed.
  """
  for option, (allows, allowed) in _RANGES.items():
    value = getattr(settings, option)
    if not allows(value):
      raise UserError(
        f'protocol option {option} is {value!r}; allowed is {allowed}'
      )
  if settings.inner_fold >= max(settings.inner_folds, 1):
    raise UserError(
      f'protocol option inner_fold is {settings.inner_fold}; allowed is less '
      f'than inner_folds, {settings.inner_folds}'
    )
  if (
    settings.inner_folds
    and settings.validation_share != Settings().validation_share
  ):
    raise UserError(
      f'protocol option validation_share is {settings.validation_share}, and '
      f'inner_folds {settings.inner_folds}: one of them sets apart what selects'
    )
