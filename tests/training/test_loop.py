"""What a run leaves in its workdir, and how it refuses to begin or go on."""

import json
import os
import time

import numpy as np
import pytest
from PIL import Image

from fer_jax.errors import UserError
from fer_jax.training import checkpoint, loop, records, task
from fer_jax.training.inference import Predictor

pytestmark = pytest.mark.usefixtures('shared_programs')


def test_a_run_and_its_predictions(tiny_config, tmp_path, capsys):
  config = tiny_config
  config.train.ema_decay = 0.5
  outcome = loop.train(config, tmp_path)

  # What is in the workdir.
  metrics = records.read_metrics(tmp_path)
  assert [record['epoch'] for record in metrics] == [1, 2]
  best = max(metrics, key=lambda record: record['validation']['accuracy'])
  assert outcome.best_step == best['step']
  run = json.loads((tmp_path / 'run.json').read_text())
  assert run['protocol']['leaks'] is False
  assert run['seconds_to_first_step'] > 0
  assert len(run['dataset']['checksum']) == 64
  assert list((tmp_path / 'tensorboard').glob('events*'))
  assert 'validation loss' in capsys.readouterr().out

  # The best checkpoint predicts what validation measured.
  predictor = Predictor.from_workdir(tmp_path)
  assert predictor.step == outcome.best_step
  dataset = task.load_dataset(config)
  from fer_jax.data import protocol, resident

  rows = protocol.resolve(dataset, 'official').validation
  images = resident.load_resident(
    dataset, rows, image_size=(16, 16), channels=1
  )
  logits = predictor.predict(images['image'])
  accuracy = np.mean(logits.argmax(-1) == images['label'])
  assert accuracy == pytest.approx(best['validation']['accuracy'], abs=1e-6)

  # One image by itself is predicted as it is among others.
  alone = predictor.predict(images['image'][3:4])
  np.testing.assert_allclose(alone[0], logits[3], rtol=1e-5, atol=1e-5)

  # Views: the mean probability of an image and its mirror image.
  def probabilities(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)

  both = predictor.predict(images['image'], views=('plain', 'flip'))
  mirrored = predictor.predict(
    np.ascontiguousarray(images['image'][:, :, ::-1])
  )
  expected = (probabilities(logits) + probabilities(mirrored)) / 2
  np.testing.assert_allclose(probabilities(both), expected, atol=1e-5)

  weights, grid = predictor.attention(images['image'][:2])
  assert weights.shape == (2, grid[0] * grid[1])
  np.testing.assert_allclose(weights.sum(-1), 1.0, rtol=1e-5)
  with pytest.raises(UserError, match='unknown view'):
    predictor.predict(images['image'], views=('zoom',))
  # Scaled already, one without the axis of images, of another size, none.
  grey = images['image']
  for wrong, said in (
    (np.float32(grey / 255), r'got float32 \(\d+, 16, 16, 1\)'),
    (grey[0], r'got uint8 \(16, 16, 1\)'),
    (
      grey[:2, :8],
      r'uint8 of 0 to 255, .* got uint8 \(2, 8, 16, 1\)',
    ),
    (grey[0].tolist(), 'got list'),
    (grey[:0], 'there are no images'),
  ):
    for ask in (predictor.predict, predictor.attention):
      with pytest.raises(UserError, match=said):
        ask(wrong)
  # A mask of other clips, of more of them, or of none.
  clips = np.stack([grey[:4], grey[:4]], 1)
  for mask, images in (
    (np.ones((3, 2), bool), clips),
    (np.ones((5, 2), bool), clips),
    (np.ones((4, 2), bool), grey[:4]),
  ):
    for ask in (predictor.predict, predictor.attention):
      with pytest.raises(UserError, match=r'frame_mask is bool \(n, frames\)'):
        ask(images, mask)


