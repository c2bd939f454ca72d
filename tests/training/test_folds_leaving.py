"""A cross-validation that is asked to leave, and gone on with bit for bit.

Reference: the same one that nobody asked.
"""

import jax
import numpy as np
import pytest

from fer_jax.training import checkpoint, crossval, preemption, records, task

pytestmark = pytest.mark.usefixtures('shared_programs')


class _AskedAfter(preemption.Notice):
  """Is asked after so many polls."""

  def __init__(self, polls: int):
    super().__init__()
    self._left = polls

  def agreed(self) -> bool:
    self._left -= 1
    self.asked = self._left < 0
    return self.asked


def test_folds_are_left_amid_epochs_and_gone_on_with(tiny_config, tmp_path):
  config = tiny_config
  config.data.protocol = 'kfold_subjects'
  config.data.folds = 2
  config.train.batch_size = 16
  config.train.block_steps = 1  # so that blocks are counted, not timed
  whole = crossval.train(config, tmp_path / 'whole')
  folder = tmp_path / 'parted'
  amid = set()
  # A block a life: the last one of an epoch, and of a shorter fold's, too.
  while not (
    parted := crossval.train(config, folder, notice=_AskedAfter(2))
  ).finished:
    for place in parted.places:
      sealed = checkpoint.latest_intact(place.workdir)
      assert len(records.read_metrics(place.workdir)) == sealed.epoch
      if sealed.partial:
        assert 0 < sealed.partial.taken <= sealed.step
        amid.add((place.fold, sealed.epoch))
    assert len(amid) <= 4
  assert len(amid) == 4  # two folds, two epochs

  times = ('time', 'seconds', 'images_per_second', 'device_seconds')
  for one, other in zip(whole.places, parted.places, strict=True):
    assert [
      {name: x for name, x in record.items() if name not in times}
      for record in records.read_metrics(one.workdir)
    ] == [
      {name: x for name, x in record.items() if name not in times}
      for record in records.read_metrics(other.workdir)
    ]
    target = task.abstract_state(one.config, 7)
    states = [
      checkpoint.restore(checkpoint.latest_intact(place.workdir), target)
      for place in (one, other)
    ]
    jax.tree.map(np.testing.assert_array_equal, *states)
    assert checkpoint.steps(one.workdir) == checkpoint.steps(other.workdir)
