"""Folds, trials or seeds that train side by side.

A population is the single run's state with a leading member axis: its block of
steps and its validation are those of `step`, mapped. Members share the data
set, the model and every setting that is fixed at compilation; they differ in
parameters, key, lists of rows, and each scalar of `hparams`. What one of them
draws, counts and selects is what it would by itself.

Members take their epochs together: one whose epoch is over waits for the
others, and one that has stopped, diverged or finished is passed over and keeps
its bits.

Devices divide the members, and where there are more devices than members, each
member's batches as well.

Legend: M members, N and V rows that there is room for in a member's training
and validation lists, whole batches of B.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from fer_jax.data import randomness
from fer_jax.training import checkpoint, feed, memory, progress, sharding
from fer_jax.training import mapping as mapping_lib
from fer_jax.training import step as step_lib
from fer_jax.training.state import TrainState, all_finite

SAMPLINGS = ('shuffle', 'class_balanced')


class Member(NamedTuple):
  """A run that takes a place in a population.

  Attributes:
    state: before its first step, at the end of an epoch, or amid one.
    plan: of the run.
    train_rows: int (n,), places of its training list in the resident set.
    validation_rows: int (m,), those of its validation list; may be empty.
    number: what the caller calls it by, such as its fold or trial.
    partial: of the epoch that `state` is amid.
    epoch: epochs completed.
  """

  state: TrainState
  plan: step_lib.Plan
  train_rows: np.ndarray
  validation_rows: np.ndarray
  number: int = 0
  partial: checkpoint.Partial | None = None
  epoch: int = 0


class _Own(NamedTuple):
  """What training changes of members; every array (M, ...)."""

  state: TrainState
  sums: step_lib.Sums


class _Given(NamedTuple):
  """What it does not; every array (M, ...), keys as raw ones."""

  plan: step_lib.Plan
  train_rows: Any
  train_count: Any
  validation_rows: Any
  validation_count: Any


class Population:
  """Members in places 0 to M - 1, on one device or several.

      while population.training.any():
        for _ in population.blocks():
          ...  # stop, replace
        records = population.finish_epoch()

  Attributes:
    number: int (M,), what the caller calls the members by.
    epoch: int (M,), epochs completed.
    steps_per_epoch: int (M,).
    active: bool (M,), False where one has stopped, of itself or told to.
    diverged: bool (M,), True where a loss or a parameter was not finite.
    mapping: how members share a device, a name of `mapping.MAPPINGS`.
    predicted_bytes: what the members take of a memory that has a `limit`, once
      a block is compiled.
  """

  def __init__(
    self,
    images: dict[str, Any],
    members: Sequence[Member],
    *,
    graphdef: nnx.GraphDef,
    settings_of: feed.SettingsOf,
    selection: progress.SelectionSettings,
    epochs: int,
    validate_every: int = 1,
    block_steps: int = 100,
    sampling: str = 'shuffle',
    capacity: tuple[int, int] = (0, 0),
    mapping: str = 'auto',
    devices: Sequence[Any] | None = None,
    limit: int | None = None,
  ):
    """Puts the set and the members on the devices.

    Args:
      images: of `data.resident.load_resident`, each example once.
      members: at least one.
      graphdef: of the model.
      settings_of: the step's settings in an epoch.
      selection: how validation steers each.
      epochs: of each.
      validate_every: epochs from a validation to the next.
      block_steps: steps of each a dispatch.
      sampling: one of `SAMPLINGS`, as `train.sampling`.
      capacity: training and validation rows that there must be room for, where
        members to come have more than these.
      mapping: a name of `mapping.MAPPINGS`, or 'auto'.
      devices: among which members, then batches, are divided; None for all of
        this process.
      limit: bytes of the memory that these devices have in common; None where
        each has its own.

    Raises:
      ValueError: no such sampling or mapping.
    """
    if sampling not in SAMPLINGS:
      raise ValueError(
        f'sampling is {sampling!r}; allowed is one of {SAMPLINGS}'
      )
    self._epochs = epochs
    self._validate_every = validate_every
    self._takes_last = selection.metric == 'last'
    self.block_steps = block_steps  # may be changed at any time
    self._batch_size = settings_of(0).batch_size
    lists = [(len(m.train_rows), len(m.validation_rows)) for m in members]
    self._room = [
      feed.padded_length(longest, self._batch_size)
      for longest in np.max([*lists, capacity], axis=0)
    ]

    devices = list(devices or jax.local_devices())
    rows, columns = divisions(len(devices), len(members), self._batch_size)
    # Members divide evenly among devices: idle copies of the last fill up.
    self._places = feed.padded_length(len(members), rows)
    mesh, self._sharding = _divided(devices[: rows * columns], rows)
    self._images = (
      jax.device_put(images, self._sharding)
      if mesh is None
      else sharding.replicated(images, mesh)
    )
    self._settings_of = lambda epoch: settings_of(epoch).over(mesh)
    self.mapping = mapping_lib.choose(mapping, devices[0].platform)
    self._parts = rows, columns
    self._limit = limit
    self.predicted_bytes: int | None = None
    self._known_to_fit: set[step_lib.StepSettings] = set()
    self._programs = _Programs(
      graphdef=graphdef,
      settings=self._settings_of(0),
      selection=selection,
      sampling=sampling,
      mapping=self.mapping,
      mesh=mesh,
      sharding=self._sharding,
    )

    self.number, self.epoch, self.steps_per_epoch, self._taken = np.zeros(
      (4, len(members)), np.int32
    )
    self.active, self.diverged = np.zeros((2, len(members)), bool)
    arrays = [self._seat(m, member) for m, member in enumerate(members)]
    self._own, self._given = self._on_devices(
      *jax.tree.map(lambda *each: np.stack(each), *arrays)
    )
    self._order: jax.Array | None = None

  def __len__(self) -> int:
    return len(self.epoch)

  @property
  def training(self) -> np.ndarray:
    """bool (M,), who is active and has epochs left."""
    return self.active & (self.epoch < self._epochs)

  def blocks(self) -> Iterator[None]:
    """Trains what is left of everyone's epoch, a block at a time.

    Yields after each; meanwhile members may be stopped and replaced. A new one
    begins its first epoch with the next block. `finish_epoch` is due
    afterwards.

    Raises:
      memory.ExhaustedError: the members do not fit into `limit`.
    """
    while self.amid.any():
      self._take_block()
      yield

  def _take_block(self) -> None:
    given = self._given
    if self._order is None:
      self._order = self._programs.order(
        given.train_rows,
        (given.plan.key, given.train_count, self._padded(self.epoch)),
        self._images,
      )
    # Members whose epochs differ may be in different phases of freezing.
    phases: dict[step_lib.StepSettings, list[int]] = {}
    for m in map(int, np.flatnonzero(self.training)):
      settings = self._settings_of(int(self.epoch[m]))
      phases.setdefault(settings, []).append(m)
    stop = np.minimum(self._taken + self.block_steps, self.steps_per_epoch)
    for settings, those in phases.items():
      until = self._taken.copy()
      until[those] = stop[those]
      block = self._programs.block(settings)
      arguments = (
        self._own,
        (
          self._order,
          given.train_count,
          self._padded(self._taken),
          self._padded(until),
          given.plan,
        ),
        self._images,
      )
      if self._limit is not None and settings not in self._known_to_fit:
        # Its call finds it compiled.
        self._require_memory(self._limit, block.lower(*arguments).compile())
        self._known_to_fit.add(settings)
      self._own = block(*arguments)
      self._taken = until

  def _require_memory(self, limit: int, block: Any) -> None:
    """Raises memory.ExhaustedError where a compiled block takes more."""
    rows, columns = self._parts
    each = self._places // rows
    at_once = each if self.mapping == 'vmap' else 1
    held = memory.bytes_of((self._own, self._given, self._order))
    working = block.memory_analysis().temp_size_in_bytes
    need = memory.Need(
      shared=memory.bytes_of(self._images),
      # A member is on all devices that divide its batches.
      member=columns * held // self._places,
      working=columns * working // at_once,
    )
    members = len(self), self.mapping, rows
    self.predicted_bytes = memory.predicted_bytes(need, *members)
    memory.require(limit, need, *members)

  def finish_epoch(self) -> list[dict[str, Any] | None]:
    """Validates and judges the members whose epoch is over.

    Returns:
      For each place the epoch's record as a single run writes it, but for times
      and rates; None where no epoch is over. A member whose loss or parameters
      are not finite has diverged: its validation steers nothing, and it trains
      no more.
    """
    done = self.training & (self._taken == self.steps_per_epoch)
    self.epoch = self.epoch + done
    self._taken = np.where(done, 0, self._taken)
    due = self.epoch % self._validate_every == 0
    due |= self.epoch == self._epochs
    seen = self._programs.look(self._own.state, self._given.plan)
    seen = {name: np.asarray(x)[: len(self)] for name, x in seen.items()}
    training = _means(self._own.sums)
    healthy = done & seen['active'] & seen['finite']
    validation = self._validate(healthy & due)
    for m, means in validation.items():
      healthy[m] = np.isfinite(means['loss'])
    self.diverged |= done & ~healthy
    judged = healthy & (due | self._takes_last)

    self._own = self._programs.advance(
      self._own,
      {
        name: self._padded(
          np.array(
            [validation.get(m, _UNKNOWN)[name] for m in range(len(self))],
            np.float32,
          )
        )
        for name in _UNKNOWN
      },
      self._padded(judged),
      self._padded(done),
      self._padded(self.diverged),
    )
    still_active = np.asarray(self._own.state.progress.active)[: len(self)]
    self.active = np.where(done, still_active, self.active)
    self._order = None

    def record(m):
      return {
        'epoch': int(self.epoch[m]),
        'step': int(seen['step'][m]),
        'train': training[m],
        'learning_rate': float(seen['learning_rate'][m]),
        **({'validation': validation[m]} if m in validation else {}),
      }

    return [record(m) if done[m] else None for m in range(len(self))]

  def validate(self, batches: int) -> None:
    """Validates all members on so many batches at most; steers nothing."""
    most = batches * self._batch_size
    self._validate(np.ones(len(self), bool), most)

  def _validate(
    self, whom: np.ndarray, most: int | None = None
  ) -> dict[int, dict[str, float]]:
    """Means over the validation rows of some members, by their place.

    Args:
      whom: bool (M,), those members.
      most: rows of each; None for all.
    """
    given = self._given
    count = np.asarray(given.validation_count)[: len(self)] * whom
    if most is not None:
      count = np.minimum(count, most)
    if not count.any():
      return {}
    sums = self._programs.validation(
      jax.tree.map(jnp.zeros_like, self._own.sums),
      (self._own.state, given.validation_rows, self._padded(count)),
      self._images,
    )
    means = _means(sums)
    return {int(m): means[m] for m in np.flatnonzero(count)}

  def wait(self) -> None:
    """Returns when all that was dispatched is done."""
    jax.block_until_ready(self._own)

  def member_state(self, m: int) -> TrainState:
    """One member's state, as a single run has it, on the first device."""
    state = self._programs.member(self._own.state, m)
    return jax.device_put(state, jax.local_devices()[0])

  @property
  def improved(self) -> np.ndarray:
    """bool (M,), whose last step is the best one."""
    state = self._own.state
    best, step = jax.device_get((state.progress.best_step, state.step))
    return (best == step)[: len(self)]

  @property
  def amid(self) -> np.ndarray:
    """bool (M,), who trains and has steps of its epoch left."""
    return self.training & (self._taken < self.steps_per_epoch)

  @property
  def taken(self) -> np.ndarray:
    """int (M,), steps of the epoch under way."""
    return self._taken

  @property
  def furthest(self) -> tuple[int, int]:
    """(step, epoch under way from 1) of the member that is furthest on."""
    step = self.epoch * self.steps_per_epoch + self._taken
    m = int(step.argmax())
    return int(step[m]), min(int(self.epoch[m]) + 1, self._epochs)

  def partial(self, m: int, seconds: float) -> checkpoint.Partial | None:
    """What one member has trained of its epoch, None where that is nothing."""
    if not self._taken[m]:
      return None
    sums = {name: float(total[m]) for name, total in self._own.sums.items()}
    return checkpoint.Partial(int(self._taken[m]), seconds, sums)

  def stop(self, m: int) -> None:
    """Stops a member: it keeps its state and trains no more."""
    state = self._own.state
    stopped = self._programs.with_member(
      state.progress.active, m, np.asarray(False)
    )
    self._own = self._own._replace(
      state=state._replace(progress=state.progress._replace(active=stopped))
    )
    self.active[m] = False

  def replace(self, m: int, member: Member) -> None:
    """Gives a place to another member; nothing is compiled anew.

    Raises:
      ValueError: its lists are longer than there is room for.
    """
    own, given = self._seat(m, member)
    self._own = self._programs.with_member(self._own, m, own)
    self._given = self._programs.with_member(self._given, m, given)
    self._order = None

  def _seat(self, m: int, member: Member) -> tuple[_Own, _Given]:
    """Notes whose place it is; returns what goes there, on the host."""
    rows = []
    for name, room in zip(
      ('train_rows', 'validation_rows'), self._room, strict=True
    ):
      own = np.asarray(getattr(member, name), np.int32)
      if len(own) > room:
        raise ValueError(
          f'member {member.number} has {len(own)} {name}; allowed is at most '
          f'{room}, or a larger capacity'
        )
      # The last row again, as in a run by itself.
      fill = 'edge' if len(own) else 'constant'
      rows.append(np.pad(own, (0, room - len(own)), fill))
    count = len(member.train_rows)
    steps = feed.padded_length(count, self._batch_size) // self._batch_size
    self.number[m] = member.number
    self.steps_per_epoch[m] = steps
    self.epoch[m], self._taken[m] = divmod(int(member.state.step), steps)
    self.active[m] = bool(member.state.progress.active)
    self.diverged[m] = False
    own = _Own(member.state, step_lib.sums_of(member.partial))
    given = _Given(
      _raw(member.plan),
      train_rows=rows[0],
      train_count=np.int32(count),
      validation_rows=rows[1],
      validation_count=np.int32(len(member.validation_rows)),
    )
    return jax.tree.map(np.asarray, (own, given))

  def _on_devices(self, own: _Own, given: _Given) -> tuple[_Own, _Given]:
    padded = jax.tree.map(self._padded, (own, given))
    return jax.device_put(padded, self._sharding)

  def _padded(self, x: np.ndarray) -> np.ndarray:
    """(M, ...) to one for each place on the devices, the last one's again."""
    extra = self._places - len(x)
    return np.pad(x, ((0, extra), *((0, 0),) * (x.ndim - 1)), 'edge')


