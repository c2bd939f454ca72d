"""What runs show of themselves: heartbeat, events, profile, dry run."""

import gzip
import json
import os
import time

import jax
import observed
import pytest
from asked_to_leave import AskedAfter

from fer_jax.data import stream
from fer_jax.training import (
  checkpoint,
  crossval,
  heartbeat,
  journal,
  loop,
  memory,
  observer,
  profile,
  records,
  rehearsal,
)

FOLDS = 2


@pytest.fixture
def folds_config(tiny_config):
  """Two folds of two epochs; blocks of a step, so that they are counted."""
  config = tiny_config
  config.data.protocol = 'kfold_subjects'
  config.data.folds = FOLDS
  config.train.batch_size = 16
  config.train.block_steps = 1
  return config


def _trace(folder):
  (trace,) = (folder / profile.FOLDER).rglob('perfetto_trace.json.gz')
  events = json.loads(gzip.decompress(trace.read_bytes()))['traceEvents']
  assert sum('dur' in event for event in events) > 10
  return trace


def test_a_run_leaves_a_heartbeat_and_a_trace(tiny_config, tmp_path, capsys):
  outcome = loop.train(tiny_config, tmp_path, profile_steps=2)

  beat = json.loads((tmp_path / heartbeat.FILE).read_text())
  assert beat['step'] == outcome.step
  assert beat['pid'] == os.getpid()
  assert beat['running'] is False
  assert 'members' not in beat

  trace = _trace(tmp_path)
  assert f'profile of 2 steps: open {trace}' in capsys.readouterr().out
  assert list((tmp_path / profile.FOLDER).rglob('*.xplane.pb'))


def test_folds_leave_a_heartbeat_a_trace_and_events(
  folds_config, tmp_path, capsys, monkeypatch
):
  beats = observed.beats(monkeypatch)
  outcome = crossval.train(folds_config, tmp_path, profile_steps=2)
  assert outcome.finished
  workdirs = [place.workdir for place in outcome.places]
  steps = [records.read_metrics(workdir)[-1]['step'] for workdir in workdirs]

  # It moves with every block, by the fold that is furthest on.
  moved = [where['step'] for where in beats]
  assert moved == sorted(moved)
  assert len(set(moved)) > max(steps) // 2
  assert [where['members'] for where in beats[:2]] == [0, FOLDS]
  assert {where['epoch'] for where in beats} == {1, 2}
  kept = json.loads((tmp_path / heartbeat.FILE).read_text())
  assert kept['step'] == max(steps)
  assert kept['members'] == 0
  assert kept['running'] is False
  trace = _trace(tmp_path)
  assert f'profile of 2 steps: open {trace}' in capsys.readouterr().out

  first, last = journal.read(tmp_path)
  assert (first['event'], first['runs']) == ('started', FOLDS)
  assert first['environment']['versions']['jax'] == jax.__version__
  assert last['event'] == 'finished'
  for workdir, step in zip(workdirs, steps, strict=True):
    first, last = journal.read(workdir)
    assert (first['event'], first['step']) == ('started', 0)
    assert (last['event'], last['epoch'], last['step']) == ('finished', 2, step)


def test_folds_that_were_left_are_resumed_by_their_events(
  folds_config, tmp_path
):
  crossval.train(folds_config, tmp_path, notice=AskedAfter(4))
  outcome = crossval.train(folds_config, tmp_path)
  assert observed.events(tmp_path) == ['started', 'left', 'resumed', 'finished']
  assert journal.read(tmp_path)[1]['why'] == 'asked'
  for place in outcome.places:
    assert observed.events(place.workdir) == ['started', 'resumed', 'finished']
    assert journal.read(place.workdir)[1]['step'] > 0


def test_the_events_of_a_run_that_was_left_and_damaged(tiny_config, tmp_path):
  loop.train(tiny_config, tmp_path, max_seconds=1e-6)
  first, left = journal.read(tmp_path)
  assert (first['event'], first['step'], first['epoch']) == ('started', 0, 0)
  assert (left['event'], left['why']) == ('left', 'time limit')
  (sealed,) = checkpoint.checkpoints(tmp_path)
  assert (left['step'], left['epoch']) == (sealed.step, 1)
  # Looked at by others, a damaged checkpoint is no event of the run.
  (sealed.path / checkpoint.MANIFEST).unlink()
  assert checkpoint.latest_intact(tmp_path) is None
  assert len(journal.read(tmp_path)) == 2

  loop.train(tiny_config, tmp_path, notice=AskedAfter(2))
  passed, again, left = journal.read(tmp_path)[2:]
  assert passed['event'] == 'passed_over'
  assert passed['checkpoint'] == str(sealed.step)
  assert passed['why'] == 'manifest.json is missing or unreadable'
  assert (again['event'], again['step']) == ('started', 0)
  assert (left['event'], left['why']) == ('left', 'asked')

  outcome = loop.train(tiny_config, tmp_path)
  resumed, finished = journal.read(tmp_path)[5:]
  assert (resumed['event'], resumed['step']) == ('resumed', left['step'])
  assert finished['event'] == 'finished'
  assert (finished['epoch'], finished['step']) == (2, outcome.step)
  # Nothing is left to do, nor to tell.
  loop.train(tiny_config, tmp_path)
  assert len(journal.read(tmp_path)) == 7


