"""Cross-validation: every fold of a config, and seeds of each, side by side.

All folds train as one population over one data set in memory. Each is a normal
workdir all the same (`fold_03`, `fold_03_seed_1`): `train --config` repeats
it, `evaluate` and `report` take it, and an interrupted cross-validation goes on
from the folds' own checkpoints. Several processes divide the folds (`shares`),
and each trains its own as a population on its own devices. What selects is the
inner validation, or the last epoch, never the fold's test part, which nothing
here opens.
"""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax

from fer_jax import config as config_lib
from fer_jax import datasets
from fer_jax.data import protocol
from fer_jax.errors import UserError
from fer_jax.training import (
  checkpoint,
  journal,
  memory,
  population,
  preemption,
  shares,
  side_by_side,
  task,
)
from fer_jax.training.desk import Desk
from fer_jax.training.observer import Observer, worker_folder
from fer_jax.training.workdir import claimed

WAIT_SECONDS = 1.0
"""Between looks for folds that another process has left."""


@dataclasses.dataclass(frozen=True)
class Place:
  """One fold under one seed.

  Attributes:
    fold: its number, from 0.
    seed: of the run.
    config: of the run, as a single one has it.
    workdir: of the run.
  """

  fold: int
  seed: int
  config: config_lib.Config
  workdir: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Outcome:
  """How a cross-validation ended.

  Attributes:
    places: all folds and seeds.
    finished: whether nothing is left to train, by any process.
    seconds: that training took in this process.
    waves: how many populations it took in this process, one after another.
  """

  places: tuple[Place, ...]
  finished: bool
  seconds: float
  waves: int


class _Limit:
  """Of the time that a call takes, under which it trains an epoch all the same.

  Attributes:
    trained: whether that epoch is over; of folds that were finished before
      there is none.
  """

  def __init__(self, seconds: float) -> None:
    """Begins now; 0 seconds are no limit."""
    self._until = time.monotonic() + seconds if seconds else math.inf
    self.trained = False

  @property
  def passed(self) -> bool:
    """Whether the time is over."""
    return time.monotonic() > self._until

  @property
  def reached(self) -> bool:
    """Whether nothing more is to be trained."""
    return self.trained and self.passed


def train(
  config: config_lib.Config,
  workdir: str | pathlib.Path,
  *,
  seeds: int = 1,
  max_seconds: float = 0.0,
  how: str = 'auto',
  notice: preemption.Notice | None = None,
  profile_steps: int = 0,
  part: tuple[int, int] = (0, 1),
) -> Outcome:
  """Trains all folds of a config, or goes on with those the workdir holds.

  Args:
    config: of `config.get_base`, of a protocol with folds; validated here.
    workdir: made where it is missing.
    seeds: how many runs each fold is given, of seeds that count up from the
      config's.
    max_seconds: leaves in good order after the epoch that passes it, one epoch
      of some fold at least; 0 is no limit.
    how: a name of `mapping.MAPPINGS`, or 'auto'.
    notice: leaves after the block under way once it is asked.
    profile_steps: how many steps are traced.
    part: number of this process and of all that train folds of this workdir;
      each returns when all folds are trained.

  Raises:
    UserError: as `loop.train`; or the protocol has no folds, a fold's loss is
      not finite, or memory does not hold a single one.
  """
  require_folds(config)
  workdir = pathlib.Path(workdir)
  notice = notice or preemption.Notice()
  begun = time.monotonic()
  limit = _Limit(max_seconds)
  number, count = part
  facts: dict[str, Any] = {'worker': number} if count > 1 else {}
  with (
    claimed(workdir, config, number),
    journal.failures(workdir, **facts),
    contextlib.closing(
      Observer(
        worker_folder(workdir, number) if number else workdir,
        workdir,
        profile_steps,
        **facts,
      )
    ) as observer,
  ):
    blueprint = task.blueprint(config)
    places = places_of(config, blueprint.dataset, workdir, seeds)
    shared, partitions = shared_by(config, blueprint, places, how)
    with shares.Shares(
      [(place.workdir, place.config) for place in places],
      [len(partitions[place.fold].train) for place in places],
      part,
    ) as folds:
      work = _Work(
        places, shared, partitions, folds, part, notice, observer, limit
      )
      those = folds.own()
      resumed = any(checkpoint.steps(place.workdir) for place in places)
      journal.begun(workdir, resumed, runs=len(those), **facts)
      work.train_all(those)
      finished, lost = folds.ended, folds.diverged
    if lost and finished:
      others = '; the other folds are trained' * (len(lost) < len(places))
      raise UserError(
        'the loss is not finite in '
        f'{", ".join(str(places[m].workdir) for m in lost)}{others}; a smaller '
        'optim.learning_rate or optim.clip_norm may help'
      )
    asked = not finished and notice.agreed()
    journal.ended(workdir, finished, asked, **facts)
  return Outcome(tuple(places), finished, time.monotonic() - begun, work.waves)


