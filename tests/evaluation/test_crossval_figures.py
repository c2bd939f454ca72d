"""Figures of a cross-validation over seeds, of folds made up.

Reference: counts by hand, and a plain loop over resamples.
"""

import json

import numpy as np
import pytest
from parsed_page import Page

from fer_jax import files
from fer_jax.errors import UserError
from fer_jax.evaluation import crossval, intervals, report, scores
from fer_jax.evaluation import workdir as workdir_lib
from fer_jax.evaluation.workdir import Evaluation

NAMES = ('calm', 'glad')
FOLDS, OF_FOLD = 2, 10
# Of each fold's examples under seed 0 and seed 7.
RIGHT = {0: 5, 7: 9}
N_BOOT = 400


def _evaluation(fold: int, right: int, *, people: bool = False) -> Evaluation:
  """A fold's test part of which the first `right` are predicted rightly."""
  ids = np.array([f'{fold}-{row}' for row in range(OF_FOLD)])
  labels = np.arange(OF_FOLD) % 2
  said = np.where(np.arange(OF_FOLD) < right, labels, 1 - labels)
  logits = 4 * np.eye(2, dtype=np.float32)[said]
  metrics = {
    'split': 'test',
    **scores.all_scores(logits, labels, NAMES, n_boot=N_BOOT),
    'class_names': list(NAMES),
    'unit': 'subject' if people else 'example',
    'checkpoint': {'which': 'best', 'step': 4, 'epoch': 2},
  }
  units = np.array([f'{fold}-{row // 2}' for row in range(OF_FOLD)])
  return Evaluation(
    'test', metrics, ids, logits, labels, None, units if people else None
  )


def _folds(right=RIGHT, **given) -> list[crossval.Fold]:
  return [
    crossval.Fold(fold, seed, _evaluation(fold, count, **given))
    for seed, count in right.items()
    for fold in range(FOLDS)
  ]


@pytest.fixture
def written(tmp_path):
  """The folder of a cross-validation of two seeds."""
  folds, members = _folds(), []
  for fold in folds:
    folder = tmp_path / f'fold_{fold.fold}_seed_{fold.seed}'
    folder.mkdir()
    workdir_lib.write_evaluation(folder, fold.evaluation)
    members.append((fold.fold, fold.seed, folder))
  metrics = {
    'model': 'linear',
    'dataset': {
      'name': 'made_up',
      'version': '1.2.3',
      'options': {'labels': 'majority'},
      'checksum': 'ab' * 32,
    },
    'protocol': {
      'name': 'kfold_images',
      'leaks': True,
      'reason': 'Made up.',
      'options': {'folds': FOLDS},
    },
    **crossval.figures(folds, n_boot=N_BOOT),
    'members': [
      {'fold': fold, 'seed': seed, 'workdir': folder.name}
      for fold, seed, folder in members
    ],
  }
  crossval.write(tmp_path, crossval.read_folds(members), metrics)
  return tmp_path


def test_out_of_fold_is_the_mean_over_seeds():
  figures = crossval.figures(_folds(), n_boot=N_BOOT)
  together = figures['out_of_fold']
  assert [(s['seed'], s['accuracy']) for s in figures['seeds']] == [
    (0, 0.5),
    (7, 0.9),
  ]
  assert together['mean']['accuracy'] == pytest.approx(0.7)
  assert together['deviation']['accuracy'] == pytest.approx(0.08**0.5)
  for key in ('loss', 'balanced_accuracy', 'auc_macro'):
    assert together['mean'][key] == pytest.approx(
      np.mean([seed[key] for seed in figures['seeds']])
    )
  assert together['mean']['macro_f1'] == pytest.approx(
    np.mean([seed['macro']['f1'] for seed in figures['seeds']])
  )
  # Every prediction is in the matrix, the examples are counted once.
  assert together['n'] == FOLDS * OF_FOLD
  assert np.sum(together['confusion']) == 2 * FOLDS * OF_FOLD
  assert np.trace(together['confusion']) == FOLDS * sum(RIGHT.values())
  # Each seed has an interval of its own, of as many resamples.
  for seed in figures['seeds']:
    assert seed['bootstrap']['draws'] == N_BOOT
    low, high = seed['intervals']['accuracy']
    assert low < seed['accuracy'] < high
  json.dumps(figures, allow_nan=False)