def test_five_crops_are_what_pillow_cuts_out(tiny_config):
  from fer_jax.training.inference import CROP_SIDE, _crops

  rng = np.random.default_rng(0)
  image = rng.integers(0, 255, (1, 20, 20, 1)).astype(np.float32)
  crops = _crops(image)
  side = round(20 * CROP_SIDE)
  for crop, (top, left) in zip(
    crops, [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)], strict=True
  ):
    cut = Image.fromarray(image[0, top : top + side, left : left + side, 0])
    resized = np.asarray(cut.resize((20, 20), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(crop[0, :, :, 0], resized, atol=0.01)


def test_a_loss_that_is_not_finite_stops_and_says_the_step(
  tiny_config, tmp_path
):
  loop.train(tiny_config, tmp_path / 'good')
  tiny_config.optim.learning_rate = 1e30
  with pytest.raises(UserError, match=r'not finite at step \d+ \(epoch 1\)'):
    loop.train(tiny_config, tmp_path / 'bad')
  assert records.read_metrics(tmp_path / 'bad') == []


def test_patience_stops_early_and_a_rerun_leaves_it_so(tiny_config, tmp_path):
  tiny_config.train.epochs = 30
  tiny_config.train.patience = 1
  tiny_config.optim.learning_rate = 1e-12
  outcome = loop.train(tiny_config, tmp_path)
  assert outcome.stopped_early
  assert outcome.epoch < 5
  assert checkpoint.best_intact(tmp_path).step == outcome.best_step
  assert loop.train(tiny_config, tmp_path) == outcome


def test_max_seconds_leaves_in_good_order(tiny_config, tmp_path, monkeypatch):
  tiny_config.train.select = 'loss'
  monkeypatch.setattr(loop, '_RUNS', iter([1, 2]))  # not the process's first
  begun = time.time()
  first = loop.train(tiny_config, tmp_path, max_seconds=1e-3)
  run = json.loads((tmp_path / 'run.json').read_text())
  assert 0 < run['seconds_to_first_step'] < time.time() - begun
  assert first.epoch == 1
  assert not first.finished
  second = loop.train(tiny_config, tmp_path)
  assert second.epoch == 2
  assert second.finished
  losses = [r['validation']['loss'] for r in records.read_metrics(tmp_path)]
  assert second.best_metric == pytest.approx(min(losses))


def test_a_run_is_not_resumed_on_other_data(tiny_config, tmp_path):
  loop.train(tiny_config, tmp_path, max_seconds=1e-3)
  run = json.loads((tmp_path / 'run.json').read_text())
  known = dict(run['dataset'])
  for what in ('checksum', 'version'):
    run['dataset'] = known | {what: 'another'}
    (tmp_path / 'run.json').write_text(json.dumps(run))
    with pytest.raises(UserError, match=f'with {what} another, but the one'):
      loop.train(tiny_config, tmp_path)
    assert json.loads((tmp_path / 'run.json').read_text()) == run


def test_parameters_that_the_last_update_broke_are_not_kept(
  tiny_config, tmp_path
):
  # One step an epoch: its loss is finite, what it leaves is not.
  tiny_config.optim.name = 'sgd'
  tiny_config.optim.learning_rate = 1e38
  prepared = task.prepare(tiny_config)
  tiny_config.train.batch_size = prepared.facts['protocol']['train']
  with pytest.raises(UserError, match=r'not finite at step 1 .*no checkpoint'):
    loop.train(tiny_config, tmp_path)
  assert checkpoint.steps(tmp_path) == []

  # Nothing was trained, so a better config may have the workdir.
  tiny_config.optim.learning_rate = 1e-3
  assert loop.train(tiny_config, tmp_path).epoch == 2


def test_two_processes_do_not_share_a_workdir(tiny_config, tmp_path):
  with (
    loop.claimed(tmp_path, tiny_config),
    pytest.raises(UserError, match='another process trains'),
    loop.claimed(tmp_path, tiny_config),
  ):
    pass
  with loop.claimed(tmp_path, tiny_config):
    pass


def test_a_batch_larger_than_the_data_is_refused(tiny_config, tmp_path):
  tiny_config.train.batch_size = 4096
  with pytest.raises(UserError, match=r'train\.batch_size is 4096; .*at most'):
    loop.train(tiny_config, tmp_path)


def test_more_steps_than_can_be_counted_are_refused(tiny_config, tmp_path):
  tiny_config.train.epochs = 10**9
  with pytest.raises(
    UserError, match=r'train\.epochs is 1000000000; .* most 536870911, of 4 st'
  ):
    loop.train(tiny_config, tmp_path)


def test_another_config_is_refused_and_nothing_is_lost(tiny_config, tmp_path):
  loop.train(tiny_config, tmp_path)
  before = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
  tiny_config.seed = 9
  with pytest.raises(UserError, match='seed is 0 there and 9 here'):
    loop.train(tiny_config, tmp_path)
  after = {p: p.read_bytes() for p in tmp_path.rglob('*') if p.is_file()}
  assert before == after


@pytest.mark.parametrize('place', ['', 'fold_0/'])
def test_figures_outlive_no_other_config(tiny_config, tmp_path, place):
  """Left without checkpoints they would pass for those of the next run."""
  with loop.claimed(tmp_path, tiny_config):
    pass
  written = (tmp_path / 'config.json').read_text()
  (tmp_path / place).mkdir(exist_ok=True)
  figures = tmp_path / place / 'metrics_test.json'
  figures.write_text('{}')
  with loop.claimed(tmp_path, tiny_config):
    pass
  tiny_config.seed = 1
  with pytest.raises(UserError, match='made by another config: seed is 0'):
    loop.train(tiny_config, tmp_path)
  assert (tmp_path / 'config.json').read_text() == written
  figures.unlink()
  with loop.claimed(tmp_path, tiny_config):
    pass


def test_a_workdir_that_is_a_file_is_named(tiny_config, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='is a file; expected a folder'):
    loop.train(tiny_config, tmp_path / 'file')


def test_no_workdir_is_named(tmp_path):
  with pytest.raises(UserError, match=r'has no config\.json'):
    Predictor.from_workdir(tmp_path)
  with pytest.raises(UserError, match=r"which is 'last'; .* best, latest"):
    Predictor.from_workdir(tmp_path, 'last')


def test_files_are_readable_by_whom_the_umask_allows(tmp_path):
  from fer_jax import files

  mask = os.umask(0o022)
  try:
    files.write_json(tmp_path / 'a.json', {})
  finally:
    os.umask(mask)
  assert (tmp_path / 'a.json').stat().st_mode & 0o777 == 0o644
