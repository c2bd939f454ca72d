"""The torture run's short form, and that it would tell a difference."""

import json
import random
import shutil

import pytest

from fer_jax import torture
from fer_jax.errors import UserError
from fer_jax.training import checkpoint, records


def test_two_lives_end_and_nothing_differs(tmp_path):
  # Of this seed the first ends amid training, the second as it starts.
  record = torture.torture(tmp_path / 'run', kills=1, terms=1, seed=9)
  assert record['differences'] == []
  assert record['identical']
  assert sum(record['ended'].values()) == 2
  assert record['slowest_leave_seconds'] < torture.LEAVE_SECONDS
  assert 'equal to the undisturbed run bit for bit' in torture.text(record)

  # What it compares, it sees.
  whole = tmp_path / 'run' / 'undisturbed'
  assert torture.differences(whole, whole) == []
  other = tmp_path / 'other'
  shutil.copytree(whole, other)
  path = other / records.METRICS
  lines = path.read_text().splitlines(keepends=True)
  changed = json.loads(lines[1])
  changed['train']['loss'] += 1e-7
  path.write_text(lines[0] + json.dumps(changed) + '\n' + ''.join(lines[2:]))
  assert 'the record of epoch 2 differs' in torture.differences(whole, other)[0]
  path.write_text(''.join(lines[:1] + lines))
  found = torture.differences(whole, other)
  assert 'epochs [1, 1, 2' in found[0]
  shutil.copy(whole / records.METRICS, path)
  newest = checkpoint.latest_intact(other)
  shutil.rmtree(newest.path)
  found = torture.differences(whole, other)
  assert any('the latest step is' in line for line in found)
  assert any('arrays of the latest checkpoint differ' in line for line in found)

  with pytest.raises(UserError, match='is not empty; expected a new folder'):
    torture.torture(tmp_path / 'run', kills=1)


def test_lives_are_as_long_as_makes_the_epochs():
  pace = torture.Pace(start=5.0, epoch=0.3)
  draws = random.Random(0)
  moments = [torture._draw(draws, pace, 100, 80) for _ in range(20_000)]
  trained = [m.seconds for m in moments if m.trains]
  assert len(trained) / len(moments) == pytest.approx(0.5, abs=0.02)
  assert max(m.seconds for m in moments if not m.trains) <= pace.start
  epochs = sum(trained) / pace.epoch / len(moments)
  assert epochs * 80 == pytest.approx(torture.SHARE * 100, rel=0.03)
