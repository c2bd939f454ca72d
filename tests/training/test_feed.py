"""Both feeds take the same steps; what one gives, the other gives."""

import types

import jax
import numpy as np
import pytest
from small_config import small_config

from fer_jax.data import resident
from fer_jax.training import feed, memory, task
from fer_jax.training import step as step_lib


@pytest.fixture(scope='module')
def config(tiny_data):
  config = small_config(tiny_data)
  config.augment.enabled = True
  config.train.block_steps = 2
  return config


def _prepared(config, residence):
  copied = config.copy_and_resolve_references()
  copied.data.residence = residence
  return task.prepare(copied)


def _epoch(prepared, state):
  looks, sums = [], {}
  for block in prepared.feed.train_epoch(state, 1):
    state, sums, taken = block
    looks.append(taken)
  return state, sums, looks


def test_streamed_and_resident_steps_agree(config):
  resident = _prepared(config, 'device')
  streamed = _prepared(config, 'stream')
  state, sums, looks = _epoch(resident, resident.initial_state())
  other, other_sums, other_looks = _epoch(streamed, streamed.initial_state())
  # The first after a step: who is asked to leave by then has something to save.
  assert looks == other_looks == [1, 3, resident.feed.steps_per_epoch]
  assert int(state.step) == int(other.step) == looks[-1]
  # Two programs: equal to rounding, which Adam's first steps enlarge.
  np.testing.assert_allclose(sums['loss'], other_sums['loss'], rtol=1e-4)
  assert float(sums['weight']) == float(other_sums['weight'])
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=2e-3),
    state.params,
    other.params,
  )
  first = step_lib.means(resident.feed.validate(state))
  second = step_lib.means(streamed.feed.validate(state))
  assert first == pytest.approx(second, rel=1e-5)


def test_a_streamed_block_is_sent_before_the_one_before_it_is_looked_at(
  monkeypatch,
):
  """The fifth step's loss is not finite."""
  happened = []

  class Active:
    def __init__(self, steps):
      self.steps = steps

    def __bool__(self):
      happened.append(f'looked at {self.steps}')
      return self.steps < 5

  def step(steps, sums, batch, plan):
    happened.append(f'sent {batch}')
    return batch, sums, Active(batch)

  monkeypatch.setattr(step_lib, 'make_stream_step', lambda *_: step)
  training = types.SimpleNamespace(
    steps_per_epoch=9, epoch=lambda epoch, start: (n for n in range(1, 10))
  )
  streamed = feed.StreamFeed(
    training,
    None,
    plan=step_lib.Plan(jax.random.key(0)),
    graphdef=None,
    settings_of=lambda epoch: step_lib.StepSettings(batch_size=1),
    block_steps=2,
  )
  for _, _, taken in streamed.train_epoch(0, 0):
    happened.append(f'given {taken}')
  assert happened == [
    'sent 1', 'given 1',
    'sent 2', 'sent 3', 'given 3', 'looked at 1',
    'sent 4', 'sent 5', 'given 5', 'looked at 3',
    'sent 6', 'sent 7', 'given 7', 'looked at 5',
  ]  # fmt: skip


def test_class_balanced_batches_agree_and_validation_is_as_it_was(
  config, monkeypatch
):
  size = config.train.batch_size
  batches = []

  def make_block(graphdef, settings, mesh):
    def block(state, sums, images, order, count, start, stop, key):
      for n in range(start, stop):
        here = np.arange(n * size, (n + 1) * size)
        weight = (here < count).astype(np.float32)
        batches.append(resident.gather(images, order[here], weight))
      return state, sums

    return block

  def make_stream_step(graphdef, settings, mesh):
    def step(state, sums, batch, key):
      batches.append(batch)
      return state, sums, True

    return step

  def make_validation(graphdef, settings, mesh):
    def validate(state, images, rows, count):
      batches.append(
        resident.gather(images, rows, np.arange(len(rows)) < count)
      )
      return step_lib.zero_sums()

    return validate

  # What reaches the steps, without the time that compiling them takes.
  for name, stand_in in (
    ('make_block', make_block),
    ('make_stream_step', make_stream_step),
    ('make_validation', make_validation),
  ):
    monkeypatch.setattr(step_lib, name, stand_in)
  balanced = config.copy_and_resolve_references()
  balanced.train.sampling = 'class_balanced'
  state = types.SimpleNamespace()

  def epoch(prepared):
    batches.clear()
    list(prepared.feed.train_epoch(state, 1))
    return [jax.tree.map(np.asarray, batch) for batch in batches]

  def validated(prepared):
    batches.clear()
    prepared.feed.validate(state)
    return batches[0]

  held, plain = _prepared(balanced, 'device'), _prepared(config, 'device')
  drawn, streamed = epoch(held), epoch(_prepared(balanced, 'stream'))
  assert len(drawn) == len(streamed) == held.feed.steps_per_epoch
  jax.tree.map(np.testing.assert_array_equal, drawn, streamed)
  jax.tree.map(np.testing.assert_array_equal, validated(held), validated(plain))

  def images(batches):
    real = [batch['image'][batch['weight'] > 0] for batch in batches]
    return np.concatenate(real)

  # With replacement: as many as the list has, some of them again.
  some, every = images(drawn), images(epoch(plain))
  assert len(some) == len(every)
  assert len(np.unique(some, axis=0)) < 0.8 * len(np.unique(every, axis=0))


def test_auto_streams_what_exceeds_the_limit(config, monkeypatch):
  dataset = task.load_dataset(config)
  from fer_jax.data import protocol

  partition = protocol.resolve(dataset, 'official')
  assert not task.streams(config, dataset, partition)
  small = config.copy_and_resolve_references()
  small.data.resident_gib = 1e-6
  assert task.streams(small, dataset, partition)
  # However many devices a CPU is divided into, it holds the set once.
  with monkeypatch.context() as patch:
    patch.setattr(jax, 'local_device_count', lambda: 2**40)
    assert not task.streams(config, dataset, partition)
  monkeypatch.setattr(memory, 'limit_bytes', lambda device: 1000)
  assert task.streams(config, dataset, partition)
