"""How examples reach the step: from device memory, or streamed from disk.

Both feeds take the same steps on the same batches in the same order; the loop
does not know which one it has, nor on how many devices. Settings may change
between epochs, where more of the model begins to train: each of them is
compiled when its first epoch comes, once.

Legend: B batch.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from fer_jax.data import randomness, stream
from fer_jax.training import sharding
from fer_jax.training import step as step_lib
from fer_jax.training.state import TrainState


def padded_length(count: int, batch_size: int) -> int:
  """The least multiple of the batch size that holds `count`."""
  return -(-count // batch_size) * batch_size


SettingsOf = Callable[[int], step_lib.StepSettings]
"""The settings of an epoch, counted from 0; equal ones share a compilation."""


class ResidentFeed:
  """Blocks of steps over a set that lies in device memory as uint8."""

  def __init__(
    self,
    images: dict[str, Any],
    *,
    train_rows: np.ndarray,
    validation_rows: np.ndarray,
    plan: step_lib.Plan,
    graphdef: Any,
    settings_of: SettingsOf,
    block_steps: int,
    order: randomness.Order = randomness.epoch_order,
    mesh: Mesh | None = None,
  ):
    """Puts the set on the device, or a copy of it on each.

    Args:
      images: of `data.resident.load_resident`, each example once.
      train_rows: int (n,), places of the training list in them; oversampling
        names some more than once.
      validation_rows: int (m,), those of the validation list.
      plan: of the run.
      graphdef: of the model.
      settings_of: the step's settings in an epoch.
      block_steps: steps a dispatch.
      order: of the training list's positions in an epoch.
      mesh: over which batches are divided; None for one device.
    """
    self._mesh = mesh
    images = {k: v for k, v in images.items() if k != 'label'}
    self._images = (
      jax.device_put(images)
      if mesh is None
      else sharding.replicated(images, mesh)
    )
    self._train_count = len(train_rows)
    self._validation_count = len(validation_rows)
    self.validates = len(validation_rows) > 0
    self._plan = sharding.replicated(plan, mesh)
    self.block_steps = block_steps  # may be changed at any time
    self._settings_of = settings_of
    self._block = functools.cache(
      lambda settings: step_lib.make_block(graphdef, settings, mesh)
    )
    settings = settings_of(0)  # what validation and batches use stays the same
    self._validation = step_lib.make_validation(graphdef, settings, mesh)
    size = settings.batch_size
    self._padded = padded_length(len(train_rows), size)
    self.steps_per_epoch = self._padded // size
    self._train_rows = sharding.replicated(
      jnp.asarray(train_rows, jnp.int32), mesh
    )
    self._order = jax.jit(
      functools.partial(_rows_in_order, order),
      static_argnums=4,
      out_shardings=(
        None if mesh is None else NamedSharding(mesh, sharding.EVERYWHERE)
      ),
    )
    padded = padded_length(len(validation_rows), size)
    rows = np.pad(validation_rows, (0, padded - len(validation_rows)))
    self._validation_rows = sharding.replicated(
      jnp.asarray(rows, jnp.int32), mesh
    )
    self._dispatched = False

  def train_epoch(
    self,
    state: TrainState,
    epoch: int,
    *,
    taken: int = 0,
    sums: step_lib.Sums | None = None,
  ) -> Iterator[tuple[TrainState, step_lib.Sums, int]]:
    """Yields (state, sums of this epoch so far, steps of it taken).

    Args:
      state: as it was after the steps taken before; donated.
      epoch: counts from 0.
      taken: steps of the epoch taken before.
      sums: of them.
    """
    state = sharding.replicated(state, self._mesh)
    order = self._order(
      self._train_rows, self._plan.key, epoch, self._train_count, self._padded
    )
    block = self._block(self._settings_of(epoch))
    sums = step_lib.zero_sums() if sums is None else sums
    sums = sharding.replicated(sums, self._mesh)
    while taken < self.steps_per_epoch:
      # The first dispatch of a process is one step, so that its time tells the
      # start-up; a block's length changes no result.
      length = self.block_steps if self._dispatched else 1
      self._dispatched = True
      stop = min(taken + length, self.steps_per_epoch)
      state, sums = block(
        state,
        sums,
        self._images,
        order,
        self._train_count,
        taken,
        stop,
        self._plan,
      )
      taken = stop
      yield state, sums, taken

  def validate(
    self, state: TrainState, batches: int | None = None
  ) -> step_lib.Sums:
    """Sums over the validation rows, or over the first batches of them."""
    count = self._validation_count
    if batches is not None:
      count = min(count, batches * self._padded // self.steps_per_epoch)
    state = sharding.replicated(state, self._mesh)
    return self._validation(state, self._images, self._validation_rows, count)


def _rows_in_order(order, train_rows, key, epoch, count, padded):
  """int32 (padded,): the training list in an epoch's order, padding last."""
  positions = order(key, epoch, count, padded)
  return jnp.take(train_rows, positions, mode='clip')


