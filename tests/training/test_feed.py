"""Both feeds take the same steps; what one gives, the other gives."""

import jax
import numpy as np
import pytest

from fer_jax import config as config_lib
from fer_jax.training import step as step_lib
from fer_jax.training import task


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  config = config_lib.get_base()
  config.data.data_dir = str(tmp_path_factory.mktemp('data'))
  config.data.options.images = 160
  config.data.image_size = 16
  config.model.stem_filters = (4,)
  config.model.filters = (4,)
  config.model.blocks = (1,)
  config.model.units = 4
  config.model.head = (4,)
  config.train.batch_size = 32
  config.train.block_steps = 2
  return config


def _prepared(config, residence):
  copied = config.copy_and_resolve_references()
  copied.data.residence = residence
  return task.prepare(copied)


def _epoch(prepared, state):
  taken, sums = 0, {}
  for block in prepared.feed.train_epoch(state, 1):
    state, sums, taken = block
  return state, sums, taken


def test_streamed_and_resident_steps_agree(config):
  resident = _prepared(config, 'device')
  streamed = _prepared(config, 'stream')
  state, sums, taken = _epoch(resident, resident.initial_state())
  other, other_sums, other_taken = _epoch(streamed, streamed.initial_state())
  assert taken == other_taken == resident.feed.steps_per_epoch
  assert int(state.step) == int(other.step) == taken
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


def test_auto_streams_what_exceeds_the_limit(config):
  dataset = task.load_dataset(config)
  from fer_jax.data import protocol

  partition = protocol.resolve(dataset, 'official')
  assert not task.streams(config, dataset, partition)
  small = config.copy_and_resolve_references()
  small.data.resident_gib = 1e-6
  assert task.streams(small, dataset, partition)