def divisions(devices: int, members: int, batch_size: int) -> tuple[int, int]:
  """How many parts the members and the batches of each are divided into."""
  rows = min(devices, members)
  columns = max(n for n in range(1, devices // rows + 1) if batch_size % n == 0)
  return rows, columns


def lower_block(
  images: dict[str, Any],
  member: Member,
  count: int,
  *,
  graphdef: nnx.GraphDef,
  settings: step_lib.StepSettings,
  selection: progress.SelectionSettings,
  mapping: str,
  devices: Sequence[Any],
) -> jax.stages.Lowered:
  """The block of steps of a population, to be compiled; runs nothing.

  Args:
    images: the resident set, shapes and dtypes alone.
    member: any; of its state likewise, of its lists the lengths count.
    count: of such members.
    graphdef: of the model.
    settings: of the step.
    selection: how validation steers each.
    mapping: a name of `mapping.MAPPINGS`.
    devices: among which members, then batches, are divided.
  """
  rows, columns = divisions(len(devices), count, settings.batch_size)
  mesh, place = _divided(devices[: rows * columns], rows)
  settings = settings.over(mesh)
  programs = _Programs(
    graphdef=graphdef,
    settings=settings,
    selection=selection,
    sampling='shuffle',
    mapping=mapping,
    mesh=mesh,
    sharding=place,
  )
  places = feed.padded_length(count, rows)
  order = np.zeros(
    feed.padded_length(len(member.train_rows), settings.batch_size), np.int32
  )
  number = np.zeros((), np.int32)
  own, given = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((places, *x.shape), x.dtype, sharding=place),
    (
      _Own(member.state, step_lib.zero_sums()),
      (order, number, number, number, _raw(member.plan)),
    ),
  )
  everywhere = (
    place if mesh is None else NamedSharding(mesh, sharding.EVERYWHERE)
  )
  shared = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere),
    images,
  )
  return programs.block(settings).lower(own, given, shared)


