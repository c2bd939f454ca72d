"""Runs that train side by side, each with a workdir of its own.

What cross-validations and sweeps share: the examples of all runs in memory
once, a run as a member of a population, how many members fit, and an epoch of
all of them. Each workdir is a normal one: `train --config` goes on with it or
repeats it.
"""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fer_jax import config as config_lib
from fer_jax.data import protocol, resident
from fer_jax.datasets import Dataset
from fer_jax.errors import UserError
from fer_jax.training import (
  checkpoint,
  feed,
  mapping,
  memory,
  population,
  preemption,
  rollback,
  task,
  warm_start,
)
from fer_jax.training import workdir as workdir_lib
from fer_jax.training.desk import Desk
from fer_jax.training.observer import Observer
from fer_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class Shared:
  """What the runs of one population have in common.

  Attributes:
    config: of any of them; they differ in lists, seeds and scalars alone.
    blueprint: data set, model and settings.
    images: the examples that train or select in any run, each once.
    rows: int (n,), the place in `images` of each row of the data set, or -1.
    how: a name of `mapping.MAPPINGS`, or 'auto'.
  """

  config: config_lib.Config
  blueprint: task.Blueprint
  images: dict[str, Any]
  rows: np.ndarray
  how: str = 'auto'

  @functools.cached_property
  def make_state(self) -> Callable[[jax.Array], TrainState]:
    """From a run's key to its first state; compiled once."""
    class_count = len(self.blueprint.dataset.class_names)
    return task.state_maker(self.config, class_count)


def require_residence(config: config_lib.Config) -> None:
  """Raises UserError where the config wants its set streamed."""
  if config.data.residence == 'stream':
    raise UserError(
      "data.residence is 'stream'; runs that train side by side share one set "
      "in memory, and allowed is 'auto' or 'device'"
    )


def resident_set(
  config: config_lib.Config,
  dataset: Dataset,
  partitions: Sequence[protocol.Partition],
) -> tuple[dict[str, Any], np.ndarray]:
  """(`Shared.images`, `Shared.rows`) of runs on these partitions.

  Raises:
    UserError: the set is larger than `data.resident_gib`.
  """
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


def shared_by(
  config: config_lib.Config,
  blueprint: task.Blueprint,
  partitions: Sequence[protocol.Partition],
  how: str,
) -> Shared:
  """What runs on these partitions have in common.

  Raises:
    UserError: as `resident_set`.
  """
  images, rows = resident_set(config, blueprint.dataset, partitions)
  return Shared(config, blueprint, images, rows, how)


def member(
  shared: Shared,
  config: config_lib.Config,
  workdir: pathlib.Path,
  partition: protocol.Partition,
  number: int,
) -> population.Member:
  """A run before its first step, or as its checkpoint has it.

  Args:
    shared: of its population.
    config: of the run.
    workdir: of the run, claimed.
    partition: who trains and who selects.
    number: what the caller calls it by.

  Raises:
    UserError: it was begun on other data, or the pretrained weights cannot be
      had.
  """
  dataset = shared.blueprint.dataset
  facts = task.facts_of(config, dataset, partition)
  sealed = checkpoint.latest_intact(workdir, noted=True)
  if sealed is None:
    run = fresh(shared, config, partition, number)
    origin = {'pretrained': warm_start.facts(config.train.pretrained)}
  else:
    workdir_lib.require_same_data(workdir, facts)
    target = task.abstract_state(config, len(dataset.class_names))
    state = jax.device_get(checkpoint.restore(sealed, target))
    plan = task.plan_of(config, dataset, partition.train)
    run = _placed(shared, partition, plan, state, number)
    origin = {}
  step = sealed.step if sealed else 0
  state = rollback.slowed(run.state, rollback.noted(workdir, step))
  epoch = sealed.epoch if sealed else 0
  if epoch < config.train.epochs and bool(state.progress.active):
    workdir_lib.write_run_json(workdir, config, facts, state, origin)
  partial = sealed.partial if sealed else None
  return run._replace(state=state, partial=partial, epoch=epoch)


def fresh(
  shared: Shared,
  config: config_lib.Config,
  partition: protocol.Partition,
  number: int = 0,
) -> population.Member:
  """A run before its first step; the arguments are those of `member`."""
  dataset, graphdef = shared.blueprint.dataset, shared.blueprint.graphdef
  plan = task.plan_of(config, dataset, partition.train)
  class_count = len(dataset.class_names)
  state = task.first_state(
    config, graphdef, class_count, plan.key, shared.make_state
  )
  return _placed(shared, partition, plan, jax.device_get(state), number)


def example(shared: Shared, partition: protocol.Partition) -> population.Member:
  """A run of which nothing is computed: shapes and dtypes of its state."""
  config, dataset = shared.config, shared.blueprint.dataset
  state = task.abstract_state(config, len(dataset.class_names))
  plan = task.plan_of(config, dataset, partition.train)
  return _placed(shared, partition, plan, state, 0)


