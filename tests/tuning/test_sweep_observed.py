"""What a sweep shows of itself: heartbeats, events, a trace, a dry run."""

import functools
import json

import observed
import pytest
import small_sweeps
import sqlalchemy

from fer_jax.errors import UserError
from fer_jax.training import heartbeat, journal, observer, profile
from fer_jax.tuning import (
  Space,
  choice,
  integer,
  queue,
  rehearsal,
  study,
  sweep,
  takeovers,
  uniform,
)

pytestmark = pytest.mark.usefixtures('shared_programs')


def test_a_worker_leaves_a_heartbeat_a_trace_and_events(
  config, domains, tmp_path, monkeypatch
):
  beats = observed.beats(monkeypatch)
  settings = functools.partial(
    small_sweeps.settings, population=2, trials=2, profile_steps=1
  )
  finished, _ = sweep.run(config, domains, tmp_path, settings(max_seconds=1e-6))
  assert not finished
  finished, content = sweep.run(config, domains, tmp_path, settings())
  assert finished
  folder = observer.worker_folder(tmp_path, 0)
  assert [path.name for path in folder.parent.iterdir()] == ['0']
  kept = json.loads((folder / heartbeat.FILE).read_text())
  last = max(trial['epoch'] for trial in content['trials'])
  assert last == kept['epoch'] == config.train.epochs
  assert kept['members'] == 0
  assert kept['running'] is False
  assert {where['members'] for where in beats} == {0, 2}
  assert len({where['step'] for where in beats}) > 2
  assert list((folder / profile.FOLDER).rglob('perfetto_trace.json.gz'))

  events = journal.read(tmp_path)
  assert observed.events(tmp_path) == ['started', 'left', 'resumed', 'finished']
  assert {event['worker'] for event in events} == {0}
  assert events[0]['runs'] == events[2]['runs'] == 2
  trial = tmp_path / content['trials'][0]['workdir']
  assert observed.events(trial) == [
    'started',
    'taken_over',
    'resumed',
    'finished',
  ]
  taken = journal.read(trial)[1]
  assert (taken['processes'], taken['step'] > 0) == (0, True)


def test_workers_have_numbers_of_their_own(tmp_path):
  with sweep._numbered(tmp_path) as first, sweep._numbered(tmp_path) as second:
    assert (first, second) == (0, 1)
  with sweep._numbered(tmp_path) as again:
    assert again == 0


def test_a_trial_that_ended_its_process_says_so(config, domains, tmp_path):
  settings = small_sweeps.settings(search='random', trials=1)
  space = Space(domains, config)
  made = sweep._study(config, space, tmp_path, settings)
  run = queue.Trials(made, space, tmp_path, 1).head()
  takeovers.mark(run.workdir)
  run.claim.close()
  assert queue.Trials(made, space, tmp_path, 1).head().number == run.number
  (event,) = journal.read(run.workdir)
  assert event['event'] == 'taken_over'
  assert (event['processes'], event['step']) == (1, 0)


def test_a_dry_run_says_what_is_searched_and_writes_nothing(
  config, tmp_path, monkeypatch
):
  monkeypatch.chdir(tmp_path)
  domains = {
    'optim.learning_rate': choice(1e-3, 1e-2),
    'model.units': choice(2, 3, 4),
    'optim.name': choice('adamw', 'sgd'),
    'optim.momentum': uniform(0.8, 0.9, when={'optim.name': 'sgd'}),
  }
  storage = f'sqlite:///{tmp_path / "study.db"}'
  settings = functools.partial(
    small_sweeps.settings, population=2, trials=5, storage=storage
  )
  found = rehearsal.rehearse(config, domains, settings())
  assert list(tmp_path.iterdir()) == []
  assert found.measured.together == 2
  assert found.measured.waves == 3
  assert found.measured.step_seconds > 0
  said = rehearsal.text(found, config.train.batch_size)
  assert 'space             countless shapes, 5 trials' in said
  assert 'model.units              choice(2, 3, 4)  (makes the shape)' in said
  assert 'optim.learning_rate      choice(0.001, 0.01)  (traced)' in said
  assert "uniform(0.8, 0.9)  (makes the shape, if optim.name='sgd')" in said
  assert f'storage           {storage}, which is to be made' in said
  assert 'for 3 waves of at most 2 runs' in said


def test_shapes_are_counted_where_they_can_be(config):
  def count(**domains):
    named = {name.replace('__', '.'): d for name, d in domains.items()}
    return Space(named, config).shape_count()

  assert count(model__dropout=uniform(0.1, 0.2)) == 1
  units, kernel = integer(2, 4), choice(3, 5)
  assert count(model__units=units, model__kernel_size=kernel) == 6
  only = choice(3, 5, when={'model.units': 2})
  assert count(model__units=choice(2, 3), model__kernel_size=only) == 3
  assert count(optim__beta2=uniform(0.9, 0.99)) is None
  assert count(train__epochs=integer(1, 2_000_000)) is None


def test_a_storage_is_looked_at_and_left_as_it_is(tmp_path):
  file = tmp_path / 'here.db'
  url = f'sqlite:///{file}'
  engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.pool.NullPool)
  with engine.begin() as connection:
    connection.execute(sqlalchemy.text('CREATE TABLE other (x INTEGER)'))
  assert study.look(url, 'mine').endswith("0 studies, 'mine' not among them")
  storage = study.database(url)
  study.optuna.create_study(study_name='mine', storage=storage)
  before = file.read_bytes()
  assert study.look(url, 'mine').endswith("1 study, 'mine' among them")
  assert study.look(url).endswith('with 1 study')
  assert file.read_bytes() == before
  assert [path.name for path in tmp_path.iterdir()] == ['here.db']
  for url, says in (
    ('sqlite:////nowhere/at/all.db', 'cannot reach .*: no such folder'),
    ('mysql://u:secret@h/d', r'mysql://u:\*\*\*@h/d needs a driver'),
    ('postgresql://u:secret@127.0.0.1:1/d', r'u:\*\*\*@.*refused'),
  ):
    with pytest.raises(UserError, match=says):
      study.look(study.parse_url(url))
