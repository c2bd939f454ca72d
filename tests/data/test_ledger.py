"""The ledger of test looks: nothing is lost, nothing is glued."""

import json
import multiprocessing

import pytest

from fer_jax.data import ledger
from fer_jax.errors import UserError


def _look(data, run, **figures):
  return ledger.record(
    data, run=run, protocol='official', split='test', figures=figures
  )


def _look_often(data, run):
  for n in range(100):
    _look(data, run, accuracy=n, note='x' * 500)


def test_looks_come_back_in_order(memory_set):
  data = memory_set([])
  assert ledger.read(data) == []
  written = [_look(data, 'a', accuracy=0.5), _look(data, 'b', accuracy=0.6)]
  entries = ledger.read(data)
  assert entries == written
  assert [e['run'] for e in entries] == ['a', 'b']
  assert entries[0]['time'].endswith('+00:00')
  assert entries[0]['checksum'] == data.checksum


def test_openings_are_not_looks(memory_set):
  data = memory_set([])
  ledger.record(
    data,
    run='a',
    protocol='official',
    split='test',
    figures={},
    event=ledger.OPENED,
  )
  assert ledger.read(data) == []
  assert len(ledger.read(data, ledger.OPENED)) == 1


def test_ledger_lies_outside_the_build(memory_set):
  data = memory_set([])
  _look(data, 'a')
  assert ledger.path(data).parent == data.root.parent
  assert not list(data.root.iterdir())


def test_damaged_line_is_named_and_kept(memory_set, capsys):
  data = memory_set([])
  _look(data, 'a')
  with open(ledger.path(data), 'a') as f:
    f.write('{"time": "2026-01-01", "ru')  # Interrupted: no line end.
  _look(data, 'b')
  assert [e['run'] for e in ledger.read(data)] == ['a', 'b']
  assert 'line 2: damaged' in capsys.readouterr().err
  assert '{"time": "2026-01-01", "ru\n' in ledger.path(data).read_text()


def test_line_of_another_kind_of_json_is_damaged(memory_set, capsys):
  data = memory_set([])
  ledger.path(data).write_text('[1, 2]\n{"time": "now"}\n')
  assert ledger.read(data) == []
  assert capsys.readouterr().err.count('damaged') == 2


def test_processes_append_at_the_same_time(memory_set):
  data = memory_set([])
  context = multiprocessing.get_context('forkserver')
  runs = [context.Process(target=_look_often, args=(data, r)) for r in 'abc']
  for run in runs:
    run.start()
  for run in runs:
    run.join()
  lines = ledger.path(data).read_text().splitlines()
  assert len(lines) == 300
  for run in 'abc':
    mine = [e for e in map(json.loads, lines) if e['run'] == run]
    assert [e['figures']['accuracy'] for e in mine] == list(range(100))


def test_ledger_that_cannot_be_written_is_the_users_to_know(memory_set):
  data = memory_set([])
  ledger.path(data).mkdir()
  with pytest.raises(UserError, match='cannot write the ledger'):
    _look(data, 'a')
