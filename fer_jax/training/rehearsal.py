"""A run's first steps without the run: what it takes of memory and time."""

import dataclasses
import time

import jax

from fer_jax import config as config_lib
from fer_jax import provenance
from fer_jax.training import step as step_lib
from fer_jax.training import task
from fer_jax.training.display import duration
from fer_jax.training.state import parameter_count

STEPS = 2


@dataclasses.dataclass(frozen=True)
class Rehearsal:
  """What was measured.

  Attributes:
    parameters: of the model.
    steps: of the whole run.
    epochs: of it.
    loss: mean over the steps taken last.
    start_seconds: from the process's start until the first step was done, with
      loading and compilation.
    step_seconds: of a step, the mean of up to `STEPS` after the first.
    validation_seconds: of one validation, from the time of a few batches; 0
      where nothing validates.
    validations: of the whole run.
    device: its kind.
    devices: how many divide a batch.
    device_bytes: highest use of its memory; where it does not tell, as on CPU,
      what JAX's arrays on all devices of this process take, each piece of
      memory counted once.
    device_limit: its memory, 0 where it does not tell.
    host_bytes: highest resident size of this process; None where the system
      does not tell.
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

  @property
  def seconds(self) -> float:
    """Of the whole run, checkpoints left out."""
    return (
      self.start_seconds
      + self.steps * self.step_seconds
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

  validations, validation_seconds = 0, 0.0
  if feed.validates:
    every = config.train.validate_every
    validations = -(-config.train.epochs // every)
    count = prepared.facts['protocol']['validation']
    batches = -(-count // config.train.batch_size)
    validation_seconds = _validation_seconds(feed, state, batches)

  device = jax.local_devices()[0]
  memory = device.memory_stats() or {}
  return Rehearsal(
    parameters=parameters,
    steps=prepared.total_steps,
    epochs=config.train.epochs,
    loss=step_lib.means(sums)['loss'],
    start_seconds=start_seconds,
    step_seconds=step_seconds,
    validation_seconds=validation_seconds,
    validations=validations,
    device=device.device_kind,
    devices=jax.device_count(),
    device_bytes=int(memory.get('peak_bytes_in_use') or _array_bytes()),
    device_limit=int(memory.get('bytes_limit', 0)),
    host_bytes=provenance.peak_memory(),
  )


def _array_bytes() -> int:
  """Of JAX's arrays; devices of a CPU may have one in common."""
  pieces = (
    piece.data for x in jax.live_arrays() for piece in x.addressable_shards
  )
  return sum({x.unsafe_buffer_pointer(): x.nbytes for x in pieces}.values())


def _validation_seconds(feed, state, batches: int) -> float:
  """Of one validation: its start, and each further batch, from two of a few."""

  def seconds(few):
    begun = time.monotonic()
    jax.block_until_ready(feed.validate(state, batches=few))
    return time.monotonic() - begun

  seconds(1)  # compiles
  few = min(3, batches)
  first = seconds(1)
  each = max(seconds(few) - first, 0.0) / max(few - 1, 1)
  return first + (batches - 1) * each


def text(found: Rehearsal, batch_size: int) -> str:
  """The result as `train --dry_run` prints it."""
  device = f'{found.device_bytes / 2**20:,.0f} MiB'
  if found.device_limit:
    device += f' at most, of {found.device_limit / 2**20:,.0f}'
  else:
    device += ' of arrays, in the memory of the host'
  host = 'unknown'
  if found.host_bytes is not None:
    host = f'{found.host_bytes / 2**20:,.0f} MiB at most'
  divided = ''
  if found.devices > 1:
    each = batch_size // found.devices
    divided = f', {each:,} of a batch on each of {found.devices} devices'
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
      f'{batch_size / found.step_seconds:,.0f} images/s{divided}',
      f'validation        {validation}',
      f'memory, {found.device:<9} {device}',
      f'memory, host      {host}',
      f'estimate          {duration(found.seconds)} for {found.steps:,} steps '
      f'in {found.epochs} epochs; no workdir was written',
    )
  )
