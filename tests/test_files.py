"""Files that flags name: checked before the work, and written after it."""

import contextlib
import json
import os
import resource

import pytest

from fer_jax import files
from fer_jax.errors import UserError


def test_a_flags_file_is_checked_before_the_work(tmp_path):
  files.require_writable(str(tmp_path / 'result.json'))
  files.require_writable('result.json')
  files.require_writable(None)
  for path, said in (
    (tmp_path / 'absent' / 'r.json', 'r.json: no such folder'),
    (tmp_path, 'it is a folder'),
    # Where not even root makes a file.
    ('/proc/self/r.json', 'r.json: No such file'),
  ):
    with pytest.raises(UserError, match=f'cannot write --json .*{said}'):
      files.require_writable(str(path))
    with pytest.raises(UserError, match='cannot write --output'):
      files.require_writable(str(path), '--output')
  assert not list(tmp_path.iterdir())


def test_what_a_disk_does_not_take_is_found_before_the_work(
  tmp_path, monkeypatch
):
  files.probe(tmp_path / 'r.json', 100_000)
  kept = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, kept[1]))
  try:
    files.probe(tmp_path / 'r.json', 40_000)
    with pytest.raises(OSError, match='File too large') as caught:
      files.probe(tmp_path / 'r.json', 100_000)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, kept)
  assert caught.value.filename == str(tmp_path / 'r.json')

  # A disk that is read-only refuses to remove a file that it does not hold.
  def refuse(*_, **__):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(files.pathlib.Path, 'open', refuse)
  monkeypatch.setattr(files.pathlib.Path, 'unlink', refuse)
  with pytest.raises(UserError, match=r'--json .*r.json: Read-only file sys'):
    files.require_writable(str(tmp_path / 'r.json'))
  assert not list(tmp_path.iterdir())


def test_a_result_is_written_whole_or_the_user_is_told(tmp_path, monkeypatch):
  path = tmp_path / 'result.json'
  files.write_result(str(path), {'accuracy': 0.5})
  files.write_result(None, {'accuracy': 0.6})
  assert json.loads(path.read_text()) == {'accuracy': 0.5}

  def fail(_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(files.os, 'fsync', fail)
  with pytest.raises(UserError, match=r'--json .*result.json: No space left'):
    files.write_result(str(path), {})
  assert json.loads(path.read_text()) == {'accuracy': 0.5}
  assert list(tmp_path.iterdir()) == [path]


def test_many_files_may_be_open_where_the_system_lets_them(
  tmp_path, monkeypatch
):
  before = resource.getrlimit(resource.RLIMIT_NOFILE)
  here = len(os.listdir('/dev/fd'))
  try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (here + 10, before[1]))
    files.allow_open(20)
    with contextlib.ExitStack() as stack:
      for n in range(20):
        stack.enter_context((tmp_path / str(n)).open('w'))
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, before)
  files.allow_open(0)  # what is allowed is not lowered
  assert resource.getrlimit(resource.RLIMIT_NOFILE) == before

  def refuse(*_):
    raise ValueError('not allowed to raise maximum limit')

  monkeypatch.setattr(resource, 'getrlimit', lambda _: (64, 128))
  monkeypatch.setattr(resource, 'setrlimit', refuse)
  with pytest.raises(UserError, match=r'at a time, .* allows 128'):
    files.allow_open(1000)
