"""What is said of finalists that fail under other seeds."""

import types

import pytest
from optuna.trial import TrialState

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.tuning import Space, queue, summary, uniform

VALUES = (0.9, 0.8, 0.7)
WHY = 'the loss is not finite'


@pytest.fixture
def summed(config, tmp_path):
  """What a sweep of three trials sums up to, by its finalists' endings."""
  space = Space({'model.dropout': uniform(0.0, 0.5)}, config)
  trials = [
    types.SimpleNamespace(
      number=number,
      state=TrialState.COMPLETE,
      value=value,
      user_attrs={'device_seconds': 1.0, 'epoch': 1},
      intermediate_values={1: value},
      datetime_start=None,
      datetime_complete=None,
    )
    for number, value in enumerate(VALUES)
  ]
  study = types.SimpleNamespace(
    trials=lambda: trials,
    best_first=lambda: trials,
    values_of=lambda trial: {'model.dropout': trial.value / 2},
    larger_is_better=True,
    importance=lambda: None,
    storage=types.SimpleNamespace(shown='sqlite'),
    name='made up',
  )

  def build(endings):
    """Of trial 0 on: by seed what came of it, None of one not yet ended."""
    repeats = []
    for number, of_seeds in enumerate(endings):
      for seed, ending in of_seeds.items():
        folder = tmp_path / f'{number}_{seed}'
        folder.mkdir()
        repeats.append(queue.Repeat(number, seed, config, folder, ''))
        if ending is not None:
          run = types.SimpleNamespace(
            workdir=folder, claim=types.SimpleNamespace(close=lambda: None)
          )
          queue.Repeats(repeats, tmp_path).end(run, ending)
    ended = None not in [e for seeds in endings for e in seeds.values()]
    return summary.build(
      study, space, tmp_path, {'trials': 3}, repeats, ended=ended
    )

  return build


def _complete(value):
  return queue.Ending('complete', value)


FAILED = queue.Ending('failed', reason=WHY)


def test_a_finalist_that_fails_leaves_the_choice_aloud(summed):
  content = summed(
    [{5: FAILED, 6: _complete(0.95)}, {5: _complete(0.5), 6: _complete(0.6)}]
  )
  first, second = content['finalists']
  assert (first['mean'], second['mean']) == (None, pytest.approx(0.55))
  assert [run['failure'] for run in first['runs']] == [WHY, None]
  assert content['best']['trial'] == 1
  assert content['best']['value'] == pytest.approx(0.55)
  said = summary.text(content).splitlines()
  assert said[1] == (
    'trial 0: accuracy 0.9000, left out of the choice: failed under seed 5 '
    f'({WHY})'
  )
  assert said[3] == (
    'best: trial 1, validation accuracy 0.5500, the mean over those seeds'
  )


def test_where_all_finalists_fail_the_winner_is_said_to_be_unconfirmed(summed):
  content = summed([{5: FAILED}, {5: queue.Ending('failed')}])
  assert content['best'] == {'trial': 0, 'value': 0.9, 'config': summary.BEST}
  said = summary.text(content)
  assert 'failed under seed 5 (it gave no finite value)' in said
  assert (
    'best: trial 0, validation accuracy 0.9000, the value that it was selected '
    'by: every finalist failed under another seed' in said
  )


def test_failures_are_told_with_their_reasons(summed):
  content = summed([{5: _complete(0.5)}])
  trials = content['trials']
  assert [t['failure'] for t in trials] == [None, None, None]
  for trial, why in zip(trials, (None, WHY, WHY), strict=True):
    trial['failure'] = why
  assert f'2 failed: {WHY}' in summary.text(content).splitlines()


def test_a_finalist_under_way_has_not_failed(summed):
  content = summed([{5: None, 6: _complete(0.7)}])
  assert content['best'] is None
  (finalist,) = content['finalists']
  assert [run['failure'] for run in finalist['runs']] == [None, None]
  assert finalist['mean'] is None


def test_who_leaves_early_does_not_undo_the_end(summed, config, tmp_path):
  ended = summed([{5: _complete(0.5)}])
  early = {**ended, 'best': None, 'finalists': []}
  for trial in ended['trials']:
    folder = tmp_path / trial['workdir']
    folder.mkdir(parents=True)
    files.write_json(folder / 'config.json', config_lib.to_json(config))

  def written(content):
    assert summary.write(lambda: content, tmp_path) is content
    return files.read_json(tmp_path / summary.SUMMARY)

  assert written(early)['best'] is None
  assert written(ended)['best']['trial'] == 0
  assert written(early)['best']['trial'] == 0
  of_another_machine = {'trials': 3, 'population': 8}
  assert written({**early, 'search': of_another_machine})['best'] is not None
  # More was asked for since, and is not there yet.
  (finalist,) = ended['finalists']
  run = {'seed': 6, 'value': None, 'failure': None}
  again = {**finalist, 'runs': [*finalist['runs'], run]}
  assert written({**early, 'finalists': [again]})['best'] is None
  assert written(ended)['best'] is not None
  assert written({**early, 'search': {'trials': 4}})['best'] is None
