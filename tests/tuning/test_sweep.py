"""Sweeps in this process: what is trained, compiled, pruned, and written."""

import errno
import fcntl
import functools
import inspect
import itertools
import json
import os
import types

import jax
import numpy as np
import optuna
import pytest
import small_sweeps

from fer_jax import config as config_lib
from fer_jax.data import ledger
from fer_jax.errors import UserError
from fer_jax.training import (
  journal,
  loop,
  memory,
  population,
  records,
  rollback,
  side_by_side,
  task,
  workdir,
)
from fer_jax.tuning import (
  Space,
  choice,
  integer,
  log_uniform,
  queue,
  seats,
  summary,
  sweep,
  uniform,
  worker,
)

pytestmark = pytest.mark.usefixtures('shared_programs')


@pytest.fixture
def made(monkeypatch):
  """The programs that populations make, in order."""
  programs = []

  class Recorded(inspect.unwrap(population._Programs)):
    def __init__(self, **options):
      super().__init__(**options)
      programs.append(self)

  monkeypatch.setattr(population, '_Programs', Recorded)
  return programs


def _of(content, state):
  return [t for t in content['trials'] if t['state'] == state]


def test_trials_of_one_shape_compile_once(
  config, tmp_path, made, monkeypatch, capsys
):
  """Thirty-two over learning rate, dropout, weight decay and seed."""
  config.optim.name = 'adamw'
  config.train.epochs = 1
  domains = {
    'optim.learning_rate': log_uniform(1e-3, 1e-1),
    'model.dropout': uniform(0.0, 0.5),
    'optim.weight_decay': log_uniform(1e-5, 1e-2),
    'seed': integer(0, 3),
  }
  makers, state_maker = [], task.state_maker
  monkeypatch.setattr(
    task, 'state_maker', lambda *a: makers.append(state_maker(*a)) or makers[-1]
  )
  dataset = task.load_dataset(config)
  before = len(ledger.read(dataset, ledger.OPENED))
  finished, content = sweep.run(
    config, domains, tmp_path, small_sweeps.settings(population=8)
  )
  assert finished
  outside = 'optim.weight_decay is 0.0, outside of log_uniform(1e-05, 0.01);'
  assert capsys.readouterr().out.count(outside) == 1
  assert len(_of(content, 'complete')) == 32
  assert [maker._cache_size() for maker in makers] == [1]
  (programs,) = made
  (block,) = {programs.block(task.blueprint(config).settings)}
  assert block._cache_size() == 1
  assert programs.validation._cache_size() == 1
  assert content['cost']['compilations'] == 1
  assert content['cost']['shapes'] == 1
  assert len({json.dumps(t['params']) for t in content['trials']}) == 32
  assert len(ledger.read(dataset, ledger.OPENED)) == before

  # As sweep.json and best.json tell it.
  assert json.loads((tmp_path / summary.SUMMARY).read_text()) == content
  values = [t['value'] for t in content['trials']]
  best = content['best']
  assert best == {
    'trial': int(np.argmax(values)),
    'value': max(values),
    'config': 'best.json',
  }
  assert set(content['importance']) == set(domains)
  assert sum(content['importance'].values()) == pytest.approx(1)
  winner = config_lib.load_json(tmp_path / 'best.json')
  assert (
    winner.optim.learning_rate
    == (content['trials'][best['trial']]['params']['optim.learning_rate'])
  )

  # Every trial is a normal workdir: one of them alone.
  trial = content['trials'][5]
  folder = tmp_path / trial['workdir']
  loop.train(config_lib.load_json(folder / 'config.json'), tmp_path / 'alone')
  (together,), (alone,) = map(
    records.read_metrics, (folder, tmp_path / 'alone')
  )
  assert together['step'] == alone['step']
  for part in ('train', 'validation'):
    assert together[part] == pytest.approx(alone[part], rel=1e-3)
  assert trial['values'] == {'1': trial['value']}

  # Done: nothing is trained again, and a few more go on from there.
  again, same = sweep.run(
    config, domains, tmp_path, small_sweeps.settings(population=8)
  )
  assert again
  assert same['trials'] == content['trials']
  _, more = sweep.run(
    config, domains, tmp_path, small_sweeps.settings(trials=33)
  )
  assert more['trials'][:32] == content['trials']
  assert more['trials'][32]['state'] == 'complete'


