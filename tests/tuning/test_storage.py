"""A storage that goes away for a while, or for good."""

import pathlib
import random

import optuna
import pytest
import small_sweeps
import sqlalchemy

from fer_jax.errors import UserError
from fer_jax.tuning import study, sweep

pytestmark = pytest.mark.usefixtures('shared_programs')


class _Broken:
  """A storage of which every call but some fails, as a database's that is
  restarted: what failed may have been written or not."""

  def __init__(self, storage, failing):
    self._storage = storage
    self._failing = failing
    self.calls = 0

  def __getattr__(self, name):
    found = getattr(self._storage, name)
    if not callable(found):
      return found

    def call(*arguments, **options):
      self.calls += 1
      result = None
      fails = self._failing(self.calls)
      if not fails or self.calls % 2:
        result = found(*arguments, **options)
      if fails:
        raise sqlalchemy.exc.OperationalError('', {}, Exception('shut down'))
      return result

    return call


def _break(monkeypatch, failing):
  opened = study._open
  broken = []

  def open_(*arguments, **options):
    made = opened(*arguments, **options)
    broken.append(_Broken(made._storage, failing))
    made._storage = broken[-1]
    return made

  monkeypatch.setattr(study, '_open', open_)
  monkeypatch.setattr(study.time, 'sleep', lambda _: None)
  return broken


def test_one_that_fails_now_and_then_is_asked_again(
  config, domains, tmp_path, monkeypatch
):
  config.train.epochs = 1
  settings = small_sweeps.settings(trials=4, population=2)
  _, smooth = sweep.run(config, domains, tmp_path / 'smooth', settings)
  draws = random.Random(0)
  broken = _break(monkeypatch, lambda _: draws.random() < 0.05)
  finished, content = sweep.run(config, domains, tmp_path / 'rough', settings)
  assert finished
  assert broken[0].calls > 100
  assert [t['state'] for t in content['trials']] == ['complete'] * 4
  for trial in smooth['trials']:
    pathlib.Path(tmp_path / 'rough' / trial['workdir']).stat()


def test_one_that_is_away_at_the_start_is_waited_for_where_it_is_known(
  config, domains, tmp_path, monkeypatch
):
  config.train.epochs = 1
  settings = small_sweeps.settings(trials=1)
  monkeypatch.setattr(study.time, 'sleep', lambda _: None)
  opened, failures = study._with_tables, []

  def fails_once(*arguments):
    failures.append(None)
    if len(failures) == 1:
      raise sqlalchemy.exc.OperationalError('', {}, Exception('shut down'))
    return opened(*arguments)

  monkeypatch.setattr(study, '_with_tables', fails_once)
  with pytest.raises(UserError, match=r'cannot reach .*: shut down'):
    sweep.run(config, domains, tmp_path, settings)
  (tmp_path / sweep.STUDY).write_text('{}')
  failures.clear()
  assert sweep.run(config, domains, tmp_path, settings)[0]
  assert len(failures) == 2


def test_of_workers_that_come_at_one_moment_any_makes_the_tables(
  tmp_path, monkeypatch
):
  manager = optuna.storages._rdb.storage._VersionManager
  note, noted = manager._set_alembic_revision, []

  def note_after_another(self, revision):
    noted.append(note(self, revision))
    said = 'UNIQUE constraint failed: alembic_version.version_num'
    raise sqlalchemy.exc.IntegrityError('', {}, Exception(said))

  monkeypatch.setattr(manager, '_set_alembic_revision', note_after_another)
  monkeypatch.setattr(study.time, 'sleep', lambda _: None)
  made = study._with_tables(f'sqlite:///{tmp_path / "study.db"}')
  assert made.get_all_studies() == []
  assert len(noted) == 1


def test_one_that_does_not_come_back_is_told_in_a_line(
  config, domains, tmp_path, monkeypatch
):
  config.train.epochs = 1
  settings = small_sweeps.settings(trials=2, patience=0.3)
  with monkeypatch.context() as patch:
    _break(patch, lambda n: n > 60)
    with pytest.raises(
      UserError, match=r'gone away, and .*: shut down'
    ) as raised:
      sweep.run(config, domains, tmp_path, settings)
  assert '\n' not in str(raised.value)
  finished, content = sweep.run(config, domains, tmp_path, settings)
  assert finished
  assert [t['state'] for t in content['trials']] == ['complete'] * 2
