"""Faults: each ends in one clear line, or is recovered from aloud, and nothing
that was good is lost."""

import errno
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys

import pytest
from small_config import small_config

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.data import ledger, stream
from fer_jax.errors import UserError
from fer_jax.evaluation import evaluate, report
from fer_jax.training import (
  checkpoint,
  inference,
  loop,
  records,
  rollback,
  task,
  workdir,
)

pytestmark = pytest.mark.usefixtures('shared_programs')


@pytest.fixture(scope='module')
def trained(tmp_path_factory, tiny_data):
  """(config, a workdir with two of three epochs done): copy before use."""
  config = small_config(tiny_data)
  config.train.epochs = 3
  folder = tmp_path_factory.mktemp('faults') / 'trained'
  loop.train(config, folder, max_seconds=1e-6)
  loop.train(config, folder, max_seconds=1e-6)
  return config, folder


@pytest.fixture
def run(trained, tmp_path):
  config, folder = trained
  shutil.copytree(folder, tmp_path / 'run')
  return config, tmp_path / 'run'


def _flips(path: pathlib.Path, count: int):
  """Sets one random bit of a file after the other, each time in a whole one."""
  whole = path.read_bytes()
  draws = random.Random(path.name)
  for _ in range(count):
    content = bytearray(whole)
    at = draws.randrange(len(content))
    content[at] ^= 1 << draws.randrange(8)
    path.write_bytes(bytes(content))
    yield content, whole
    path.write_bytes(whole)


def test_a_flipped_bit_in_a_manifest_unseals_its_checkpoint(run):
  _, folder = run
  newest = checkpoint.checkpoints(folder)[-1]
  path = newest.path / checkpoint.MANIFEST
  for _ in _flips(path, 300):
    found = checkpoint.checkpoints(folder)[-1]
    # JSON may be written in several ways; what it says may not change.
    assert found == newest or found.step < newest.step


def test_a_flipped_bit_in_the_records_costs_its_line_at_most(run):
  _, folder = run
  whole = records.read_metrics(folder)
  for _ in _flips(folder / records.METRICS, 200):
    found = records.read_metrics(folder)
    same = sum(record in found for record in whole)
    assert same >= len(whole) - 2  # a newline that is gone joins two


@pytest.mark.parametrize('name', ['config.json', 'run.json'])
def test_a_flipped_bit_in_what_guards_a_run_is_one_line(run, name):
  config, folder = run
  path = folder / name
  facts = json.loads((folder / 'run.json').read_text())
  refused = 0
  for _ in _flips(path, 200):
    kept = path.read_bytes()
    try:
      with workdir.claimed(folder, config):
        workdir.require_same_data(folder, facts)
    except UserError as error:
      said = str(error)
    else:
      continue
    refused += 1
    assert str(folder) in said
    assert path.read_bytes() == kept
  assert refused > 100


@pytest.mark.parametrize('content', ['{}', '[]', '{"class_names": ["a", 2]}'])
def test_a_run_json_of_another_form_is_one_line(run, content):
  _, folder = run
  (folder / 'run.json').write_text(content)
  for read in (
    lambda: inference.Predictor.from_workdir(folder),
    lambda: workdir.require_same_data(folder, {}),
    lambda: workdir.note(folder, {}),
    lambda: rollback.noted(folder, 0),
  ):
    with pytest.raises(
      UserError, match=r'run\.json: (class_names|the content)'
    ):
      read()


def test_data_that_have_moved_are_found_again_by_all(run):
  config, folder = run
  config = config.copy_and_resolve_references()
  config.data.data_dir = '/elsewhere'
  with workdir.claimed(folder, config):
    pass
  read = config_lib.load_json(folder / 'config.json')
  assert read.data.data_dir == '/elsewhere'


def _train_again(config, folder):
  outcome = loop.train(config, folder)
  assert outcome.finished
  assert [r['epoch'] for r in records.read_metrics(folder)]
  return outcome


