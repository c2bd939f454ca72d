"""Cross-validation: every fold of a config, and seeds of each, side by side.

All folds train as one population over one data set in memory. Each is a normal
workdir all the same (`fold_03`, `fold_03_seed_1`): `train --config` repeats
it, `evaluate` and `report` take it, and an interrupted cross-validation goes on
from the folds' own checkpoints. What selects is the inner validation, or the
last epoch, never the fold's test part, which nothing here opens.
"""

import contextlib
import dataclasses
import datetime
import functools
import pathlib
import time
from collections.abc import Sequence

import jax
import numpy as np

from fer_jax import config as config_lib
from fer_jax.data import protocol, resident
from fer_jax.errors import UserError
from fer_jax.training import (
  checkpoint,
  feed,
  loop,
  mapping,
  memory,
  population,
  records,
  task,
  warm_start,
)
from fer_jax.training.display import Display

SAVE_SECONDS = 60.0
"""How much of a fold a kill may cost, beside the epoch under way."""


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
    finished: whether nothing is left to train.
    seconds: that training took in this process.
    waves: how many populations it took, one after another.
  """

  places: tuple[Place, ...]
  finished: bool
  seconds: float
  waves: int


def train(
  config: config_lib.Config,
  workdir: str | pathlib.Path,
  *,
  seeds: int = 1,
  max_seconds: float = 0.0,
  how: str = 'auto',
) -> Outcome:
  """Trains all folds of a config, or goes on with those the workdir holds.

  Args:
    config: of `config.get_base`, of a protocol with folds; validated here.
    workdir: made where it is missing.
    seeds: how many runs each fold is given, of seeds that count up from the
      config's.
    max_seconds: leaves in good order after the epoch that passes it; 0 is no
      limit.
    how: a name of `mapping.MAPPINGS`, or 'auto'.

  Raises:
    UserError: as `loop.train`; or the protocol has no folds, or a fold's loss
      is not finite.
  """
  config_lib.validate(config)
  if config.data.fold:
    raise UserError(
      f'data.fold is {config.data.fold}; a cross-validation trains all folds, '
      'and allowed is 0'
    )
  workdir = pathlib.Path(workdir)
  begun = time.monotonic()
  with loop.claimed(workdir, config), contextlib.ExitStack() as claims:
    shared = task.blueprint(config)
    places = _places(config, shared.dataset, workdir, seeds)
    for place in places:
      claims.enter_context(loop.claimed(place.workdir, place.config))
    partitions = {
      place.fold: task.partition_of(place.config, shared.dataset)
      for place in places
    }
    images, rows = _resident(config, shared.dataset, list(partitions.values()))
    members = [
      _member(place, shared, partitions[place.fold], rows) for place in places
    ]
    waves = _waves(images, members, shared, config, how)
    finished = True
    for number, wave in enumerate(waves):
      left = max_seconds - (time.monotonic() - begun) if max_seconds else 0.0
      if max_seconds and left <= 0:
        if number:
          finished = False
          break
        left = 1e-9  # one epoch all the same
      finished &= _train_wave(
        [places[m] for m in wave],
        [members[m] for m in wave],
        images,
        shared,
        config,
        max_seconds=left,
        how=how,
      )
  return Outcome(tuple(places), finished, time.monotonic() - begun, len(waves))


def _places(config, dataset, workdir: pathlib.Path, seeds: int) -> list[Place]:
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
  return places


def _resident(config, dataset, partitions: Sequence[protocol.Partition]):
  """(the examples that train or select in any fold, place of each row)."""
  used = functools.reduce(
    np.union1d, [np.union1d(p.train, p.validation) for p in partitions]
  )
  size = config.data.image_size
  images = resident.load_resident(
    dataset,
    used,
    image_size=(size, size),
    channels=config.data.channels,
    limit_bytes=int(config.data.resident_gib * 2**30),
  )
  rows = np.full(len(dataset), -1, np.int64)
  rows[used] = np.arange(len(used))
  return images, rows


def _member(place, shared, partition, rows) -> population.Member:
  """A fold before its first step, or as its checkpoint has it."""
  config, dataset = place.config, shared.dataset
  class_count = len(dataset.class_names)
  plan = task.plan_of(config, dataset, partition.train)
  facts = task.facts_of(config, dataset, partition)
  sealed = checkpoint.latest_intact(place.workdir)
  if sealed is None:
    state = task.first_state(config, shared.graphdef, class_count, plan.key)
    origin = {'pretrained': warm_start.facts(config.train.pretrained)}
  else:
    loop.require_same_data(place.workdir, facts)
    target = task.abstract_state(config, class_count)
    state = checkpoint.restore(sealed, target)
    origin = {}
  loop.write_run_json(place.workdir, config, facts, state, origin)
  return population.Member(
    state=jax.device_get(state),
    plan=plan,
    train_rows=rows[partition.train],
    validation_rows=rows[partition.validation],
    number=place.fold,
  )


def _waves(images, members, shared, config, how: str) -> list[range]:
  """Members that fit into memory together."""
  devices = jax.local_devices()
  size = config.train.batch_size
  room = [
    feed.padded_length(max(len(getattr(m, rows)) for m in members), size)
    for rows in ('train_rows', 'validation_rows')
  ]
  need = memory.need(
    images,
    members[0].state,
    members[0].plan,
    (room[0], room[1]),
    graphdef=shared.graphdef,
    settings=shared.settings,
  )
  return memory.waves(
    len(members),
    memory.limit_bytes(devices[0]),
    need,
    mapping.choose(how, devices[0].platform),
    devices=len(devices),
  )


def _train_wave(
  places, members, images, shared, config, *, max_seconds: float, how: str
) -> bool:
  """Trains a population to its end; False where time ran out before.

  Raises:
    UserError: a fold's loss was not finite.
  """
  begun = time.monotonic()
  together = population.Population(
    {k: v for k, v in images.items() if k != 'label'}
    | ({'label': images['label']} if _balanced(config) else {}),
    members,
    graphdef=shared.graphdef,
    settings_of=functools.partial(
      task.settings_of, config=config, settings=shared.settings
    ),
    selection=shared.selection,
    epochs=config.train.epochs,
    validate_every=config.train.validate_every,
    block_steps=config.train.block_steps,
    sampling=config.train.sampling,
    mapping=how,
  )
  desk = _Desk(places, members, config)
  try:
    while together.training.any():
      epoch_begun = time.monotonic()
      for _ in together.blocks():
        pass
      results = together.finish_epoch()
      desk.write(together, results, time.monotonic() - epoch_begun)
      if max_seconds and time.monotonic() - begun > max_seconds:
        break
    desk.save_all(together)
  finally:
    desk.close()
  lost = [
    place for place, bad in zip(places, together.diverged, strict=True) if bad
  ]
  if lost:
    names = ', '.join(str(place.workdir) for place in lost)
    raise UserError(
      f'the loss is not finite in {names}; the other folds are trained; a '
      'smaller optim.learning_rate or optim.clip_norm may help'
    )
  return not together.training.any()


def _balanced(config) -> bool:
  return config.train.sampling == 'class_balanced'


class _Desk:
  """Writes what the folds' workdirs hold while they train."""

  def __init__(self, places, members, config):
    self._places = places
    self._epochs = config.train.epochs
    self._display = Display(0, self._epochs)
    self._writers = [checkpoint.Writer(place.workdir) for place in places]
    self._recorders = [
      records.Recorder(place.workdir, resumed_step=int(member.state.step))
      for place, member in zip(places, members, strict=True)
    ]
    self._examples = [len(member.train_rows) for member in members]
    self._unsaved: set[int] = set()
    self._saved_at = time.monotonic()

  def write(self, together, results, seconds: float) -> None:
    """Records an epoch; saves folds that improved, all of them now and then."""
    rate = sum(
      n for n, result in zip(self._examples, results, strict=True) if result
    )
    now = datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds')
    for m, result in enumerate(results):
      if result is None:
        continue
      self._recorders[m].write(
        {
          **result,
          'time': now,
          # Of all folds together: they share the device.
          'images_per_second': rate / seconds,
          'seconds': seconds,
        }
      )
      if not together.diverged[m]:
        self._unsaved.add(m)
    states = {m: together.member_state(m) for m in self._unsaved}
    overdue = time.monotonic() - self._saved_at > SAVE_SECONDS
    for m, state in states.items():
      improved = int(state.progress.best_step) == int(state.step)
      if improved or overdue or not together.training[m]:
        self._save(together, m, state)
    if overdue:
      self._saved_at = time.monotonic()
    self._display.line(
      _epoch_line(together, results, self._epochs, rate / seconds)
    )

  def save_all(self, together) -> None:
    """Saves what is not saved yet."""
    for m in sorted(self._unsaved):
      self._save(together, m, together.member_state(m))

  def _save(self, together, m: int, state) -> None:
    self._writers[m].save(state, epoch=int(together.epoch[m]))
    self._unsaved.discard(m)

  def close(self) -> None:
    """Waits for the last checkpoints and closes the files."""
    with contextlib.ExitStack() as stack:
      for each in (*self._recorders, *self._writers):
        stack.callback(each.close)


def _epoch_line(together, results, epochs: int, rate: float) -> str:
  done = [result for result in results if result is not None]
  train = np.mean([r['train']['accuracy'] for r in done])
  text = (
    f'epoch {max(r["epoch"] for r in done)}/{epochs}  {len(done)} runs  train '
    f'accuracy {train:.4f}'
  )
  validated = [r['validation']['accuracy'] for r in done if 'validation' in r]
  if validated:
    text += (
      f'  validation accuracy {np.mean(validated):.4f} '
      f'({min(validated):.4f} to {max(validated):.4f})'
    )
  return f'{text}  {rate:.0f} images/s'
