"""A run killed at any moment and resumed equals one never interrupted.

The reference is the same run undisturbed, in the same kind of process; equal
means bit for bit.
"""

import json
import pathlib
import shutil
import signal
import time

import forked
import jax
import numpy as np
import pytest
from small_config import small_config

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.training import checkpoint, loop, records, task


def _config(data_dir):
  """Of everything that draws, in epochs long enough to be caught in."""
  config = small_config(data_dir, 'residual_bilstm')
  config.data.options.images = 400
  config.augment.enabled = True
  config.augment.erasing = 0.5
  config.augment.mixup = 0.2
  config.optim.schedule = 'cosine'
  config.train.batch_size = 4
  config.train.epochs = 4
  config.train.block_steps = 20
  config.train.ema_decay = 0.9
  return config


def _start(config, workdir):
  return forked.Command(
    *('train', f'--config={config}', f'--workdir={workdir}'),
    environ={'XLA_FLAGS': ''},  # as outside of tests
    options={
      'jax_platforms': 'cpu',
      'jax_disable_most_optimizations': False,
    },
  )


def _finish(process) -> str:
  status, said, complaints = process.result()
  assert status == 0, complaints
  return said + complaints


def _kill_when(process, happened) -> None:
  """SIGKILL as soon as something is seen; fails if the run ends first."""
  deadline = time.monotonic() + 300
  while not happened():
    assert process.status is None, process.result()
    assert time.monotonic() < deadline
    time.sleep(0.002)
  process.send_signal(signal.SIGKILL)
  process.result()


def _final(workdir):
  config = config_lib.load_json(workdir / 'config.json')
  sealed = checkpoint.latest_intact(workdir)
  run = json.loads((workdir / 'run.json').read_text())
  target = task.abstract_state(config, len(run['class_names']))
  return sealed, checkpoint.restore(sealed, target)


def _timeless(workdir):
  return [
    {
      k: v
      for k, v in record.items()
      if k not in ('time', 'seconds', 'images_per_second')
    }
    for record in records.read_metrics(workdir)
  ]


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
  root = tmp_path_factory.mktemp('resume')
  config = root / 'config.json'
  files.write_json(config, config_lib.to_json(_config(root / 'data')))
  workdir = root / 'undisturbed'
  _finish(_start(config, workdir))
  return config, workdir


def test_killed_three_times_equals_undisturbed(undisturbed, tmp_path):
  config, reference = undisturbed
  workdir: pathlib.Path = tmp_path / 'killed'
  folder = checkpoint.directory(workdir)

  def lines():
    return len(records.read_metrics(workdir))

  # While the second epoch runs, its predecessor's checkpoint being written.
  _kill_when(_start(config, workdir), lambda: lines() == 1)
  before = lines()
  # As soon as another checkpoint's folder appears, sealed or not.
  seen = set(folder.glob('[0-9]*'))
  _kill_when(_start(config, workdir), lambda: set(folder.glob('[0-9]*')) - seen)
  # After the third epoch is logged, wherever its checkpoint is.
  _kill_when(_start(config, workdir), lambda: lines() >= 3)
  output = _finish(_start(config, workdir))
  assert before == 1
  assert 'resuming' in output

  sealed, state = _final(workdir)
  sealed_reference, state_reference = _final(reference)
  assert sealed.step == sealed_reference.step
  assert sealed.best_step == sealed_reference.best_step
  jax.tree.map(np.testing.assert_array_equal, state, state_reference)
  assert _timeless(workdir) == _timeless(reference)
  epochs = [record['epoch'] for record in records.read_metrics(workdir)]
  assert epochs == [1, 2, 3, 4]


def test_block_length_changes_no_bit(undisturbed, tmp_path):
  config, reference = undisturbed
  workdir = tmp_path / 'blocks'
  changed = tmp_path / 'config.json'
  text = config.read_text()
  assert text.count('"block_steps": 20') == 1
  changed.write_text(text.replace('"block_steps": 20', '"block_steps": 37'))
  _finish(_start(changed, workdir))
  jax.tree.map(
    np.testing.assert_array_equal, _final(workdir)[1], _final(reference)[1]
  )


def test_a_finished_run_is_left_as_it_is(undisturbed, capsys):
  _, reference = undisturbed
  before = (reference / 'metrics.jsonl').read_text()
  loop.train(config_lib.load_json(reference / 'config.json'), reference)
  assert 'resuming' in capsys.readouterr().out
  assert (reference / 'metrics.jsonl').read_text() == before


def test_a_damaged_latest_checkpoint_falls_back_aloud(undisturbed, tmp_path):
  config, reference = undisturbed
  workdir = tmp_path / 'damaged'
  shutil.copytree(reference, workdir)
  newest = checkpoint.checkpoints(workdir)[-1]
  victim = max(
    (p for p in newest.path.rglob('*') if p.is_file()),
    key=lambda p: p.stat().st_size,
  )
  content = bytearray(victim.read_bytes())
  content[len(content) // 2] ^= 4
  victim.write_bytes(bytes(content))
  output = _finish(_start(config, workdir))
  assert 'passing over damaged checkpoint' in output
  jax.tree.map(
    np.testing.assert_array_equal, _final(workdir)[1], _final(reference)[1]
  )
