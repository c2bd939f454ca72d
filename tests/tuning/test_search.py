"""Pruners and samplers on studies in memory."""

import optuna
import pytest

from fer_jax.tuning import search


@pytest.fixture(params=['maximize', 'minimize'])
def study(request):
  return optuna.create_study(direction=request.param)


def _report(study, values_by_epoch):
  trial = study.ask()
  sign = 1 if study.direction.name == 'MAXIMIZE' else -1
  for epoch, value in values_by_epoch.items():
    trial.report(sign * value, epoch)
  return trial


def _pruned(pruner, study, trials):
  study.pruner = pruner
  return [trial.should_prune() for trial in trials]


@pytest.mark.parametrize('name', ['tpe', 'random'])
def test_any_seed_draws(study, name):
  drawn = set()
  for seed in (0, 4295, 10**18):
    settings = search.Settings(name, seed=seed)
    study.sampler = search.sampler(settings, 0, [], {})
    drawn.add(study.ask().suggest_float('x', 0.0, 1.0))
  assert len(drawn) == 3


@pytest.mark.parametrize('turned', [False, True])
def test_halving_keeps_a_third_of_a_population_whatever_its_order(
  study, turned
):
  values = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
  values = values[::-1] if turned else values
  trials = [_report(study, {1: value}) for value in values]
  pruned = _pruned(search.Halving(1, 3), study, trials)
  assert [v for v, gone in zip(values, pruned, strict=True) if not gone] == (
    [0.6, 0.5] if turned else [0.5, 0.6]
  )


def test_halving_judges_at_rungs_alone(study):
  pruner = search.Halving(2, 3)
  good = _report(study, {1: 0.1, 2: 0.9})
  bad = _report(study, {1: 0.9, 2: 0.1})
  early = _report(study, {1: 0.0})
  later = _report(study, {1: 0.0, 2: 0.0, 3: 0.0})
  assert _pruned(pruner, study, [good, bad, early, later]) == [
    *(False, True, False, False)
  ]
  # The second rung, at 6, is the good one's alone; validated every four
  # epochs it is reached at 8.
  for epoch in (4, 8):
    good.report(0.0, epoch)
  assert not good.should_prune()
  other = _report(study, {2: 0.95, 8: 0.5})
  assert not other.should_prune()
  assert good.should_prune()


def test_rungs_are_at_a_ninth_and_at_a_third():
  assert search.pruner('halving', 27, 1)._first == 3
  assert search.pruner('halving', 5, 1)._first == 1
  assert search.pruner('halving', 27, 5)._first == 5
  assert isinstance(search.pruner('none', 9, 1), optuna.pruners.NopPruner)
  assert isinstance(search.pruner('median', 9, 1), optuna.pruners.MedianPruner)


@pytest.mark.parametrize('name', ['tpe', 'random'])
def test_a_trial_draws_the_same_whoever_asks_and_keeps_what_is_fixed(name):
  settings = search.Settings(name, seed=3)

  def draw(number, fixed):
    study = optuna.create_study(
      sampler=search.sampler(settings, number, [], fixed)
    )
    trial = study.ask()
    return (
      trial.suggest_categorical('units', [8, 16, 32]),
      trial.suggest_float('rate', 0.0, 1.0),
    )

  assert draw(4, {}) == draw(4, {})
  assert draw(4, {}) != draw(5, {})
  assert {draw(n, {'units': 32})[0] for n in range(8)} == {32}
  assert len({draw(n, {'units': 32})[1] for n in range(8)}) == 8
