"""A run killed at any moment and resumed equals one never interrupted.

The reference is the same run undisturbed, in the same kind of process; equal
means bit for bit.
"""

import pathlib
import shutil
import signal
import time

import equal_runs
import forked
import pytest
from small_config import small_config

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.training import checkpoint, loop, records


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
  equal_runs.assert_same_bits(workdir, reference)


def test_block_length_changes_no_bit(undisturbed, tmp_path):
  config, reference = undisturbed
  workdir = tmp_path / 'blocks'
  changed = tmp_path / 'config.json'
  text = config.read_text()
  assert text.count('"block_steps": 20') == 1
  changed.write_text(text.replace('"block_steps": 20', '"block_steps": 37'))
  _finish(_start(changed, workdir))
  equal_runs.assert_same_bits(workdir, reference)


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
  assert 'passing over checkpoint' in output
  equal_runs.assert_same_bits(workdir, reference)