def test_places_of_pruned_trials_are_given_away(config, tmp_path, made):
  config.train.epochs = 3
  config.train.select = 'loss'
  domains = {'optim.learning_rate': choice(1e-2, 1e-3, 1e-4, 1e-8)}
  _, content = sweep.run(
    config,
    domains,
    tmp_path,
    small_sweeps.settings(
      search='random', prune='halving', population=3, trials=9
    ),
  )
  pruned, complete = _of(content, 'pruned'), _of(content, 'complete')
  assert len(pruned) + len(complete) == 9
  assert pruned
  assert len(made) == 1
  for trial in pruned:
    assert trial['epoch'] < 3
    assert trial['value'] == trial['values'][str(trial['epoch'])]
    event = journal.read(tmp_path / trial['workdir'])[-1]
    assert (event['event'], event['epoch']) == ('pruned', trial['epoch'])
  for trial in complete:
    assert trial['epoch'] == 3
    assert trial['value'] == min(trial['values'].values())
  assert content['best']['value'] == min(t['value'] for t in complete)
  # A pruned one has no more than it trained, and train goes on with it.
  folder = tmp_path / pruned[0]['workdir']
  outcome = loop.train(config_lib.load_json(folder / 'config.json'), folder)
  assert outcome.epoch == 3
  assert [r['epoch'] for r in records.read_metrics(folder)] == [1, 2, 3]


def test_shapes_turns_and_divergence(config, tmp_path, made):
  """Two shapes; a rate that diverges is told as pruned."""
  config.train.epochs = 1
  domains = {
    'model.units': choice(2, 3),
    'optim.learning_rate': choice(1e-2, 1e30),
  }
  finished, content = sweep.run(
    config,
    domains,
    tmp_path,
    small_sweeps.settings(search='random', seed=1, population=2, trials=10),
  )
  assert finished
  failed = _of(content, 'failed')
  assert failed
  for trial in failed:
    assert trial['params']['optim.learning_rate'] == 1e30
    assert trial['value'] is None
  assert len(failed) + len(_of(content, 'complete')) == 10
  shapes = [t['shape'] for t in content['trials']]
  assert set(shapes) == {'model.units=2', 'model.units=3'}
  # A first look is one population of a shape; a turn after it is two.
  ends = [0, 2, 4, 8, 10]
  turns = [set(shapes[a:b]) for a, b in itertools.pairwise(ends)]
  assert list(map(len, turns)) == [1, 1, 1, 1]
  assert turns[0] != turns[1]
  assert content['cost']['compilations'] == len(made) <= 4
  study = small_sweeps.stored(content)
  assert {study.trials[t['number']].state.name for t in failed} == {'PRUNED'}


def test_a_grid_is_run_in_whole_and_its_finalists_under_other_seeds(
  config, tmp_path
):
  config.train.epochs = 1
  domains = {
    'model.dropout': choice(0.1, 0.4),
    'seed': choice(0, 4),
    'model.units': choice(2, 3),
  }
  settings = small_sweeps.settings(search='grid', population=3, seeds=2, top=2)
  finished, content = sweep.run(config, domains, tmp_path, settings)
  assert finished
  drawn = [t['params'] for t in content['trials']]
  assert drawn == Space(domains, config).grid()
  assert len(content['finalists']) == 2
  for finalist in content['finalists']:
    assert [run['seed'] for run in finalist['runs']] == [5, 6]
    values = [run['value'] for run in finalist['runs']]
    assert finalist['mean'] == pytest.approx(np.mean(values))
    assert finalist['sd'] == pytest.approx(np.std(values, ddof=1))
    run = finalist['runs'][1]
    written = config_lib.load_json(tmp_path / run['workdir'] / 'config.json')
    assert written.seed == 6
    assert written.model.units == finalist['params']['model.units']
  assert content['best']['value'] == max(
    f['mean'] for f in content['finalists']
  )
  assert 'under 2 other seeds' in summary.text(content)