def test_records_cut_in_mid_line_and_a_lost_checkpoint(run, caplog):
  """The second epoch's record is torn, its checkpoint damaged: it is trained
  again, and the third after it."""
  config, folder = run
  path = folder / records.METRICS
  path.write_bytes(path.read_bytes()[:-30])
  newest = checkpoint.checkpoints(folder)[-1]
  (newest.path / checkpoint.MANIFEST).write_text('')
  _train_again(config, folder)
  assert [r['epoch'] for r in records.read_metrics(folder)] == [1, 2, 3]
  assert all(json.loads(line) for line in path.read_text().splitlines())
  assert 'passing over checkpoint' in caplog.text


def test_a_record_that_is_lost_for_good_is_told(run, caplog):
  config, folder = run
  path = folder / records.METRICS
  first, second = path.read_text().splitlines()
  of_no_step = '{"epoch": [1], "step": "4"}'
  path.write_text(f'{first[:40]}\n{of_no_step}\n{second}\n')
  _train_again(config, folder)
  assert [r['epoch'] for r in records.read_metrics(folder)] == [2, 3]
  assert f'{path} has no record of epoch 1' in caplog.text


def _full(*_, **__):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class _FullAfter:
  """A disk that is full for files of a name."""

  def __init__(self, name: str):
    self._name = name
    self._write = files.write_bytes

  def __call__(self, path, content):
    if path.name == self._name:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    self._write(path, content)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('manifest.json', r'cannot write a checkpoint under .*: No space left'),
    ('metrics.jsonl', r'cannot write .*metrics\.jsonl: No space left'),
  ],
)
def test_a_full_disk_loses_nothing(run, monkeypatch, name, message):
  config, folder = run
  before = checkpoint.latest_intact(folder)
  with monkeypatch.context() as patch:
    if name == 'metrics.jsonl':
      patch.setattr(records.os, 'fsync', _full)
      patch.setattr(files, 'write_bytes', lambda path, content: None)
    else:
      patch.setattr(files, 'write_bytes', _FullAfter(name))
    with pytest.raises(UserError, match=message):
      loop.train(config, folder)
  assert checkpoint.latest_intact(folder) == before
  _train_again(config, folder)
  assert [r['epoch'] for r in records.read_metrics(folder)] == [1, 2, 3]


def test_a_file_that_cannot_grow_is_one_line(run):
  """Files of a real process may have so many bytes and no more."""
  _, folder = run
  before = checkpoint.latest_intact(folder)
  largest = max(p.stat().st_size for p in before.path.rglob('*') if p.is_file())
  done = subprocess.run(
    [
      *['bash', '-c', f'ulimit -f {largest // 2048}; exec "$@"', 'bash'],
      *[sys.executable, '-m', 'fer_jax', 'train'],
      *[f'--config={folder}/config.json', f'--workdir={folder}'],
    ],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )
  assert done.returncode == 2, done.stderr
  assert 'Traceback' not in done.stderr
  (line,) = [x for x in done.stderr.splitlines() if x.startswith('fer_jax: ')]
  assert 'cannot write a checkpoint' in line
  assert 'File too large' in line
  assert checkpoint.latest_intact(folder) == before


@pytest.fixture
def mounted(trained, tmp_path):
  """(config, a workdir on a disk of its own, `remount` with options of it)."""
  config, folder = trained
  disk = tmp_path / 'disk'
  disk.mkdir()

  def mount(options):
    command = ['mount', '-t', 'tmpfs', '-o', options, 'tmpfs', str(disk)]
    return subprocess.run(command, capture_output=True, text=True, check=False)

  if shutil.which('mount') is None or mount('size=64m').returncode:
    pytest.skip('needs the right to mount')
  try:
    shutil.copytree(folder, disk / 'run')
    yield config, disk / 'run', lambda options: mount(f'remount,{options}')
  finally:
    subprocess.run(['umount', '--lazy', str(disk)], check=True)


def _contents(folder):
  return {
    path: path.read_bytes() for path in folder.rglob('*') if path.is_file()
  }


