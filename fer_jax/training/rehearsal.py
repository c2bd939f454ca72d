"""The first steps without the run: what it takes of memory and time."""

import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from fer_jax import config as config_lib
from fer_jax import provenance
from fer_jax.training import (
  crossval,
  memory,
  population,
  side_by_side,
  task,
)
from fer_jax.training import feed as feed_lib
from fer_jax.training import step as step_lib
from fer_jax.training.display import duration
from fer_jax.training.state import parameter_count

STEPS = 2

_NO_VALIDATION: dict[str, Any] = {'validations': 0, 'validation_seconds': 0.0}


@dataclasses.dataclass(frozen=True)
class Rehearsal:
  """What was measured of a run, or of runs side by side.

  Attributes:
    parameters: of the model.
    steps: of the whole run.
    epochs: of it.
    loss: mean over the steps taken last.
    start_seconds: from the process's start until the first step was done, with
      loading and compilation.
    step_seconds: of a step, the mean of up to `STEPS` after the first; of runs
      side by side one of each.
    validation_seconds: of one validation, from the time of a few batches; 0
      where nothing validates.
    validations: of the whole run.
    device: its kind.
    devices: how many divide a batch, or the runs.
    device_bytes: highest use of its memory; where it does not tell, as on CPU,
      what JAX's arrays on all devices of this process take, each piece of
      memory counted once.
    device_limit: its memory, 0 where it does not tell.
    host_bytes: highest resident size of this process; None where the system
      does not tell.
    together: how many runs train side by side; 0 for one by itself.
    waves: how many populations it takes, one after another.
    predicted_bytes: that these runs were thought to take of one memory.
    allowed_bytes: that may be planned with.
  """

  parameters: int
  steps: int
  epochs: int
  loss: float
  start_seconds: float
  step_seconds: float
  validation_seconds: float
  validations: int
  device: str
  devices: int
  device_bytes: int
  device_limit: int
  host_bytes: int | None
  together: int = 0
  waves: int = 1
  predicted_bytes: int = 0
  allowed_bytes: int = 0

  @property
  def seconds(self) -> float:
    """Of everything, checkpoints and compilation of later waves left out."""
    return self.start_seconds + self.waves * (
      self.steps * self.step_seconds
      + self.validations * self.validation_seconds
    )


def rehearse(config: config_lib.Config) -> Rehearsal:
  """Compiles, takes the first steps of the epoch in which most trains.

  Nothing is written but what building a synthetic set and JAX's cache of
  compiled programs write outside of any workdir.

  Raises:
    UserError: as `loop.train` before its first step.
  """
  config_lib.validate(config)
  prepared = task.prepare(config)
  feed = prepared.feed
  state = prepared.initial_state()
  parameters = parameter_count(state.params)
  last = config.train.epochs - 1
  feed.block_steps = STEPS
  blocks = feed.train_epoch(state, last)
  state, sums, taken = next(blocks)  # the first block has one step
  jax.block_until_ready(sums)
  start_seconds = time.time() - provenance.process_start()

  begun = time.monotonic()
  # Of the same epoch where it goes on: another starts reading processes anew.
  block = next(blocks, None)
  if block is None:
    taken, block = 0, next(feed.train_epoch(state, last))
  state, sums, now = block
  jax.block_until_ready(sums)
  step_seconds = (time.monotonic() - begun) / (now - taken)

  validation = _NO_VALIDATION
  if feed.validates:
    count = prepared.facts['protocol']['validation']
    validation = _validation(
      config,
      count,
      lambda few: jax.block_until_ready(feed.validate(state, batches=few)),
    )
  return Rehearsal(
    parameters=parameters,
    steps=prepared.total_steps,
    epochs=config.train.epochs,
    loss=step_lib.means(sums)['loss'],
    start_seconds=start_seconds,
    step_seconds=step_seconds,
    **validation,
    **_machine(),
  )


def rehearse_folds(
  config: config_lib.Config, *, seeds: int = 1, how: str = 'auto'
) -> Rehearsal:
  """As `rehearse`, of the largest wave of a cross-validation.

  Args:
    config: as for `crossval.train`; also seeds and how.

  Raises:
    UserError: as `crossval.train` before its first step.
  """
  crossval.require_folds(config)
  blueprint = task.blueprint(config)
  places = crossval.places_of(config, blueprint.dataset, pathlib.Path(), seeds)
  shared, partitions = crossval.shared_by(config, blueprint, places, how)
  return rehearse_population(
    shared,
    [side_by_side.example(shared, p) for p in partitions.values()],
    lambda m: side_by_side.fresh(
      shared, places[m].config, partitions[places[m].fold]
    ),
    len(places),
  )


def rehearse_population(
  shared: side_by_side.Shared,
  examples: Sequence[population.Member],
  fresh: Callable[[int], population.Member],
  count: int,
  most: int = 0,
) -> Rehearsal:
  """As `rehearse`, of runs side by side; fewer where memory is short.

  Args:
    shared: of the runs.
    examples: of `side_by_side.example`, the longest lists included.
    fresh: a run by its number, before its first step.
    count: of all runs.
    most: side by side; 0 for all.

  Raises:
    memory.ExhaustedError: not even one fits.
  """
  need = side_by_side.need_of(shared, examples)
  size = len(side_by_side.waves(shared, examples, most or count, need)[0])
  while True:
    waves = memory.split(range(count), size)
    try:
      with memory.exhaustion_told():
        return _rehearse_wave(
          shared, list(map(fresh, waves[0])), len(waves), need
        )
    except memory.ExhaustedError as error:
      size = error.fewer(len(waves[0]))
      if not size:
        raise