def test_finalists_have_seeds_that_no_trial_has_had(config):
  space = Space({'seed': integer(0, 2**32 - 1)}, config)
  held = types.SimpleNamespace(
    trials=lambda: [{'seed': 0}, {'seed': 2}], values_of=lambda trial: trial
  )
  assert sweep._other_seeds(held, space, 2) == [1, 3]


def test_a_sweep_that_is_left_goes_on_to_the_same_end(
  config, domains, tmp_path
):
  settings = functools.partial(
    small_sweeps.settings, population=2, trials=4, seeds=1, top=1
  )
  _, whole = sweep.run(config, domains, tmp_path / 'whole', settings())
  parts = tmp_path / 'parts'
  lives = 0
  finished = False
  while not finished:
    finished, content = sweep.run(
      config, domains, parts, settings(max_seconds=1e-6)
    )
    assert finished or content['best'] is None
    lives += 1
  assert lives > 2
  for one, other in zip(whole['trials'], content['trials'], strict=True):
    for key in ('params', 'values', 'value', 'state', 'epoch'):
      assert one[key] == other[key]
  assert whole['best'] == content['best']


def test_the_end_of_one_that_was_only_not_told_is_told(
  config, domains, tmp_path, monkeypatch
):
  """As if it had been killed between its last checkpoint and that."""

  class Killed(BaseException):
    pass

  def die(*_):
    raise Killed

  settings = small_sweeps.settings(trials=1)
  with monkeypatch.context() as patch:
    patch.setattr(queue.Trials, 'end', die)
    with pytest.raises(Killed):
      sweep.run(config, domains, tmp_path, settings)
  before = records.read_metrics(tmp_path / 'trials/0000')
  assert [r['epoch'] for r in before] == [1, 2]
  finished, content = sweep.run(config, domains, tmp_path, settings)
  assert finished
  assert records.read_metrics(tmp_path / 'trials/0000') == before
  assert content['trials'][0]['value'] == max(
    r['validation']['accuracy'] for r in before
  )


@pytest.mark.parametrize('call', ['report', 'unpromising'])
def test_who_was_not_reported_or_not_judged_is(
  config, tmp_path, monkeypatch, call
):
  """As if the storage had gone away as the second of three was."""
  config.train.epochs = 3
  config.train.select = 'loss'
  domains = {'optim.learning_rate': choice(1e-2, 1e-7, 1e-8)}
  settings = small_sweeps.settings(search='grid', prune='halving', population=3)

  original = getattr(queue.Trials, call)

  def gone(trials, run, *arguments):
    if run.number == 1:
      raise UserError('the storage has gone away')
    return original(trials, run, *arguments)

  with monkeypatch.context() as patch:
    patch.setattr(queue.Trials, call, gone)
    with pytest.raises(UserError, match='gone away'):
      sweep.run(config, domains, tmp_path, settings)
  finished, content = sweep.run(config, domains, tmp_path, settings)
  assert finished
  assert [(t['state'], t['epoch']) for t in content['trials']] == [
    ('complete', 3),
    *[('pruned', 1)] * 2,
  ]
  pruned = tmp_path / content['trials'][2]['workdir']
  event = journal.read(pruned)[-1]
  assert (event['event'], event['epoch']) == ('pruned', 1)