def _placed(shared, partition, plan, state, number) -> population.Member:
  return population.Member(
    state=state,
    plan=plan,
    train_rows=shared.rows[partition.train],
    validation_rows=shared.rows[partition.validation],
    number=number,
  )


def waves(
  shared: Shared,
  members: Sequence[population.Member],
  count: int,
  need: memory.Need | None = None,
) -> list[range]:
  """Divides as many runs as `count` into populations that fit into memory.

  Args:
    shared: of all of them.
    members: some of them, the ones with the longest lists included.
    count: of all.
    need: of `need_of`, where it is known.

  Raises:
    memory.ExhaustedError: not even one fits.
  """
  devices = jax.local_devices()
  platform = devices[0].platform
  how = mapping.choose(shared.how, platform)
  limit = memory.limit_bytes(devices[0])
  need = need or need_of(shared, members)
  if platform == 'cpu':  # whose devices have one memory
    return memory.waves(count, limit, need, how, parts=len(devices))
  return memory.waves(count, limit, need, how, devices=len(devices))


def need_of(
  shared: Shared, members: Sequence[population.Member]
) -> memory.Need:
  """What a run takes, as far as it is planned with: on CPU the least.

  What a member takes there while it trains is known when the population has
  compiled its block, which takes minutes: it looks then, and fewer are tried.

  Args:
    shared: of all of them.
    members: some of them, the ones with the longest lists included.
  """
  if jax.default_backend() == 'cpu':
    state = memory.bytes_of(members[0].state)
    return memory.Need(memory.bytes_of(shared.images), state, state)
  size = shared.config.train.batch_size
  room = [
    feed.padded_length(max(len(getattr(m, rows)) for m in members), size)
    for rows in ('train_rows', 'validation_rows')
  ]
  return memory.need(
    shared.images,
    members[0].state,
    members[0].plan,
    (room[0], room[1]),
    graphdef=shared.blueprint.graphdef,
    settings=shared.blueprint.settings,
  )


def population_of(
  shared: Shared, members: Sequence[population.Member]
) -> population.Population:
  """The members as one population, on all devices of this process."""
  config, blueprint = shared.config, shared.blueprint
  device = jax.local_devices()[0]
  on_cpu = device.platform == 'cpu'
  balanced = config.train.sampling == 'class_balanced'
  return population.Population(
    {k: v for k, v in shared.images.items() if k != 'label' or balanced},
    members,
    graphdef=blueprint.graphdef,
    settings_of=functools.partial(
      task.settings_of, config=config, settings=blueprint.settings
    ),
    selection=blueprint.selection,
    epochs=config.train.epochs,
    validate_every=config.train.validate_every,
    block_steps=config.train.block_steps,
    sampling=config.train.sampling,
    mapping=shared.how,
    limit=memory.limit_bytes(device) if on_cpu else None,
  )


def seconds_before(members: Sequence[population.Member]) -> float:
  """What the epoch has taken that members are amid of."""
  return max((m.partial.seconds for m in members if m.partial), default=0.0)


def train_epoch(
  together: population.Population,
  desk: Desk,
  pace: preemption.Pace,
  notice: preemption.Notice,
  member: Callable[[int], population.Member],
  observer: Observer,
  earlier: float = 0.0,
) -> list[dict[str, Any] | None] | None:
  """Trains what is left of everyone's epoch, and writes of it.

  Args:
    together: the runs.
    desk: writes of them.
    pace: of the blocks.
    notice: leaves after the block under way once it is asked.
    member: the run in a place, as its workdir has it.
    observer: is told of blocks and epochs.
    earlier: seconds of the epoch before this call.

  Returns:
    What `finish_epoch` returned, None of a run that went back after a loss that
    was not finite; None where all left amid the epoch, saved.
  """
  begun = time.monotonic() - earlier
  pace.begin()
  together.block_steps = observer.block_steps(pace.steps)
  steps, before = 0, together.taken
  for _ in together.blocks():
    together.wait()
    notice.starting = False
    # Of whoever took most: the one furthest on may be waiting for the others.
    taken = int((together.taken - before).max())
    steps += taken
    before = together.taken
    pace.done(steps)
    observer.after_block(together, taken)
    together.block_steps = observer.block_steps(pace.steps)
    if not together.amid.any():
      continue  # the epoch is judged first
    asked = notice.agreed()
    if asked or desk.overdue_amid:
      desk.save_amid(together, time.monotonic() - begun)
    if asked:
      return None
  results = together.finish_epoch()
  effort = desk.effort(results, time.monotonic() - begun)
  desk.roll_back(together, results, member, effort)
  desk.write(together, results, effort)
  observer.look(together)
  return results