class StreamFeed:
  """Steps on batches that Grain reads from disk."""

  def __init__(
    self,
    training: stream.Stream,
    validation: stream.Stream | None,
    *,
    plan: step_lib.Plan,
    graphdef: Any,
    settings_of: SettingsOf,
    block_steps: int,
    mesh: Mesh | None = None,
  ):
    """Reads nothing yet.

    Args:
      training: batches in the run's order; of several hosts, the part that this
        one reads of each.
      validation: batches of the validation rows; None where there are none.
      plan: of the run.
      graphdef: of the model.
      settings_of: the step's settings in an epoch.
      block_steps: steps between two looks at the sums.
      mesh: over which batches are divided; None for one device.
    """
    self._mesh = mesh
    self._training = training
    self._validation = validation
    self.validates = validation is not None
    self._plan = sharding.replicated(plan, mesh)
    self.block_steps = block_steps  # may be changed at any time
    self._settings_of = settings_of
    self._step = functools.cache(
      lambda settings: step_lib.make_stream_step(graphdef, settings, mesh)
    )
    self._validate = step_lib.make_stream_validation(
      graphdef, settings_of(0), mesh
    )
    self.steps_per_epoch = training.steps_per_epoch
    self._stepped = False

  def train_epoch(
    self,
    state: TrainState,
    epoch: int,
    *,
    taken: int = 0,
    sums: step_lib.Sums | None = None,
  ) -> Iterator[tuple[TrainState, step_lib.Sums, int]]:
    """Yields (state, sums of this epoch so far, steps of it taken).

    Args:
      state: as it was after the steps taken before; donated.
      epoch: counts from 0.
      taken: steps of the epoch taken before.
      sums: of them.
    """
    state = sharding.replicated(state, self._mesh)
    step = self._step(self._settings_of(epoch))
    sums = step_lib.zero_sums() if sums is None else sums
    sums = sharding.replicated(sums, self._mesh)
    seen, was_active = taken, True
    with contextlib.closing(self._training.epoch(epoch, taken)) as batches:
      for batch in batches:
        batch = sharding.divided(batch, self._mesh)
        state, sums, active = step(state, sums, batch, self._plan)
        taken += 1
        # As of a resident set, the first look is after one step.
        length = self.block_steps if self._stepped else 1
        self._stepped = True
        if taken - seen >= length or taken == self.steps_per_epoch:
          seen = taken
          yield state, sums, taken
          # One block behind, so that the one just sent is not waited for.
          if not bool(was_active):
            return
          was_active = active

  def validate(
    self, state: TrainState, batches: int | None = None
  ) -> step_lib.Sums:
    """Sums over the validation rows, or over the first batches of them."""
    state = sharding.replicated(state, self._mesh)
    sums = sharding.replicated(step_lib.zero_sums(), self._mesh)
    if self._validation is None:
      return sums
    with contextlib.closing(self._validation.epoch(0)) as read:
      for batch in itertools.islice(read, batches):
        batch = sharding.divided(batch, self._mesh)
        sums = self._validate(state, sums, batch)
    return sums