def test_a_trial_is_judged_by_its_last_report_alone(config, domains, tmp_path):
  """Epochs that a kill undid are trained again, and were judged before."""
  config.train.epochs = 3
  settings = small_sweeps.settings(prune='halving')
  study = sweep._study(config, Space(domains, config), tmp_path, settings)
  good, bad = study.ask(), study.ask()
  for trial, value in ((good, 0.9), (bad, 0.1)):
    study.report(trial, 1, value)
  assert not study.unpromising(good, 1)
  assert study.unpromising(bad, 1)
  assert not study.unpromising(bad, 0)
  study.report(bad, 3, 0.1)
  study.report(good, 3, 0.9)
  assert not study.unpromising(bad, 1)
  assert not study.unpromising(bad, 2)
  assert study.unpromising(bad, 3)


def test_a_workdir_that_was_moved_goes_on(config, domains, tmp_path):
  config.train.epochs = 1
  settings = functools.partial(small_sweeps.settings, trials=1)
  _, before = sweep.run(config, domains, tmp_path / 'one', settings())
  (tmp_path / 'one').rename(tmp_path / 'two')
  finished, after = sweep.run(config, domains, tmp_path / 'two', settings())
  assert finished
  assert after['trials'] == before['trials']
  assert after['study'] == 'one'
  (tmp_path / 'two' / sweep.STUDY).write_text('[1]')
  with pytest.raises(UserError, match='is a list, expected an object'):
    sweep.run(config, domains, tmp_path / 'two', settings())


def test_mistakes(config, domains, tmp_path, monkeypatch):
  config.train.epochs = 1
  settings = functools.partial(small_sweeps.settings, trials=1)
  home = tmp_path / 'one'
  sweep.run(config, domains, home, settings())

  wider = {**domains, 'model.dropout': uniform(0.0, 0.6)}
  with pytest.raises(
    UserError, match=r'of another sweep: model\.dropout is kin'
  ):
    sweep.run(config, wider, home, settings())
  other = config.copy_and_resolve_references()
  other.optim.l2 = 0.1
  with pytest.raises(UserError, match=r'optim\.l2 is 0\.0 there and 0\.1 here'):
    sweep.run(other, domains, home, settings())
  with pytest.raises(UserError, match='--search is tpe there and random here'):
    sweep.run(config, domains, home, settings(search='random'))
  with pytest.raises(UserError, match='--prune is none there and halving here'):
    sweep.run(config, domains, home, settings(prune='halving'))
  url = f'sqlite:///{home / "study.db"}'
  with pytest.raises(
    UserError, match=r"study 'one' in sqlite.* another workdir"
  ):
    sweep.run(
      config, domains, tmp_path / 'two', settings(storage=url, study='one')
    )
  empty = f'sqlite:///{tmp_path / "empty.db"}'
  with pytest.raises(UserError, match=r'one holds trials of study .* has none'):
    sweep.run(config, domains, home, settings(storage=empty))
  for storage, says in (
    ('nowhere', 'is no URL of a database'),
    ('sqlite:////nowhere/at/all.db', 'cannot reach .*unable to open'),
    ('mysql://u:secret@h/d', r'mysql://u:\*\*\*@h/d needs a driver'),
    ('postgresql://u:secret@127.0.0.1:1/d', r'u:\*\*\*@.*refused'),
  ):
    with pytest.raises(UserError, match=says) as raised:
      sweep.run(config, domains, tmp_path / 'three', settings(storage=storage))
    assert '\n' not in str(raised.value)
  config.data.name = 'fer2013'
  config.data.options = {}
  with pytest.raises(UserError, match='fer2013'):
    sweep.run(config, domains, tmp_path / 'four', settings())


def test_a_shape_that_never_fits_fails_alone(config, tmp_path, monkeypatch):
  config.train.epochs = 1
  fits = worker._places

  def places(shared, member, size):
    if shared.config.model.units > 2:
      raise UserError('one run needs 9 MiB of memory')
    return fits(shared, member, size)

  monkeypatch.setattr(worker, '_places', places)
  domains = {'model.units': choice(2, 3)}
  settings = small_sweeps.settings(search='grid')
  finished, content = sweep.run(config, domains, tmp_path, settings)
  assert finished
  assert [t['state'] for t in content['trials']] == ['complete', 'failed']
  with pytest.raises(UserError, match=r'none of the 1 trials .* needs 9 MiB'):
    sweep.run(config, {'model.units': choice(3)}, tmp_path / 'b', settings)


