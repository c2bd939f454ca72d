"""Files that flags name: checked before the work, and written after it."""

import json

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
  ):
    with pytest.raises(UserError, match=f'cannot write --json .*{said}'):
      files.require_writable(str(path))
    with pytest.raises(UserError, match='cannot write --output'):
      files.require_writable(str(path), '--output')
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