def test_what_ends_a_run_is_an_event(tiny_config, tmp_path, monkeypatch):
  def broken(*_):
    raise RuntimeError('two\nlines')

  monkeypatch.setattr(loop.Run, 'epoch', broken)
  with pytest.raises(RuntimeError):
    loop.train(tiny_config, tmp_path)
  failed = journal.read(tmp_path)[-1]
  assert (failed['event'], failed['why']) == (
    'failed', 'RuntimeError: two lines',
  )  # fmt: skip


def test_events_are_read_past_torn_lines_and_stop_nothing(tmp_path, caplog):
  assert journal.read(tmp_path) == []
  journal.note(tmp_path, 'left', why='asked')
  path = tmp_path / journal.FILE
  whole = path.read_text()
  path.write_text(whole + '[]\n{"time": 3, "event": "x"}\n' + whole[:30])
  journal.note(tmp_path, 'finished', step=4)
  assert observed.events(tmp_path) == ['left', 'finished']
  assert path.read_text().splitlines()[3] == whole[:30]
  path.unlink()
  path.mkdir()
  journal.note(tmp_path, 'finished')
  assert f'cannot write {path}: Is a directory' in caplog.text


def test_one_of_several_processes_has_a_heartbeat_of_its_own(tmp_path):
  observer.Observer(observer.worker_folder(tmp_path, 1), tmp_path).close()
  (beat,) = tmp_path.glob(f'workers/1/{heartbeat.FILE}')
  assert json.loads(beat.read_text())['running'] is False


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


def test_a_dry_run_of_folds_measures_a_wave_and_writes_nothing(
  folds_config, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  config = folds_config
  config.optim.freeze = ('backbone',)
  config.optim.unfreeze_epochs = (1,)
  together = []
  population_of = rehearsal.side_by_side.population_of
  monkeypatch.setattr(
    rehearsal.side_by_side,
    'population_of',
    lambda *given: together.append(population_of(*given)) or together[-1],
  )
  found = rehearsal.rehearse_folds(config, seeds=2)
  assert list(tmp_path.iterdir()) == []
  (wave,) = together
  assert len(wave) == found.together == 2 * FOLDS
  assert wave.epoch.tolist() == [1] * len(wave)  # in which all of it trains
  assert wave.taken.max() == 1 + rehearsal.STEPS
  assert found.steps == 2 * wave.steps_per_epoch.max()
  assert found.waves == 1
  assert found.validations == 2
  assert found.loss > 0
  assert found.parameters * 4 * len(wave) < found.predicted_bytes
  assert found.predicted_bytes == wave.predicted_bytes < found.allowed_bytes
  said = rehearsal.text(found, config.train.batch_size)
  assert f'for 1 wave of at most 4 runs, each of {found.steps} steps' in said
  assert 'images/s, of 4 runs side by side' in said

  # Where memory holds half of them, it takes two waves, each as long.
  limit = found.predicted_bytes - 1
  monkeypatch.setattr(memory, 'limit_bytes', lambda device: limit)
  halves = rehearsal.rehearse_folds(config, seeds=2)
  assert halves.together < 4
  assert halves.waves == 2
  assert halves.seconds == pytest.approx(
    halves.start_seconds
    + 2 * halves.steps * halves.step_seconds
    + 4 * halves.validation_seconds
  )


def test_a_dry_run_of_folds_of_one_step_without_validation(folds_config):
  config = folds_config
  config.data.protocol = 'kfold_images'
  config.data.validation_share = 0.0
  config.train.batch_size = 80  # a whole fold
  config.train.select = 'last'
  config.train.epochs = 1
  found = rehearsal.rehearse_folds(config)
  assert found.steps == 1
  assert found.step_seconds > 0
  assert found.validations == 0
  assert 'validation        none' in rehearsal.text(found, 80)