def test_what_a_device_cannot_hold_is_told_and_the_rest_goes_on(
  config, tmp_path, monkeypatch, capsys
):
  """Of two units four trials are too many amid a step, of three any number,
  of four as well, as is known beforehand."""
  config.train.epochs = 1
  wait, make = population.Population.wait, side_by_side.population_of
  full = jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory\n...')
  made = []

  def waits(self):
    wait(self)
    if len(self) > 2:
      raise full

  def population_of(shared, members):
    made.append((shared.config.model.units, len(members)))
    if shared.config.model.units == 3:
      raise full
    if shared.config.model.units == 4:
      raise memory.ExhaustedError('one run needs 9 MiB', 0)
    return make(shared, members)

  monkeypatch.setattr(population.Population, 'wait', waits)
  monkeypatch.setattr(side_by_side, 'population_of', population_of)
  domains = {'model.units': choice(2, 3, 4), 'seed': choice(0, 1, 2, 3)}
  finished, content = sweep.run(
    config,
    domains,
    tmp_path,
    small_sweeps.settings(search='grid', population=4, top=0),
  )
  assert finished
  states = ['complete'] * 4 + ['failed'] * 8
  assert [t['state'] for t in content['trials']] == states
  assert made == [(2, 4), (2, 2), (3, 4), (3, 2), *[(3, 1)] * 4, (4, 4)]
  for trial in content['trials'][:4]:
    epochs = records.read_metrics(tmp_path / trial['workdir'])
    assert [r['epoch'] for r in epochs] == [1]
  out = capsys.readouterr().out.splitlines()
  said = 'the device has too little memory (RESOURCE_EXHAUSTED: Out of memory)'
  said += f'; {memory.HELPS}'
  assert f'4 trials side by side are too many, 2 are next: {said}' in out
  assert f'trial 7: failed ({said})' in out
  for number in range(8, 12):
    assert f'trial {number}: failed (one run needs 9 MiB)' in out
  exhausted = [
    (event['worker'], event['runs'], event['fewer'])
    for event in journal.read(tmp_path)
    if event['event'] == 'exhausted'
  ]
  fewer = [(4, 2), (4, 2), (2, 1), *[(1, 0)] * 4, (4, 0)]
  assert exhausted == [(0, *counts) for counts in fewer]


def test_a_trial_that_diverges_rolls_back_before_it_fails(config, tmp_path):
  config.train.epochs = 1
  config.train.on_divergence = 'rollback'
  domains = {'optim.learning_rate': choice(1e-2, 1e30)}
  settings = small_sweeps.settings(search='grid', population=2)
  finished, content = sweep.run(config, domains, tmp_path, settings)
  assert finished
  assert [t['state'] for t in content['trials']] == ['complete', 'failed']
  run = json.loads((tmp_path / 'trials/0001/run.json').read_text())
  assert [entry['to_step'] for entry in run['rollbacks']] == [0, 0, 0]
  assert records.read_metrics(tmp_path / 'trials/0001') == []

  # What came to nothing took as much of the device as what did not.
  (record,) = records.read_metrics(tmp_path / 'trials/0000')
  images = 2 * run['protocol']['train']
  rate = record['images_per_second']
  assert rate * record['seconds'] == pytest.approx(images)
  assert record['device_seconds'] == pytest.approx(record['seconds'] / 2)
  undone = rollback.undone(tmp_path / 'trials/0001')
  assert len(undone) == 4  # the last one is gone back from no more
  assert undone[0] == record['device_seconds']
  assert min(undone) > 0
  assert content['trials'][1]['device_seconds'] == pytest.approx(sum(undone))
  told = small_sweeps.stored(content).trials[1]
  assert (told.user_attrs['epoch'], told.user_attrs['undone']) == (0, 4)


