"""All protocols by name, and what each takes."""

import dataclasses
from collections.abc import Callable
from typing import Any

from fer_jax.data.protocol import drawn, published, units
from fer_jax.data.protocol.lists import Lists
from fer_jax.data.protocol.settings import SELECTS, Settings, check
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError, nearest


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How a protocol makes its lists.

  Attributes:
    make: (data set, settings) to lists.
    uses: options it takes, beside those that all take.
    reports_training: whether the test is the training list, as it is in the
      end, so that there are no twins to keep out of either.
  """

  make: Callable[[Dataset, Settings], Lists]
  uses: frozenset[str] = frozenset()
  reports_training: bool = False

  @property
  def takes(self) -> frozenset[str]:
    """All its options, name and seed among them."""
    taken = self.uses | _ALL_TAKE
    return taken - {'twins'} if self.reports_training else taken


_FOLDS = SELECTS | {'folds', 'fold'}
_HOLDS_OUT = SELECTS | {'test_share'}
_ALL_TAKE = frozenset({'name', 'seed', 'train_share', 'balance', 'twins'})


PROTOCOLS: dict[str, Protocol] = {
  'official': Protocol(published.official, SELECTS),
  'fer2013_dev': Protocol(published.fer2013_dev),
  'holdout': Protocol(drawn.hold_out(units.RELATED), _HOLDS_OUT),
  'holdout_images': Protocol(drawn.hold_out(units.IMAGES), _HOLDS_OUT),
  'kfold_subjects': Protocol(drawn.k_fold(units.SUBJECTS), _FOLDS),
  'kfold_twins': Protocol(drawn.k_fold(units.RELATED), _FOLDS),
  'kfold_images': Protocol(drawn.k_fold(units.IMAGES), _FOLDS),
  'leave_one_subject_out': Protocol(
    drawn.leave_one_subject_out, SELECTS | {'fold'}
  ),
  'oversample_then_split': Protocol(
    drawn.balance_then_split('oversample'), _HOLDS_OUT
  ),
  'downsample_then_split': Protocol(
    drawn.balance_then_split('downsample'), _HOLDS_OUT
  ),
  'evaluate_on_train': Protocol(
    drawn.evaluate_on_train, _FOLDS, reports_training=True
  ),
}


def names() -> tuple[str, ...]:
  """Names of all protocols."""
  return tuple(PROTOCOLS)


def divides_into_folds(name: str) -> bool:
  """Whether a protocol, one of `names()`, takes a number of folds."""
  return 'folds' in PROTOCOLS[name].uses


def configure(name: str, *, seed: int = 0, **options: Any) -> Settings:
  """A protocol's settings, checked as far as they can be without data.

  Raises:
    UserError: naming the protocol or option and what is allowed.
  """
  if name not in PROTOCOLS:
    raise UserError(
      f'no protocol {name!r}; there are {", ".join(PROTOCOLS)}'
      f'{nearest(name, PROTOCOLS)}'
    )
  takes = PROTOCOLS[name].takes
  defaults = Settings()
  for option, value in options.items():
    if not hasattr(defaults, option) or option in ('name', 'seed'):
      raise UserError(
        f'protocol {name} has no option {option!r}; it takes '
        f'{", ".join(sorted(takes - {"name", "seed"}))}'
      )
    if option not in takes and value != getattr(defaults, option):
      raise UserError(
        f'protocol {name} takes no option {option!r}, which is {value!r}; it '
        f'takes {", ".join(sorted(takes - {"name", "seed"}))}'
      )
  settings = dataclasses.replace(defaults, name=name, seed=seed, **options)
  check(settings)
  return settings
