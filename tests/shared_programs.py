"""Programs of training, made once for the tests of a process.

Every run traces its own anew, which is most of the time of a small one. Equal
runs of files that ask for the fixture `shared_programs` have theirs in common.
Not for tests that change what a program is traced from.
"""

import contextlib
import functools
import json

import pytest

from fer_jax import config as config_lib
from fer_jax.training import population, task
from fer_jax.training import step as step_lib


class _Maker:
  """A run's first state is made of these fields alone; its scalars are set
  afterwards."""

  def __init__(self, config, num_classes):
    self.config, self.num_classes = config, num_classes
    self.key = (
      config.model.name,
      json.dumps(config_lib.model_overrides(config), default=str),
      task.optim_settings(config),
      config.train.ema_decay > 0,
      num_classes,
    )

  def __eq__(self, other):
    return self.key == other.key

  def __hash__(self):
    return hash(self.key)


_make_state = task.state_maker
_states = functools.cache(
  lambda maker: _make_state(maker.config, maker.num_classes)
)
_SHARED = [
  (step_lib, 'make_block'),
  (step_lib, 'make_stream_step'),
  (step_lib, 'make_stream_validation'),
  (step_lib, 'make_validation'),
  (population, '_Programs'),
]
_CACHED = [functools.cache(getattr(owner, name)) for owner, name in _SHARED]


@contextlib.contextmanager
def shared():
  """Equal runs share their programs meanwhile, and with those of before."""
  with pytest.MonkeyPatch.context() as patch:
    for (owner, name), cached in zip(_SHARED, _CACHED, strict=True):
      patch.setattr(owner, name, cached)
    patch.setattr(
      task, 'state_maker', lambda *arguments: _states(_Maker(*arguments))
    )
    yield