def test_trials_put_in_by_hand_are_trained_or_refused_once(
  config, tmp_path, capsys
):
  config.train.epochs = 1
  domains = {
    'optim.learning_rate': log_uniform(1e-3, 1e-1),
    'seed': choice(1, 2),
  }
  settings = functools.partial(small_sweeps.settings, search='random')
  _, content = sweep.run(config, domains, tmp_path, settings(trials=1))
  open_study = functools.partial(small_sweeps.stored, content)
  study = open_study()
  study.enqueue_trial({'seed': 3})
  study.enqueue_trial({'optim.learning_rat': 1e-2})
  good = {'optim.learning_rate': 5e-2, 'seed': 2}
  study.enqueue_trial(good)
  study.enqueue_trial({'optim.learning_rate': 7.0})
  study.add_trial(
    optuna.trial.create_trial(
      value=2.0,
      params={'seed': 1},
      distributions={
        'seed': optuna.distributions.CategoricalDistribution([1, 2])
      },
    )
  )
  finished, content = sweep.run(
    config, domains, tmp_path, settings(trials=7, population=2)
  )
  assert finished
  trials = content['trials']
  done, failed = 'complete', 'failed'
  assert [t['state'] for t in trials] == [
    *[done, failed, failed, done, failed, done, done]
  ]
  assert trials[3]['params'] == good
  assert trials[5]['value'] == 2.0
  assert content['best']['trial'] != 5  # of which there is no run
  refused = [
    line for line in capsys.readouterr().out.splitlines() if 'cannot be' in line
  ]
  assert refused == [
    'trial 1 cannot be trained: seed is 3; allowed is choice(1, 2)',
    'trial 2 cannot be trained: optim.learning_rat is not searched; did you '
    "mean 'optim.learning_rate'?",
    'trial 4 cannot be trained: optim.learning_rate is 7.0; allowed is '
    'log_uniform(0.001, 0.1)',
  ]
  states = [trial.state.name for trial in open_study().trials]
  assert states == [
    'FAIL' if t['state'] == failed else 'COMPLETE' for t in trials
  ]
  sweep.run(config, domains, tmp_path, settings(trials=7))
  assert 'cannot be' not in capsys.readouterr().out


def test_a_trial_that_somebody_ends_fails_and_the_rest_goes_on(
  config, tmp_path, monkeypatch, capsys
):
  """As Optuna's dashboard does, amid the second epoch."""
  config.train.epochs = 3
  judge, judged = seats.Seats._judge, []

  def ended_before(turn, results):
    epoch = any(results)  # not on taking their seats
    judged.extend([None] * epoch)
    if epoch and len(judged) == 2:
      there = {'study': 'one', 'storage': f'sqlite:///{home / "study.db"}'}
      small_sweeps.stored(there).tell(0, state=optuna.trial.TrialState.FAIL)
    judge(turn, results)

  monkeypatch.setattr(seats.Seats, '_judge', ended_before)
  home = tmp_path / 'one'
  domains = {'optim.learning_rate': choice(1e-2, 1e-3, 1e-4)}
  settings = small_sweeps.settings(search='grid', population=2)
  finished, content = sweep.run(config, domains, home, settings)
  assert finished
  first, *others = content['trials']
  assert (first['state'], first['value'], first['epoch']) == ('failed', None, 2)
  assert first['failure'] == queue.ENDED
  assert list(first['values']) == ['1']
  assert [(t['state'], t['epoch']) for t in others] == [('complete', 3)] * 2
  assert len(judged) == 5  # the third takes the place of the first
  assert f'trial 0: failed after epoch 2 ({queue.ENDED})' in (
    capsys.readouterr().out
  )
  event = journal.read(home / first['workdir'])[-1]
  assert (event['event'], event['why']) == ('failed', queue.ENDED)


