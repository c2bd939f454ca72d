"""A loss that is not finite, at a step that the test chooses."""

import json
import re
import shutil

import jax.numpy as jnp
import pytest

from fer_jax.errors import UserError
from fer_jax.training import (
  checkpoint,
  crossval,
  journal,
  loop,
  preemption,
  records,
  rollback,
)
from fer_jax.training import step as step_lib


@pytest.fixture
def diverging(tiny_config, monkeypatch):
  """Sets the step whose rate is infinite while the rate is above a factor."""
  tiny_config.train.epochs = 3
  tiny_config.train.on_divergence = 'rollback'
  rate = step_lib.learning_rate

  def at(step: int, above: float):
    def poisoned(state, plan, settings, now):
      bad = (now == step) & (state.progress.lr_factor > above)
      return jnp.where(bad, jnp.inf, rate(state, plan, settings, now))

    monkeypatch.setattr(step_lib, 'learning_rate', poisoned)

  return at


def test_rolls_back_halves_the_rate_and_records_it(
  diverging, tiny_config, tmp_path, capsys
):
  steps = 4  # an epoch
  diverging(step=steps + 1, above=0.3)  # of the second epoch, twice
  outcome = loop.train(tiny_config, tmp_path)
  assert outcome.finished
  assert outcome.rollbacks == 2
  metrics = records.read_metrics(tmp_path)
  assert outcome.step == 3 * (metrics[0]['step'])
  assert [r['epoch'] for r in metrics] == [1, 2, 3]
  assert [r.get('rollbacks', 0) for r in metrics] == [0, 2, 2]
  rate = tiny_config.optim.learning_rate
  rates = [r['learning_rate'] for r in metrics]
  assert rates == pytest.approx([rate, rate / 4, rate / 4])
  entries = json.loads((tmp_path / 'run.json').read_text())['rollbacks']
  assert [e['to_step'] for e in entries] == [metrics[0]['step']] * 2
  assert [e['epoch'] for e in entries] == [2, 2]
  out = capsys.readouterr().out
  assert f'rolled back to step {metrics[0]["step"]}, learning rate' in out
  assert '(2 of 3 times)' in out
  events = journal.read(tmp_path)
  names = [e['event'] for e in events]
  assert names == ['started', *['diverged', 'rolled_back'] * 2, 'finished']
  assert [e['epoch'] for e in events[1:5:2]] == [2, 2]
  assert [e['to_step'] for e in events[2:5:2]] == [metrics[0]['step']] * 2
  assert loop.train(tiny_config, tmp_path) == outcome


def test_gives_up_after_a_few_times_and_keeps_what_was_good(
  diverging, tiny_config, tmp_path
):
  diverging(step=0, above=0.0)
  with pytest.raises(UserError, match=r'epoch 1.* rolled back 3 times already'):
    loop.train(tiny_config, tmp_path)
  assert records.read_metrics(tmp_path) == []
  assert checkpoint.steps(tmp_path) == []


def test_a_fold_rolls_back_as_it_would_alone(diverging, tiny_config, tmp_path):
  config = tiny_config
  config.data.protocol = 'kfold_subjects'
  config.data.folds = 2
  config.train.batch_size = 16
  config.train.epochs = 2
  diverging(step=7, above=0.6)  # of the second epoch, once
  outcome = crossval.train(config, tmp_path / 'all')
  assert outcome.finished
  place = outcome.places[1]
  loop.train(place.config, tmp_path / 'alone')

  def entries(workdir):
    rollbacks = json.loads((workdir / 'run.json').read_text())['rollbacks']
    times = ('time', 'device_seconds')
    return [{k: v for k, v in e.items() if k not in times} for e in rollbacks]

  events = [e['event'] for e in journal.read(place.workdir)]
  assert events == ['started', 'diverged', 'rolled_back', 'finished']
  (entry,) = entries(place.workdir)
  assert entry['epoch'] == 2
  assert [entry] == entries(tmp_path / 'alone')
  together = records.read_metrics(place.workdir)
  by_itself = records.read_metrics(tmp_path / 'alone')
  assert [r['epoch'] for r in together] == [1, 2]
  for ours, theirs in zip(together, by_itself, strict=True):
    for key in ('step', 'rollbacks'):
      assert ours.get(key) == theirs.get(key)
    assert ours['learning_rate'] == pytest.approx(theirs['learning_rate'])
    assert ours['train'] == pytest.approx(theirs['train'], rel=1e-3)
  first, second = checkpoint.steps(place.workdir)
  assert [first, second] == checkpoint.steps(tmp_path / 'alone')

  # Killed as it had gone back, it goes on with the rate of after.
  shutil.rmtree(checkpoint.directory(place.workdir) / str(second))
  crossval.train(config, tmp_path / 'all')
  again = records.read_metrics(place.workdir)
  assert again[1]['learning_rate'] == together[1]['learning_rate']