def _raw(plan: step_lib.Plan) -> step_lib.Plan:
  """A plan of arrays that NumPy and checkpoints know."""
  return plan._replace(
    key=jax.random.key_data(plan.key),
    milestones=jax.tree.map(np.int32, plan.milestones),
  )


def _divided(devices, rows):
  """(mesh, None for one device; where members' arrays go)."""
  if len(devices) == 1:
    return None, jax.sharding.SingleDeviceSharding(devices[0])
  mesh = sharding.make_mesh(devices, rows)
  return mesh, NamedSharding(mesh, PartitionSpec(mapping_lib.AXIS))


class _Programs:
  """What is compiled for a population, each once."""

  def __init__(
    self, *, graphdef, settings, selection, sampling, mapping, mesh, sharding
  ):
    mapped = functools.partial(
      mapping_lib.over_members, mapping=mapping, mesh=mesh
    )

    @functools.cache
    def block(settings: step_lib.StepSettings) -> Callable[..., _Own]:
      one = functools.partial(_block, graphdef=graphdef, settings=settings)
      return jax.jit(mapped(one), donate_argnums=0)

    validation = functools.partial(
      _validation, graphdef=graphdef, settings=settings
    )
    order = functools.partial(_order, sampling=sampling)
    look = functools.partial(_look, settings=settings)
    advance = functools.partial(_advance, selection=selection)
    written = {'donate_argnums': 0, 'out_shardings': sharding}
    self.block = block
    self.validation = jax.jit(mapped(validation))
    self.order = jax.jit(mapped(order))
    self.look = jax.jit(jax.vmap(look))
    self.advance = jax.jit(jax.vmap(advance), **written)
    self.member = jax.jit(lambda tree, m: jax.tree.map(lambda x: x[m], tree))
    self.with_member = jax.jit(
      lambda tree, m, new: jax.tree.map(
        lambda x, one: x.at[m].set(one), tree, new
      ),
      **written,
    )