def test_a_trial_that_somebody_ended_is_left_as_it_is(
  config, domains, tmp_path, monkeypatch
):
  space = Space(domains, config)
  study = sweep._study(config, space, tmp_path, small_sweeps.settings())
  there = {'study': study.name, 'storage': study.storage.url}
  failed = optuna.trial.TrialState.FAIL
  end = functools.partial(small_sweeps.stored(there).tell, state=failed)
  first, second = study.ask(), study.ask()
  params = study.parameters(second)
  assert study.report(second, 1, 0.5)
  end(0)
  assert study.parameters(first) is None
  study.note_of_trial(first, turn='free')
  write = study._study._storage.set_trial_state_values

  def too_late(*arguments, **options):
    end(1)
    return write(*arguments, **options)

  monkeypatch.setattr(study._study._storage, 'set_trial_state_values', too_late)
  study.tell(second, optuna.trial.TrialState.COMPLETE, 0.5)
  assert study.parameters(second) == params
  assert not study.report(second, 1, 0.5)
  assert not study.report(second, 2, 0.6)
  assert [(t.state, t.user_attrs, t.value) for t in study.trials()] == [
    (failed, {}, None)
  ] * 2
  content = summary.build(study, space, tmp_path, {})
  assert [t['failure'] for t in content['trials']] == [queue.ENDED] * 2


def test_locks_are_those_that_nfs_gives(config, tmp_path, monkeypatch):
  """Of files that are open for writing; `flock` is turned into one of fcntl."""
  flock = fcntl.flock

  def of_nfs(file, how):
    if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
      raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    flock(file, how)

  def missing(file, how):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, 'flock', of_nfs)
  assert queue._is_free(tmp_path)
  with workdir.claimed(tmp_path, config):
    assert not queue._is_free(tmp_path)
  assert queue._is_free(tmp_path)
  monkeypatch.setattr(fcntl, 'flock', missing)
  for lock in (workdir.claimed(tmp_path, config), queue.asking(tmp_path)):
    with pytest.raises(UserError, match=r'cannot lock .*: No locks ava'), lock:
      pass


def test_data_that_is_gone_is_no_fault_of_a_trial(
  config, domains, tmp_path, monkeypatch
):
  config.train.epochs = 1
  settings = small_sweeps.settings(trials=2)
  load, loads = task.load_dataset, []

  def vanish(config):
    loads.append(config)
    if len(loads) > 1:
      raise UserError('the data is gone')
    return load(config)

  with monkeypatch.context() as patch:
    patch.setattr(task, 'load_dataset', vanish)
    with pytest.raises(UserError, match='the data is gone'):
      sweep.run(config, domains, tmp_path, settings)
  _, content = sweep.run(config, domains, tmp_path, settings)
  assert [t['state'] for t in content['trials']] == ['complete'] * 2


def test_populations_have_as_many_members_as_memory_holds(
  config, domains, tmp_path, monkeypatch, made
):
  config.train.epochs = 1
  sizes = []
  original = population.Population.__init__

  def init(self, images, members, **options):
    sizes.append(len(members))
    original(self, images, members, **options)

  monkeypatch.setattr(population.Population, '__init__', init)
  monkeypatch.setattr(
    side_by_side.memory,
    'waves',
    lambda count, *_, **__: [range(3), range(3, count)],
  )
  _, content = sweep.run(
    config, domains, tmp_path, small_sweeps.settings(population=5, trials=5)
  )
  assert sizes == [3]
  assert len(_of(content, 'complete')) == 5


def test_as_many_members_as_are_worth_it(monkeypatch):
  assert worker.population_size(0, 64) == 1
  assert worker.population_size(7, 64) == 7
  assert worker.members_on_cores(0, 32, 2) == 2
  assert worker.members_on_cores(0, 8, 64) == 1
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert worker.population_size(0, 64) == 8
  assert worker.population_size(0, 1000) == 16
  assert worker.population_size(0, 4) == 1
