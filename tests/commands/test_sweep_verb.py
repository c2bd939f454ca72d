"""The verb `sweep`: what it says beforehand."""

import pytest
from small_config import small_config

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.training import cores

# Of ml_collections, which loads config files so.
pytestmark = pytest.mark.filterwarnings(
  'ignore:the load_module:DeprecationWarning'
)

SPACE = """
from fer_jax import config as base
from fer_jax.tuning import choice, uniform

def get_config():
  return base.load_json('small.json')

def get_space():
  return {
    'optim.learning_rate': choice(1e-3, 1e-2),
    'optim.l2': uniform(0.1, 0.2),
  }
"""


def test_a_dry_run_needs_no_workdir_and_makes_none(
  tmp_path, monkeypatch, command_line
):
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(cores, 'spread', lambda parts: None)
  config = small_config(
    tmp_path / 'data', stem_filters=(2,), filters=(2,), units=2, head=()
  )
  config.data.image_size = 8
  files.write_json(tmp_path / 'small.json', config_lib.to_json(config))
  (tmp_path / 'space.py').write_text(SPACE)
  there = set(tmp_path.iterdir())
  status, said, why = command_line(
    *('sweep', '--config=space.py', '--dry_run', '--trials=4'),
    *('--population=2', '--workdir=runs/mine', '--storage=sqlite:///x.db'),
  )
  assert status == 0, why
  assert 'space             1 shape, 4 trials' in said
  untried = 'are no trial: optim.l2 is 0.0, outside of uniform(0.1, 0.2);'
  assert untried in said
  assert 'storage           sqlite:///x.db, which is to be made' in said
  assert 'images/s, of 2 runs side by side' in said
  assert set(tmp_path.iterdir()) - there <= {
    tmp_path / 'data',
    tmp_path / '__pycache__',
  }
