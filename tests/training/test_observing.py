"""What a run shows of itself: heartbeat, profile, dry run."""

import gzip
import json
import os
import time

import jax
import pytest

from fer_jax.data import stream
from fer_jax.training import heartbeat, loop, profile, rehearsal


def test_a_run_leaves_a_heartbeat_and_a_trace(tiny_config, tmp_path, capsys):
  outcome = loop.train(tiny_config, tmp_path, profile_steps=2)

  beat = json.loads((tmp_path / heartbeat.FILE).read_text())
  assert beat['step'] == outcome.step
  assert beat['pid'] == os.getpid()
  assert beat['running'] is False

  (trace,) = (tmp_path / profile.FOLDER).rglob('perfetto_trace.json.gz')
  assert f'profile of 2 steps: open {trace}' in capsys.readouterr().out
  events = json.loads(gzip.decompress(trace.read_bytes()))['traceEvents']
  assert sum('dur' in event for event in events) > 10
  assert list((tmp_path / profile.FOLDER).rglob('*.xplane.pb'))


def test_the_heartbeat_goes_on_and_stops_nothing(tmp_path, caplog):
  folder = tmp_path / 'run'
  folder.mkdir()
  heart = heartbeat.Heartbeat(folder, step=0, epoch=1, every=0.01)
  path = folder / heartbeat.FILE

  def wait_for(happened):
    deadline = time.monotonic() + 10
    while not happened():
      assert time.monotonic() < deadline
      time.sleep(0.005)

  wait_for(lambda: path.exists() and json.loads(path.read_text())['step'] == 0)
  heart.beat(step=7, epoch=2)
  wait_for(lambda: json.loads(path.read_text())['step'] == 7)
  seen = path.stat().st_mtime_ns
  time.sleep(0.05)
  assert path.stat().st_mtime_ns == seen  # nothing new, nothing written

  path.unlink()
  folder.rmdir()
  heart.beat(step=8, epoch=2)
  wait_for(lambda: caplog.text)
  heart.close()
  assert f'cannot write {path}: No such file' in caplog.text
  assert len(caplog.records) == 1


def test_a_dry_run_measures_and_writes_nothing(
  tiny_config, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  # It begins with what trains in the last epoch, by a young Adam.
  tiny_config.optim.freeze = ('backbone',)
  tiny_config.optim.unfreeze_epochs = (1,)
  tiny_config.data.residence = 'stream'
  begun, epoch = [], stream.Stream.epoch
  monkeypatch.setattr(
    stream.Stream,
    'epoch',
    lambda self, *at: begun.append(self) or epoch(self, *at),
  )
  found = rehearsal.rehearse(tiny_config)
  assert begun.count(begun[0]) == 1  # who reads the training list starts once
  assert list(tmp_path.iterdir()) == []
  assert found.epochs == tiny_config.train.epochs
  assert found.steps % found.epochs == 0
  assert found.validations == 2
  assert found.loss > 0
  assert found.host_bytes > found.device_bytes > found.parameters * 4
  assert found.seconds == pytest.approx(
    found.start_seconds
    + found.steps * found.step_seconds
    + 2 * found.validation_seconds
  )
  said = rehearsal.text(found, tiny_config.train.batch_size)
  assert (
    f'for {found.steps:,} steps in 2 epochs; no workdir was written' in said
  )
  assert jax.local_devices()[0].device_kind in said