# Of one member each; `mapping` says what the arguments are.


def _block(own, given, images, **static) -> _Own:
  order, count, start, stop, plan = given
  plan = plan._replace(key=jax.random.wrap_key_data(plan.key))
  state, sums = step_lib.run_block(
    own.state, own.sums, images, order, count, start, stop, plan, **static
  )
  return _Own(state, sums)


def _validation(sums, given, images, **static) -> step_lib.Sums:
  del sums
  state, rows, count = given
  return step_lib.run_validation(state, images, rows, count, **static)


def _order(rows, given, images, *, sampling) -> jax.Array:
  """int32 (N,): the training list in an epoch's order, padding last."""
  key, count, epoch = given
  draw = randomness.epoch_order
  if sampling == 'class_balanced':
    draw = functools.partial(
      randomness.balanced_order,
      labels=images['label'][rows],
      num_classes=images['target'].shape[-1],
    )
  return rows[draw(jax.random.wrap_key_data(key), epoch, count, len(rows))]


def _look(state, plan, *, settings) -> dict[str, jax.Array]:
  """What an epoch's record and judgement ask of a state."""
  return {
    'step': state.step,
    'active': state.progress.active,
    'finite': all_finite(state.params),
    'learning_rate': step_lib.learning_rate(
      state, plan, settings, state.step - 1
    ),
  }


def _advance(own, metrics, judged, done, diverged, *, selection) -> _Own:
  """Steered by validation where it is judged; sums from 0 where it is done."""
  state, sums = own
  after = progress.update(state.progress, selection, metrics, state.step)
  steered = jax.tree.map(
    lambda new, old: jnp.where(judged, new, old), after, state.progress
  )
  steered = steered._replace(active=steered.active & ~diverged)
  return _Own(
    state._replace(progress=steered),
    jax.tree.map(lambda total: jnp.where(done, 0, total), sums),
  )


_UNKNOWN = {'loss': float('nan'), 'accuracy': float('nan')}


def _means(sums: step_lib.Sums) -> list[dict[str, float]]:
  """`step.means` of each member's sums."""
  host = jax.tree.map(np.asarray, sums)
  return [
    step_lib.means({name: total[m] for name, total in host.items()})
    for m in range(len(host['weight']))
  ]
