"""What a paper claims, and the two configs that a claim stands for."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from fer_jax import config as config_lib
from fer_jax.errors import UserError, nearest


class Reading(NamedTuple):
  """What a paper's figure counts.

  Attributes:
    counts: in a few words.
    cell: in a cell of a table.
  """

  counts: str
  cell: str


READINGS = {
  'accuracy': Reading('share of test examples that are right', 'accuracy'),
  'train_accuracy': Reading(
    'running accuracy over the last training epoch, dropout on: what Keras '
    'prints as accuracy',
    'training accuracy',
  ),
  'one_against_rest': Reading(
    'accuracy of K questions "this class or another?", true negatives '
    'counted: 1 - 2 (1 - accuracy) / K',
    'one against rest',
  ),
}

TWINS = ('paper', 'honest')


@dataclasses.dataclass(frozen=True)
class Mark:
  """A field of a config, and whether the paper gives it.

  Attributes:
    field: dotted name.
    value: what the config takes.
    source: 'stated', 'inferred' or 'chosen'.
    note: why, in a few words.
  """

  field: str
  value: Any
  source: str
  note: str


def stated(field: str, value: Any, note: str = '') -> Mark:
  """A field that the paper gives."""
  return Mark(field, value, 'stated', note)


def inferred(field: str, value: Any, note: str) -> Mark:
  """A field that follows from what the paper gives."""
  return Mark(field, value, 'inferred', note)


def chosen(field: str, value: Any, note: str) -> Mark:
  """A field that the paper leaves open."""
  return Mark(field, value, 'chosen', note)


@dataclasses.dataclass(frozen=True)
class Claim:
  """One figure of one paper.

  Attributes:
    paper: 'P0' to 'P4'.
    system: model and data set, for people.
    model: of `models.available()`.
    dataset: of `datasets.names()`.
    claimed: the figure, as a share.
    reading: of `READINGS`, what the figure counts.
    evidence: how the paper's own numbers show what was measured.
    recipe: fields of both configs.
    protocol: fields of the paper's config alone.
    honest: fields of its honest twin alone.
    pretrained: whether the paper is taken to start from published weights,
      which the user has to have; both twins do then, or count as unfinished.
    beside: what the paper prints beside the figure, as shares, by name:
      'precision', 'recall' and 'f1', means over classes.
  """

  paper: str
  system: str
  model: str
  dataset: str
  claimed: float
  reading: str
  evidence: str
  recipe: tuple[Mark, ...]
  protocol: tuple[Mark, ...]
  honest: tuple[Mark, ...]
  pretrained: bool = False
  beside: Mapping[str, float] = dataclasses.field(default_factory=dict)

  def marks(self, twin: str) -> tuple[Mark, ...]:
    """The fields that one of `TWINS` sets; a later one wins."""
    return self.recipe + (self.protocol if twin == 'paper' else self.honest)

  def config(self, twin: str) -> config_lib.Config:
    """The config of one of `TWINS`."""
    config = config_lib.get_base(model=self.model, dataset=self.dataset)
    for mark in self.marks(twin):
      config_lib.set_field(config, mark.field, mark.value)
    return config


def config_of(claims: Mapping[str, Claim], which: str) -> config_lib.Config:
  """The config that `NAME` or `NAME,honest` asks for.

  Args:
    claims: of one paper, by name.
    which: what follows the colon of --config=configs/papers/p4.py:WHICH.

  Raises:
    UserError: no such claim, or no such twin.
  """
  name, _, twin = which.partition(',')
  if name not in claims:
    raise UserError(
      f'no claim {name!r}; there are {", ".join(claims)}{nearest(name, claims)}'
    )
  if (twin or 'paper') not in TWINS:
    raise UserError(
      f'claim {name} has no twin {twin!r}; there are {", ".join(TWINS)}'
    )
  return claims[name].config(twin or 'paper')