@pytest.mark.parametrize('people', [False, True])
def test_the_interval_is_of_the_mean_over_seeds(people):
  """Against a plain loop, of 2,000 draws."""
  folds = _folds(people=people)
  found = crossval.figures(folds, n_boot=10_000)['out_of_fold']
  seeds = [crossval.out_of_fold(folds, seed) for seed in RIGHT]
  right = np.mean([a['logits'].argmax(-1) == a['label'] for a in seeds], 0)
  units = seeds[0]['unit' if people else 'id']
  rows = [np.flatnonzero(units == unit) for unit in np.unique(units)]
  rng = np.random.default_rng(1)
  draws = [
    np.mean([right[rows[unit]] for unit in rng.choice(len(rows), len(rows))])
    for _ in range(2_000)
  ]
  assert found['unit'] == ('subject' if people else 'example')
  np.testing.assert_allclose(
    found['intervals']['accuracy'],
    intervals.share_interval(
      float(right.mean()), np.array(draws), len(rows), at_bounds=len(rows)
    ),
    atol=0.01,
  )


def test_one_seed_is_its_own_mean():
  figures = crossval.figures(_folds({3: 8}), n_boot=N_BOOT)
  (seed,), together = figures['seeds'], figures['out_of_fold']
  assert together['mean']['accuracy'] == seed['accuracy'] == 0.8
  assert together['deviation']['accuracy'] is None
  assert together['intervals'] == seed['intervals']
  assert together['confusion'] == seed['confusion']


def test_terminal_and_page_say_what_the_file_says(written):
  metrics, folds = crossval.read(written)
  assert len(folds) == 2 * FOLDS
  said = crossval.text(metrics).replace('\xa0', ' ')
  bounds = metrics['out_of_fold']['intervals']['accuracy']
  interval = '–'.join(f'{100 * bound:.1f}' for bound in bounds) + ' %'
  assert (
    f'out of fold: 70.0 ± 28.3 % of 20 examples (95 % {interval}), the mean '
    'over 2 seeds' in said
  )
  assert 'accuracy: 70.0 ± 23.1 % over folds and seeds' in said
  assert 'seed 0: 50.0 % (95 %' in said
  assert 'seed 7: 90.0 % (95 %' in said
  for seed in RIGHT:
    for fold in range(FOLDS):
      assert f'{fold:>5}{seed:>6}      10' in said
  page = Page(report.write_report([written]).read_text())
  assert page.says(
    'Accuracy out of fold 70.0 ± 28.3 % mean ± standard deviation over 2 '
    f'seeds, 95 % {interval}, 20 examples'
  )
  assert page.says('over folds and seeds')
  assert page.says(
    'Made up. Data set made_up 1.2.3 Data options labels=majority Protocol '
    f'options folds={FOLDS} Data checksum sha256 {"ab" * 32} Accuracy over'
  )
  alts = [image['alt'] for image in page.images]
  assert any('40 out-of-fold predictions of 2 seeds, summed' in a for a in alts)
  assert any('each fold and seed' in a for a in alts)
  assert page.says(metrics['definitions']['confusion'])


def test_seeds_of_other_examples_have_no_mean(written):
  folder = written / 'fold_1_seed_7'
  evaluation = _evaluation(1, RIGHT[7])
  evaluation.ids[3] = 'else'
  workdir_lib.write_evaluation(folder, evaluation)
  with pytest.raises(UserError, match='seed 7 hold other examples than those'):
    crossval.read(written)


def test_figures_of_the_first_seed_alone_are_made_again(written):
  """As an earlier version wrote them."""
  metrics = files.read_json(written / crossval.METRICS)
  metrics['out_of_fold'] |= metrics['out_of_fold'].pop('mean')
  files.write_json(written / crossval.METRICS, metrics)
  with pytest.raises(UserError, match=r'mean is missing; crossval on the same'):
    crossval.read(written)
