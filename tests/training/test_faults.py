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
from fer_jax.errors import UserError
from fer_jax.training import (
  checkpoint,
  inference,
  loop,
  records,
  rollback,
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
