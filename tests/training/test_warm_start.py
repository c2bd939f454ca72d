"""A run begins with the weights of a file, and never needs it again."""

import hashlib

import jax.numpy as jnp
import numpy as np
import pytest

from fer_jax import files
from fer_jax.errors import UserError
from fer_jax.models import pretrained
from fer_jax.training import loop, task
from fer_jax.training.inference import Predictor


@pytest.fixture
def weights(tmp_path, monkeypatch):
  """A file of one number; loading it fills the stem's convolution and the
  statistics after it with that."""
  path = tmp_path / 'weights.npy'
  np.save(path, np.float32(0.25))

  def load(model, path, family=None):
    del family
    value = np.load(path)
    stem = model.backbone['conv1']
    kernel = stem.conv.kernel
    kernel.set_value(jnp.full(kernel.shape, value))
    stem.norm.mean.set_value(jnp.full(stem.norm.mean.shape, value))

  monkeypatch.setattr(pretrained, 'load_pretrained', load)
  return path


def test_a_run_begins_with_the_file_and_goes_on_without(
  tiny_config, weights, tmp_path, capsys
):
  config = tiny_config
  config.train.pretrained = str(weights)
  config.train.ema_decay = 0.9
  config.optim.freeze = ('backbone.conv1',)
  digest = hashlib.sha256(weights.read_bytes()).hexdigest()
  workdir = tmp_path / 'run'
  loop.train(config, workdir, max_seconds=1e-3)
  weights.unlink()
  assert loop.train(config, workdir).finished

  run = files.read_json(workdir / 'run.json')
  assert run['pretrained'] == {'path': str(weights), 'sha256': digest}
  assert run['frozen'] == ['backbone.conv1']
  assert 'train; frozen: backbone.conv1\n' in capsys.readouterr().out
  # Frozen, so still what the file held, in the averages too.
  params, model_state = Predictor.from_workdir(workdir)._arrays
  stem = params['backbone']['conv1']['conv']['kernel']
  np.testing.assert_array_equal(stem, np.full(stem.shape, 0.25))
  mean = model_state['backbone']['conv1']['norm']['mean']
  np.testing.assert_array_equal(mean, np.full(mean.shape, 0.25))


def test_averages_begin_with_the_file(tiny_config, weights):
  tiny_config.train.pretrained = str(weights)
  tiny_config.train.ema_decay = 0.9
  state = task.prepare(tiny_config).initial_state()
  for params in (state.params, state.ema['params']):
    kernel = params['backbone']['conv1']['conv']['kernel']
    np.testing.assert_array_equal(kernel, np.full(kernel.shape, 0.25))


def test_a_file_that_is_not_there_is_named_with_its_field(
  tiny_config, weights, tmp_path
):
  tiny_config.train.pretrained = str(tmp_path / 'other.npy')
  with pytest.raises(UserError, match=r"train\.pretrained is '.*other\.npy': "):
    loop.train(tiny_config, tmp_path / 'run')


def test_a_model_without_such_a_backbone_says_so(tiny_config, tmp_path):
  tiny_config.train.pretrained = 'vgg16.h5'
  with pytest.raises(
    UserError,
    match=r"train\.pretrained is 'vgg16\.h5': .*one of .* models .*vgg16_gru",
  ):
    loop.train(tiny_config, tmp_path)