def test_a_fold_gives_up_after_a_few_times_too(
  diverging, tiny_config, tmp_path, capsys
):
  tiny_config.data.protocol = 'kfold_subjects'
  tiny_config.data.folds = 2
  diverging(step=0, above=0.0)
  with pytest.raises(UserError, match=r'not finite in .*fold_0, .*fold_1;'):
    crossval.train(tiny_config, tmp_path)
  out = capsys.readouterr().out
  said = r'fold_0: the loss is not finite at step \d \(epoch 1\)'
  assert len(re.findall(f'{said}: rolled back to step 0', out)) == 3
  assert len(re.findall(f'{said}; rolled back 3 times already', out)) == 1
  assert checkpoint.steps(tmp_path / 'fold_0') == []
  events = [e['event'] for e in journal.read(tmp_path / 'fold_0')]
  assert events == ['started', *['diverged', 'rolled_back'] * 3, 'diverged']
  failed = journal.read(tmp_path)[-1]
  assert failed['event'] == 'failed'
  assert 'the other folds' not in failed['why']


def test_a_checkpoint_amid_an_epoch_is_no_place_to_go_back_to(
  diverging, tiny_config, tmp_path
):
  class Asked(preemption.Notice):
    polls = 0

    def agreed(self):
      self.polls += 1
      return self.polls > 12

  tiny_config.train.batch_size = 16
  tiny_config.train.block_steps = 1  # so that blocks are counted, not timed
  outcome = loop.train(tiny_config, tmp_path, notice=Asked())
  sealed = checkpoint.latest_intact(tmp_path)
  assert sealed.partial
  whole = checkpoint.latest_intact(tmp_path, whole=True)
  goal = whole.step if whole else 0
  diverging(step=outcome.step, above=0.9)
  outcome = loop.train(tiny_config, tmp_path)
  assert outcome.rollbacks == 1
  (entry,) = json.loads((tmp_path / 'run.json').read_text())['rollbacks']
  assert entry['to_step'] == goal
  assert [r['epoch'] for r in records.read_metrics(tmp_path)] == [1, 2, 3]


def test_rollbacks_of_a_future_that_is_given_up_are_forgotten(tmp_path):
  entries = [{'to_step': 4}, {'to_step': 8, 'device_seconds': 3.0}]
  path = tmp_path / 'run.json'
  run = {'class_names': ['a', 'b']}
  assert rollback.undone(tmp_path) == []
  ended = {'diverged': {'device_seconds': 2.0}}
  path.write_text(json.dumps({**run, 'rollbacks': entries, **ended}))
  assert rollback.undone(tmp_path) == [3.0, 2.0]
  assert rollback.noted(tmp_path, 8) == entries
  assert rollback.undone(tmp_path) == [3.0]
  assert rollback.noted(tmp_path, 7) == entries[:1]
  assert json.loads(path.read_text()) == {**run, 'rollbacks': entries[:1]}
  path.write_text(json.dumps({**run, 'rollbacks': [{'to_stop': 4}]}))
  with pytest.raises(UserError, match=r'run\.json: rollbacks\[0\]\.to_step is'):
    rollback.noted(tmp_path, 7)
