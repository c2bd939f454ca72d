"""Selection, patience and plateaus against hand-worked sequences."""

import jax
import pytest

from fer_jax.training import progress
from fer_jax.training.state import initial_progress


def _after(values, settings):
  now = initial_progress()
  seen = []
  for step, value in enumerate(values, 1):
    now = progress.update(now, settings, {settings.metric: value}, step * 10)
    seen.append(now)
  return seen


def test_best_is_the_first_highest_accuracy():
  seen = _after([0.2, 0.5, 0.5, 0.4], progress.SelectionSettings())
  assert [int(p.best_step) for p in seen] == [10, 20, 20, 20]
  assert float(seen[-1].best_metric) == pytest.approx(0.5)


def test_best_is_the_lowest_loss():
  settings = progress.SelectionSettings(metric='loss')
  seen = _after([2.0, 1.0, 1.5], settings)
  assert [int(p.best_step) for p in seen] == [10, 20, 20]


def test_patience_counts_validations_since_the_best():
  settings = progress.SelectionSettings(patience=2)
  seen = _after([0.5, 0.4, 0.6, 0.5, 0.6], settings)
  assert [bool(p.active) for p in seen] == [True, True, True, True, False]


def test_nan_is_never_the_best():
  seen = _after([0.3, float('nan')], progress.SelectionSettings())
  assert int(seen[-1].best_step) == 10


def test_plateau_reduces_and_waits_anew():
  settings = progress.SelectionSettings(plateau_patience=2, plateau_factor=0.5)
  seen = _after([0.5, 0.4, 0.4, 0.4, 0.4], settings)
  factors = [float(p.lr_factor) for p in seen]
  assert factors == [1.0, 1.0, 0.5, 0.5, 0.25]


def test_members_of_a_population_progress_by_themselves():
  settings = progress.SelectionSettings(patience=1)
  start = jax.tree.map(lambda x: jax.numpy.stack([x, x]), initial_progress())

  def update(now, value):
    return progress.update(now, settings, {'accuracy': value}, 1)

  now = jax.vmap(update)(start, jax.numpy.asarray([0.5, 0.5]))
  now = jax.vmap(update)(now, jax.numpy.asarray([0.6, 0.4]))
  assert now.active.tolist() == [True, False]