@dataclasses.dataclass(eq=False)
class _Work:
  """What a process does of a cross-validation.

  Attributes:
    places: all of them.
    shared: of them.
    partitions: of each fold.
    folds: who trains which, by their numbers in `places`.
    part: number of this process, and of all.
    notice: leaves after the block under way once it is asked.
    observer: is told of blocks and epochs.
    limit: of the time.
    waves: how many populations it has taken.
  """

  places: Sequence[Place]
  shared: side_by_side.Shared
  partitions: dict[int, protocol.Partition]
  folds: shares.Shares
  part: tuple[int, int]
  notice: preemption.Notice
  observer: Observer
  limit: _Limit
  waves: int = 0

  def train_all(self, those: list[int]) -> None:
    """Trains folds, then those that others have left, until all have ended or
    this process is to leave."""
    _, count = self.part
    while True:
      if those:
        self._say(those)
        if not self._train(those):
          return
      # Folds of others are waited for, and nothing is unsaved meanwhile.
      self.notice.starting |= count > 1
      self.observer.idle()
      those = self.folds.more(jax.local_device_count())
      if self.folds.ended or self.notice.agreed() or self.limit.reached:
        return
      if not those:
        if self.limit.passed:
          return
        time.sleep(WAIT_SECONDS)

  def _say(self, those: Sequence[int]) -> None:
    """Which folds this process of several trains."""
    number, count = self.part
    if count > 1:
      names = ', '.join(self.places[m].workdir.name for m in those)
      print(f'process {number} of {count} trains {names}', flush=True)

  def _member(self, m: int) -> population.Member:
    """A fold's run, as its workdir has it."""
    place = self.places[m]
    return side_by_side.member(
      self.shared,
      place.config,
      place.workdir,
      self.partitions[place.fold],
      number=place.fold,
    )

  def _train(self, those: Sequence[int]) -> bool:
    """Whether those folds were trained to their end."""
    members = {m: self._member(m) for m in those}
    waves = [
      [those[n] for n in wave]
      for wave in side_by_side.waves(
        self.shared, list(members.values()), len(those)
      )
    ]
    stale: set[int] = set()  # members of waves that did not fit
    while waves:
      if self.notice.agreed() or self.limit.reached:
        return False
      wave = waves.pop(0)
      for m in stale.intersection(wave):
        members[m] = self._member(m)
      try:
        with memory.exhaustion_told():
          diverged = self._train_wave(wave, [members[m] for m in wave])
      except memory.ExhaustedError as error:
        # More than was predicted: from the checkpoints on, in smaller ones.
        fewer = error.fewer(len(wave))
        self.observer.exhausted(len(wave), fewer, error)
        if not fewer:
          raise
        print(f'{len(wave)} runs side by side are too many: {error}')
        waves[:0] = [
          [wave[n] for n in part]
          for part in memory.split(range(len(wave)), fewer)
        ]
        stale.update(wave)
        continue
      self.waves += 1
      if diverged is None:
        return False
      for m in wave:
        how = shares.DIVERGED if m in diverged else shares.TRAINED
        self.folds.end(m, how)
    return True

  def _train_wave(
    self, wave: Sequence[int], members: Sequence[population.Member]
  ) -> set[int] | None:
    """Those of the folds whose loss was not finite; None where they were not
    trained to their end."""
    together = side_by_side.population_of(self.shared, members)
    self.observer.look(together)
    config = self.shared.config
    desk = Desk(len(wave), config)
    try:
      for seat, (m, member) in enumerate(zip(wave, members, strict=True)):
        desk.seat(seat, self.places[m].workdir, member)
      pace = preemption.Pace(config.train.block_steps)
      earlier = side_by_side.seconds_before(members)
      while together.training.any() and not self.notice.agreed():
        if not side_by_side.train_epoch(
          together,
          desk,
          pace,
          self.notice,
          lambda seat: self._member(wave[seat]),
          self.observer,
          earlier,
        ):
          return None
        earlier = 0.0
        self.limit.trained = True
        if self.limit.reached:
          break
      desk.save_all(together)
    finally:
      desk.close()
    if together.training.any():
      return None
    return {m for m, bad in zip(wave, together.diverged, strict=True) if bad}


def require_folds(config: config_lib.Config) -> None:
  """Raises UserError where no cross-validation can be made of a config."""
  config_lib.validate(config)
  if config.data.fold:
    raise UserError(
      f'data.fold is {config.data.fold}; a cross-validation trains all folds, '
      'and allowed is 0'
    )
  side_by_side.require_residence(config)


def shared_by(
  config: config_lib.Config,
  blueprint: task.Blueprint,
  places: Sequence[Place],
  how: str,
) -> tuple[side_by_side.Shared, dict[int, protocol.Partition]]:
  """What the folds have in common, and each one's partition.

  Raises:
    UserError: the set is larger than `data.resident_gib`.
  """
  partitions = {
    place.fold: task.partition_of(place.config, blueprint.dataset)
    for place in places
  }
  shared = side_by_side.shared_by(
    config, blueprint, list(partitions.values()), how
  )
  return shared, partitions


def places_of(
  config: config_lib.Config,
  dataset: datasets.Dataset,
  workdir: pathlib.Path,
  seeds: int,
) -> list[Place]:
  """Folds of the first seed, then of the next."""
  count = protocol.fold_count(
    dataset, config.data.protocol, **config_lib.protocol_options(config)
  )
  width = len(str(count - 1))
  places = []
  for number in range(seeds):
    for fold in range(count):
      member = config.copy_and_resolve_references()
      member.data.fold = fold
      member.seed = config.seed + number
      name = f'fold_{fold:0{width}d}' + (f'_seed_{number}' if number else '')
      places.append(Place(fold, member.seed, member, workdir / name))
  config_lib.validate(places[-1].config)  # of the highest seed
  return places