def _rehearse_wave(
  shared: side_by_side.Shared,
  members: list[population.Member],
  waves: int,
  need: memory.Need,
) -> Rehearsal:
  config = shared.config
  members = [_in_last_epoch(config, member) for member in members]
  together = side_by_side.population_of(shared, members)

  def take(most: int) -> int:
    before, together.block_steps = together.taken, most
    next(together.blocks())
    together.wait()
    return int((together.taken - before).max())

  take(1)
  start_seconds = time.time() - provenance.process_start()
  if not together.amid.any():
    for m, member in enumerate(members):
      together.replace(m, member)
    together.wait()
  begun = time.monotonic()
  taken = take(STEPS)
  step_seconds = (time.monotonic() - begun) / taken
  partials = [together.partial(m, 0.0) for m in range(len(members))]
  losses = [step_lib.means(step_lib.sums_of(p))['loss'] for p in partials if p]

  validation = _NO_VALIDATION
  rows = max(len(member.validation_rows) for member in members)
  if rows:
    validation = _validation(config, rows, together.validate)
  predicted = together.predicted_bytes
  if predicted is None:
    each = math.ceil(len(members) / jax.local_device_count())
    predicted = memory.predicted_bytes(need, each, together.mapping)
  return Rehearsal(
    parameters=parameter_count(members[0].state.params),
    steps=int(together.steps_per_epoch.max()) * config.train.epochs,
    epochs=config.train.epochs,
    loss=float(np.mean(losses)),
    start_seconds=start_seconds,
    step_seconds=step_seconds,
    **validation,
    **_machine(),
    together=len(members),
    waves=waves,
    predicted_bytes=predicted,
    allowed_bytes=memory.limit_bytes(jax.local_devices()[0]),
  )


def _in_last_epoch(
  config: config_lib.Config, member: population.Member
) -> population.Member:
  """A run of no step before the epoch in which most trains."""
  size = config.train.batch_size
  steps = feed_lib.padded_length(len(member.train_rows), size) // size
  step = np.asarray((config.train.epochs - 1) * steps, member.state.step.dtype)
  return member._replace(state=member.state._replace(step=step))


def _machine() -> dict[str, Any]:
  """What is known of devices and memory, once the steps are taken."""
  device = jax.local_devices()[0]
  told = device.memory_stats() or {}
  return {
    'device': device.device_kind,
    'devices': jax.device_count(),
    'device_bytes': int(told.get('peak_bytes_in_use') or _array_bytes()),
    'device_limit': int(told.get('bytes_limit', 0)),
    'host_bytes': provenance.peak_memory(),
  }


def _array_bytes() -> int:
  """Of JAX's arrays; devices of a CPU may have one in common."""
  pieces = (
    piece.data for x in jax.live_arrays() for piece in x.addressable_shards
  )
  return sum({x.unsafe_buffer_pointer(): x.nbytes for x in pieces}.values())


def _validation(
  config: config_lib.Config, count: int, validate: Callable[[int], Any]
) -> dict[str, Any]:
  """How many validations there are, and the seconds of one of so many images.

  A validation is its start, and each further batch, from two of a few.

  Args:
    config: of the run.
    count: images.
    validate: on so many batches, and waits.
  """

  def seconds(few):
    begun = time.monotonic()
    validate(few)
    return time.monotonic() - begun

  batches = -(-count // config.train.batch_size)
  seconds(1)  # compiles
  few = min(3, batches)
  first = seconds(1)
  each = max(seconds(few) - first, 0.0) / max(few - 1, 1)
  return {
    'validations': -(-config.train.epochs // config.train.validate_every),
    'validation_seconds': first + (batches - 1) * each,
  }


def text(found: Rehearsal, batch_size: int) -> str:
  """The result as `--dry_run` prints it."""
  device = f'{found.device_bytes / 2**20:,.0f} MiB'
  if found.device_limit:
    device += f' at most, of {found.device_limit / 2**20:,.0f}'
  else:
    device += ' of arrays, in the memory of the host'
  host = 'unknown'
  if found.host_bytes is not None:
    host = f'{found.host_bytes / 2**20:,.0f} MiB at most'
  divided, whole, predicted = '', f'{found.steps:,} steps', ()
  if found.together:
    runs = f'{found.together} run{"s" * (found.together > 1)}'
    divided = f', of {runs} side by side'
    whole = (
      f'{found.waves} wave{"s" * (found.waves > 1)} of at most {runs}, each of '
      f'{whole}'
    )
    predicted = (
      f'memory, predicted {found.predicted_bytes / 2**20:,.0f} MiB; planned '
      f'with are {found.allowed_bytes / 2**20:,.0f}',
    )
  elif found.devices > 1:
    each = batch_size // found.devices
    divided = f', {each:,} of a batch on each of {found.devices} devices'
  rate = max(found.together, 1) * batch_size / found.step_seconds
  validation = 'none'
  if found.validations:
    validation = (
      f'{found.validations}, each {duration(found.validation_seconds)}'
    )
  return '\n'.join(
    (
      f'parameters        {found.parameters:,}',
      f'loss              {found.loss:.4f} over the first steps',
      f'start             {found.start_seconds:.1f} s to the first step, '
      'compilation included',
      f'step              {1000 * found.step_seconds:.1f} ms, '
      f'{rate:,.0f} images/s{divided}',
      f'validation        {validation}',
      *predicted,
      f'memory, {found.device:<9} {device}',
      f'memory, host      {host}',
      f'estimate          {duration(found.seconds)} for {whole} '
      f'in {found.epochs} epochs; no workdir was written',
    )
  )
