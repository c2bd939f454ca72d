"""The page of a cross-validation, from what it wrote."""

import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from fer_jax.evaluation import crossval, page, plots, run_page, wording
from fer_jax.evaluation.crossval import Fold
from fer_jax.evaluation.figures import Figures
from fer_jax.evaluation.page import Html


def sections(
  workdir: pathlib.Path,
  metrics: dict[str, Any],
  folds: Sequence[Fold],
  figures: Figures,
) -> list[Html]:
  """Header, folds, ROC by fold, and the out-of-fold confusion matrix.

  Args:
    workdir: of the cross-validation.
    metrics: of `crossval.figures`, with 'protocol', 'dataset' and 'model'.
    folds: of `crossval.read_folds`.
    figures: where plots are kept.
  """
  return [
    _header(workdir, metrics),
    _folds(metrics),
    _plots(metrics, folds, figures),
    page.section(
      'What the figures are',
      page.facts(metrics['definitions'].items()),
    ),
  ]


def _header(workdir: pathlib.Path, metrics: dict[str, Any]) -> Html:
  protocol, together = metrics['protocol'], metrics['out_of_fold']
  seeds = len(metrics['seeds'])
  over_folds = f'mean ± standard deviation over {crossval.over(metrics)}'
  return page.tag(
    'header',
    page.tag('h1', workdir.name or str(workdir)),
    page.tag(
      'p',
      f'{metrics["model"]} on {metrics["dataset"]["name"]}, '
      f'{len(metrics["folds"])} runs',
      class_='lead',
    ),
    run_page.notice(metrics['dataset'], protocol),
    page.tiles(
      [
        (
          'Accuracy over folds',
          crossval.spread_of(metrics, 'accuracy'),
          over_folds,
        ),
        (
          'Accuracy out of fold',
          crossval.spread_of(together, 'accuracy'),
          (f'mean ± standard deviation over {seeds} seeds, ' * (seeds > 1))
          + f'95 % {wording.interval(together, "accuracy")}, '
          f'{together["n"]:,} examples',
        ),
        (
          'Macro F1 over folds',
          crossval.spread_of(metrics, 'macro_f1'),
          over_folds,
        ),
      ]
    ),
  )


def _folds(metrics: dict[str, Any]) -> Html:
  share = wording.percent
  rows = [
    (
      f'{record["fold"]}, seed {record["seed"]}',
      f'{record["n"]:,}',
      share(record['accuracy']),
      share(record['balanced_accuracy']),
      share(record['macro_f1']),
      wording.decimal(record['auc_macro']),
      record['epoch'],
      ', '.join(record['absent_classes']) or wording.MISSING,
    )
    for record in metrics['folds']
  ]
  seeds = metrics['seeds']
  content: list[object] = [
    page.table(
      'Each fold, scored by itself',
      (
        'Fold',
        'Examples',
        'Accuracy',
        'Balanced accuracy',
        'Macro F1',
        'Macro AUC',
        'Epoch taken',
        'Classes it has none of',
      ),
      rows,
      words=(7,),
    )
  ]
  if len(seeds) > 1:
    content.append(
      page.table(
        'Out of fold, seed by seed',
        ('Seed', 'Accuracy', '95 % interval', 'Macro F1'),
        [
          (
            s['seed'],
            share(s['accuracy']),
            wording.interval(s, 'accuracy'),
            share(s['macro']['f1']),
          )
          for s in seeds
        ],
      )
    )
  return page.section('Folds', *content)


def _plots(
  metrics: dict[str, Any], folds: Sequence[Fold], figures: Figures
) -> Html:
  names = metrics['class_names']
  counts = np.asarray(metrics['out_of_fold']['confusion'])
  seeds = len(metrics['seeds'])
  of_seeds = f' of {seeds} seeds, summed,' if seeds > 1 else ''
  curves = crossval.mean_roc(folds)
  return page.section(
    'Out of fold',
    page.tag(
      'p',
      'Every example is predicted by the run whose test fold it is in; none of '
      'these predictions is of an example that trained or selected it.',
    ),
    page.tag(
      'div',
      figures.plot(
        'confusion.png',
        plots.confusion(counts, names, normalised=True),
        f'Confusion matrix of {counts.sum():,} out-of-fold predictions'
        f'{of_seeds} by true class.',
      ),
      figures.plot(
        'roc_of_folds.png',
        plots.roc_of_folds(**vars(curves)),
        'ROC curve of each fold'
        f'{" and seed" if seeds > 1 else ""}, classes averaged, with mean and '
        'deviation.',
      )
      if curves
      else '',
      class_='plots',
    ),
  )
