"""A cross-validation that is left or killed, and gone on with bit for bit.

Reference: the same one that nobody disturbed.
"""

import signal

import equal_runs
import forked
import pytest
from asked_to_leave import AskedAfter, Killed, KilledAfter
from small_config import small_config

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.training import checkpoint, crossval, preemption, records

pytestmark = pytest.mark.usefixtures('shared_programs')


@pytest.fixture(scope='module')
def config(tiny_data):
  """Two folds of two epochs; blocks of a step, so that they are counted."""
  config = small_config(tiny_data)
  config.data.protocol = 'kfold_subjects'
  config.data.folds = 2
  config.train.batch_size = 16
  config.train.block_steps = 1
  return config


@pytest.fixture(scope='module')
def whole(config, tmp_path_factory, shared_programs):
  """The one that nobody disturbs."""
  return crossval.train(config, tmp_path_factory.mktemp('whole'))


def _assert_alike(whole, parted):
  for one, other in zip(whole.places, parted.places, strict=True):
    equal_runs.assert_same_bits(other.workdir, one.workdir)


def test_folds_are_left_amid_epochs_and_gone_on_with(config, whole, tmp_path):
  amid = set()
  # A block a life: the last one of an epoch, and of a shorter fold's, too.
  while not (
    parted := crossval.train(config, tmp_path, notice=AskedAfter(2))
  ).finished:
    for place in parted.places:
      sealed = checkpoint.latest_intact(place.workdir)
      assert len(records.read_metrics(place.workdir)) == sealed.epoch
      if sealed.partial:
        assert 0 < sealed.partial.taken <= sealed.step
        amid.add((place.fold, sealed.epoch))
    assert len(amid) <= 4
  assert len(amid) == 4  # two folds, two epochs
  _assert_alike(whole, parted)


def test_long_epochs_of_folds_are_saved_amid_them(
  config, whole, tmp_path, monkeypatch
):
  # Two polls are before any block, the fifth is after the third one.
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, 'AMID_SECONDS', 0.0)
    with pytest.raises(Killed):
      crossval.train(config, tmp_path, notice=KilledAfter(4))
  for place in whole.places:
    sealed = checkpoint.latest_intact(tmp_path / place.workdir.name)
    assert (sealed.epoch, sealed.step, sealed.partial.taken) == (0, 2, 2)
  _assert_alike(whole, crossval.train(config, tmp_path))


def test_a_process_that_is_asked_saves_its_folds_and_leaves(
  config, whole, tmp_path
):
  longer = config.copy_and_resolve_references()
  longer.train.epochs = 1000
  files.write_json(tmp_path / 'config.json', config_lib.to_json(longer))
  folder = tmp_path / 'folds'
  process = forked.Command(
    *('crossval', f'--config={tmp_path / "config.json"}'),
    f'--workdir={folder}',
    # As here, so that programs are those that were compiled for `whole`.
    options={'jax_platforms': 'cpu', 'jax_num_cpu_devices': 1},
  )
  for line in process.stdout:
    if line.startswith('epoch 2/'):
      break
  process.send_signal(signal.SIGTERM)
  status, said, complaints = process.result()
  assert status == preemption.REQUEUE_STATUS, complaints
  assert 'SIGTERM: finishing the block under way' in complaints
  assert 'left when asked to, to be resumed by the same command' in said
  for place in whole.places:
    sealed = checkpoint.latest_intact(folder / place.workdir.name)
    found = records.read_metrics(folder / place.workdir.name)
    assert sealed.epoch == len(found) >= 2