def test_a_disk_that_turned_read_only_is_one_line(mounted):
  config, folder, remount = mounted
  before = _contents(folder)
  looks = len(ledger.read(task.load_dataset(config)))
  assert remount('ro').returncode == 0
  for verb in (
    lambda: loop.train(config, folder),
    lambda: evaluate.evaluate(folder, 'test', n_boot=5),
    lambda: report.write_report([folder]),
  ):
    with pytest.raises(UserError, match='Read-only file system') as refused:
      verb()
    assert str(folder) in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
  assert _contents(folder) == before
  # Nobody has seen the figures that could not be written.
  assert len(ledger.read(task.load_dataset(config))) == looks
  assert remount('rw').returncode == 0
  _train_again(config, folder)


def test_a_disk_that_is_full_amid_training_loses_nothing(mounted):
  config, folder, remount = mounted
  before = checkpoint.latest_intact(folder)
  used = shutil.disk_usage(folder).used
  # Room for less than half a checkpoint.
  room = sum(p.stat().st_size for p in before.path.rglob('*')) // 2
  assert remount(f'size={(used + room) // 4096 * 4096}').returncode == 0
  with pytest.raises(UserError, match=r'cannot write .*: .*(?i:no space left)'):
    loop.train(config, folder)
  assert checkpoint.latest_intact(folder) == before
  assert remount('size=64m').returncode == 0
  _train_again(config, folder)
  assert [r['epoch'] for r in records.read_metrics(folder)] == [1, 2, 3]


@pytest.mark.parametrize('workers', [0, 1])
def test_data_that_vanish_amid_a_streamed_epoch_are_one_line(
  run, tmp_path, monkeypatch, workers
):
  """The records of a set are cut off once the first step is taken."""
  config, folder = run
  before = checkpoint.latest_intact(folder)
  moved = tmp_path / 'data'
  # Without the cache of pixels, whose pages stay where they are.
  without = shutil.ignore_patterns('pixels.npy')
  shutil.copytree(config.data.data_dir, moved, ignore=without)
  config = config.copy_and_resolve_references()
  config.data.update(data_dir=str(moved), residence='stream', workers=workers)
  options = stream.grain.ReadOptions
  monkeypatch.setattr(
    stream.grain,
    'ReadOptions',
    # Else the whole epoch is read by then.
    lambda **_: options(num_threads=1, prefetch_buffer_size=1),
  )
  epoch = stream.Stream.epoch

  def vanishing(self, *arguments):
    for n, batch in enumerate(epoch(self, *arguments)):
      if n == 0:
        for path in moved.rglob('*.array_record*'):
          path.write_bytes(b'')
      yield batch

  monkeypatch.setattr(stream.Stream, 'epoch', vanishing)
  with pytest.raises(UserError) as refused:
    loop.train(config, folder)
  assert str(moved) in str(refused.value)
  assert checkpoint.latest_intact(folder) == before


def test_a_place_that_cannot_be_written_is_named(trained):
  config, _ = trained
  # Nobody makes a folder there, root included.
  with pytest.raises(UserError, match=r'cannot write to --workdir /proc/run'):
    loop.train(config, '/proc/run')


def test_what_a_killed_process_left_is_cleared_away(run):
  config, folder = run
  half = checkpoint.directory(folder) / '12.orbax-checkpoint-tmp'
  torn = [folder / '.run.json.4711', half]
  torn[0].write_text('{"mod')
  half.mkdir()
  (half / 'x').write_text('x')
  _train_again(config, folder)
  assert not any(path.exists() for path in torn)


def test_a_data_set_that_vanished_is_one_line(run, tmp_path):
  config, folder = run
  before = checkpoint.latest_intact(folder)
  moved = tmp_path / 'data'
  shutil.copytree(config.data.data_dir, moved)
  config = config.copy_and_resolve_references()
  config.data.data_dir = str(moved)
  for path in moved.rglob('*.array_record*'):
    path.unlink()
  with pytest.raises(UserError) as refused:
    loop.train(config, folder)
  assert str(moved) in str(refused.value)
  assert checkpoint.latest_intact(folder) == before
