"""The sections of a report on one run."""

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fer_jax.evaluation import examples_page, page, plots, runs, scores, wording
from fer_jax.evaluation.figures import Figures
from fer_jax.evaluation.page import Html
from fer_jax.evaluation.runs import Run
from fer_jax.evaluation.workdir import SPLITS, Evaluation

SLICE_NAMES = {
  'without_exact_twins': 'without exact copies',
  'without_twins': 'without any twins',
}

LEAK_FLAGS = {
  True: 'Leaks: yes. Its figures are no estimate for new faces.',
  False: 'Leaks: no.',
  None: 'Leaks: unknown.',
}


def header(run: Run) -> Html:
  """Name, protocol with its leak flag, headline figures, what is missing."""
  dataset = run.facts.get('dataset', {})
  model = run.config.get('model', {}).get('name', 'unknown model')
  described = f'{model} on {dataset.get("name", "unknown data")}'
  if 'parameters' in run.facts:
    described += f', {run.facts["parameters"]:,} parameters'
  return page.tag(
    'header',
    page.tag('h1', run.name),
    page.tag('p', described, class_='lead'),
    protocol_notice(run),
    _tiles(run),
    *(page.tag('p', note) for note in run.notes),
    *(
      page.tag(
        'div',
        page.tag('p', f'The {split} split has not been evaluated.'),
        page.command(
          'python -m fer_jax evaluate '
          f'{shlex.quote(f"--workdir={run.path}")} --split={split}'
        ),
      )
      for split in SPLITS
      if split not in run.evaluations
      # Nothing selects where `data.validation_share` is 0.
      and run.facts.get('protocol', {}).get(split) != 0
    ),
  )


def sections(run: Run, figures: Figures) -> list[Html]:
  """Everything below the header."""
  parts = [_training_section(run, figures)]
  # The reported split first, the one that selected after it.
  for split in ('test', 'validation'):
    evaluation = run.evaluations.get(split)
    if evaluation is not None:
      within = figures.within(f'{split}_')
      parts.append(_split_section(evaluation, within))
      parts += examples_page.sections(evaluation, within)
  if run.elsewhere:
    parts.append(_elsewhere_section(run))
  return [*parts, _making_section(run)]


def leak_flag(run: Run) -> bool | None:
  """Whether the run's protocol leaks, None where it is not known."""
  return run.facts.get('protocol', {}).get('leaks')


def plot_grid(drawn: Iterable[Html]) -> Html:
  """Plots side by side where there is room."""
  return page.tag('div', *drawn, class_='plots')


def protocol_notice(run: Run) -> Html:
  """Data and protocol with the leak flag: what the figures are worth."""
  protocol = run.facts.get('protocol', {})
  further: list[tuple[str, object]] = [
    ('Partition digest', page.code(f'sha256 {protocol.get("digest")}')),
  ]
  if 'train' in protocol and 'validation' in protocol:
    further.append(
      (
        'Examples',
        f'{protocol["train"]:,} to train on, {protocol["validation"]:,} to '
        'select on',
      )
    )
  test = run.evaluations.get('test')
  if test is not None and test.metrics.get('looks') is not None:
    further.append(
      (
        'Looks at the test split',
        f'{test.metrics["looks"]} at exactly these examples when the test '
        'figures below were made',
      )
    )
  return notice(run.facts.get('dataset', {}), protocol, further)


def notice(
  dataset: dict[str, Any],
  protocol: dict[str, Any],
  further: Iterable[tuple[str, object]] = (),
) -> Html:
  """Protocol with its leak flag and the data it divides.

  Args:
    dataset: as run.json has it.
    protocol: as run.json has it, {} where none is known.
    further: rows that only some pages have.
  """
  leaks = protocol.get('leaks')
  described: list[tuple[str, object]] = [
    ('Data set', f'{dataset.get("name")} {dataset.get("version", "")}'),
  ]
  for title, value in (
    ('Data options', dataset.get('options')),
    ('Notes of its builder', dataset.get('notes')),
    ('Protocol options', protocol.get('options')),
  ):
    if value:
      described.append((title, wording.plain(value)))
  checksum = page.code(f'sha256 {dataset.get("checksum")}')
  described += [('Data checksum', checksum), *further]
  return page.tag(
    'div',
    page.tag(
      'p',
      page.tag(
        'strong',
        f'Protocol {protocol.get("name", "unknown")}. {LEAK_FLAGS[leaks]}',
      ),
    ),
    page.tag('p', str(protocol.get('reason', ''))),
    page.facts(described) if protocol else '',
    class_=f'notice {"clean" if leaks is False else "leaks"}',
  )


def _tiles(run: Run) -> Html:
  """The figures one looks for first."""
  tiles: list[tuple[str, str, str]] = []
  reported = run.evaluations.get('test', run.evaluations.get('validation'))
  for split in ('test', 'validation'):
    evaluation = run.evaluations.get(split)
    if evaluation is None:
      continue
    metrics, name = evaluation.metrics, split.capitalize()
    tiles.append(
      (
        f'{name} accuracy',
        wording.percent(metrics['accuracy']),
        f'95 % interval {wording.interval(metrics, "accuracy")}, '
        f'n = {metrics["n"]:,}',
      )
    )
    if evaluation is not reported:
      continue
    tiles += [
      (
        f'{name} macro F1',
        wording.percent(metrics['macro']['f1']),
        f'95 % interval {wording.interval(metrics, "macro_f1")}',
      ),
      (
        f'{name} calibration error',
        wording.percent(metrics['expected_calibration_error']),
        f'macro AUC {wording.decimal(metrics["auc_macro"])}',
      ),
    ]
  best = runs.best_validation(run)
  if 'validation' not in run.evaluations and best is not None:
    tiles.append(
      (
        'Validation accuracy',
        wording.percent(best.get('accuracy')),
        f'epoch {best["epoch"]}, which selection prefers, as training saw it',
      )
    )
  rate, seconds = runs.images_per_second(run), runs.training_seconds(run)
  if rate is not None and seconds is not None:
    tiles.append(
      (
        'Training',
        wording.duration(seconds),
        f'{len(run.history)} epochs, {rate:,.0f} images/s',
      )
    )
  return page.tiles(tiles) if tiles else Html('')


def _training_section(run: Run, figures: Figures) -> Html:
  drawn = []
  for quantity in ('loss', 'accuracy'):
    lines = []
    for index, part in enumerate(('train', 'validation')):
      epochs, values = runs.curve(run, part, quantity)
      if len(epochs):
        lines.append(plots.Line(part, epochs, values, colour=index, dash=index))
    if lines:
      drawn.append(curve_plot(lines, quantity, quantity, figures))
  if not drawn:
    return Html('')
  best = runs.best_validation(run)
  said = (
    f'The best checkpoint by validation is that of epoch {best["epoch"]}. '
    if best is not None
    else ''
  )
  return page.section(
    'Training',
    plot_grid(drawn),
    page.tag(
      'p',
      f'{said}Training figures are measured on augmented images with dropout, '
      'while the parameters change: they can lie below validation.',
      class_='small',
    ),
  )


def curve_plot(
  lines: Sequence[plots.Line], name: str, quantity: str, figures: Figures
) -> Html:
  """A plot of curves over epochs with the last values as its description."""
  title = name.replace('_', ' ').capitalize()
  ends = '; '.join(
    f'{line.label} ends at {wording.quantity(quantity, line.y[-1])}'
    for line in lines
  )
  return figures.plot(
    f'{name}.png',
    plots.curves(lines, title=title, percent=quantity == 'accuracy'),
    f'{title} by epoch: {ends}.',
  )


def _split_section(evaluation: Evaluation, figures: Figures) -> Html:
  return page.section(
    f'{evaluation.split.capitalize()} figures',
    page.tag('p', _evaluated(evaluation.metrics)),
    page.tag(
      'div',
      page.tag(
        'div',
        _score_table(evaluation.metrics),
        _average_table(evaluation.metrics),
      ),
      page.tag(
        'div',
        _class_table(evaluation.metrics),
        _slice_table(evaluation.metrics),
      ),
      class_='columns',
    ),
    *_group_tables(evaluation.metrics),
    _split_plots(evaluation, figures),
    _definitions(evaluation.metrics),
  )


def _evaluated(metrics: dict[str, Any]) -> str:
  checkpoint = metrics.get('checkpoint', {})
  views = ', '.join(metrics.get('views', ())) or 'plain'
  said = (
    f'{metrics["n"]:,} examples; checkpoint of epoch '
    f'{checkpoint.get("epoch", wording.MISSING)}, step '
    f'{checkpoint.get("step", wording.MISSING)}; views: {views}; evaluated '
    f'{wording.moment(metrics.get("time"))}.'
  )
  if metrics.get('unit', 'example') != 'example':
    said += f' Intervals resample every {metrics["unit"]} as a whole.'
  absent = metrics.get('absent_classes')
  if absent:
    said += (
      f' No example of {", ".join(absent)} is in this split: such a class has '
      'no recall, F1 or AUC and is left out of macro figures.'
    )
  return said


def _score_table(metrics: dict[str, Any]) -> Html:
  return page.table(
    'Scores',
    ('Figure', 'Value', '95 % interval'),
    [
      (
        'Accuracy',
        wording.percent(metrics['accuracy']),
        wording.interval(metrics, 'accuracy'),
      ),
      (
        'Balanced accuracy',
        wording.percent(metrics['balanced_accuracy']),
        wording.interval(metrics, 'balanced_accuracy'),
      ),
      (
        'Macro F1',
        wording.percent(metrics['macro']['f1']),
        wording.interval(metrics, 'macro_f1'),
      ),
      ('Macro AUC', wording.decimal(metrics['auc_macro']), ''),
      (
        'Calibration error',
        wording.percent(metrics['expected_calibration_error']),
        '',
      ),
      ('Cross-entropy, nats', wording.decimal(metrics['loss']), ''),
    ],
  )


def _average_table(metrics: dict[str, Any]) -> Html:
  return page.table(
    'Means over classes, in %',
    ('Mean', 'Precision', 'Recall', 'F1'),
    [
      (
        name.capitalize(),
        *(
          wording.percent(metrics[name][figure], unit='')
          for figure in ('precision', 'recall', 'f1')
        ),
      )
      for name in ('macro', 'weighted')
    ],
  )


def _class_table(metrics: dict[str, Any]) -> Html:
  return page.table(
    'Each class, in %',
    ('Class', 'n', 'Precision', 'Recall', 'F1', 'AUC'),
    [
      (
        row['name'],
        f'{row["support"]:,}',
        wording.percent(row['precision'], unit=''),
        wording.percent(row['recall'], unit=''),
        wording.percent(row['f1'], unit=''),
        wording.decimal(row['auc']),
      )
      for row in metrics['per_class']
    ],
  )


def _elsewhere_section(run: Run) -> Html:
  """Figures on data sets that the run was not trained for."""
  rows = []
  for metrics in run.elsewhere.values():
    data = metrics.get('dataset', {})
    seen = (metrics.get('copies'), metrics.get('near_copies'))
    of = [data.get('name'), metrics.get('split'), *metrics.get('views', ())]
    of += [
      # Of a checksum as much as tells it from others.
      f'{option} {value[:12] if option == "checksum" else wording.plain(value)}'
      for option, value in metrics.get('chosen', {}).items()
    ]
    rows.append(
      (
        ', '.join(str(part) for part in of if part != 'plain'),
        f'{metrics["n"]:,}',
        wording.percent(metrics['accuracy']),
        wording.interval(metrics, 'accuracy'),
        wording.percent(metrics['macro']['f1']),
        *(wording.MISSING if n is None else f'{n:,}' for n in seen),
        f'{sum(metrics.get("left_out", {}).values()):,}',
        _renamed(metrics),
      )
    )
  return page.section(
    'On other data sets',
    page.table(
      'The best checkpoint on data it was not trained for',
      (
        'Data, split, views, options',
        'n',
        'Accuracy',
        '95 % interval',
        'Macro F1',
        'Seen as copies',
        'as near twins',
        'Left out',
        'Classes renamed',
      ),
      rows,
      words={8},
    ),
    page.tag(
      'p',
      'Seen: examples that are, as the model gets them, or nearly are, ones '
      f'that trained or selected it; {wording.MISSING} where that is not '
      'known. Left out: examples of classes that are mapped to none of the '
      "run's.",
      class_='small',
    ),
  )


def _renamed(metrics: dict[str, Any]) -> str:
  """The classes that have another name in the run."""
  pairs = [
    f'{theirs} as {ours}'
    for theirs, ours in metrics.get('class_map', {}).items()
    if theirs != ours and theirs not in metrics.get('left_out', {})
  ]
  return ', '.join(pairs) or 'none'


def _slice_table(metrics: dict[str, Any]) -> Html:
  slices = metrics.get('slices')
  if not slices:
    return Html('')
  return page.table(
    'Parts of the split; a twin is a copy, or nearly one, of an image that '
    'trained or selected',
    ('Part', 'n', 'Accuracy', '95 % interval', 'Macro F1'),
    [
      (
        SLICE_NAMES.get(name, name.replace('_', ' ')),
        f'{part["n"]:,}',
        wording.percent(part['accuracy']),
        wording.interval(part, 'accuracy'),
        wording.percent(part['macro_f1']),
      )
      for name, part in slices.items()
    ],
  )


def _group_tables(metrics: dict[str, Any]) -> list[Html]:
  """A table for each attribute, with its gap below."""
  parts = []
  for attribute, figures in metrics.get('groups', {}).items():
    rows = [
      (
        name,
        f'{group["n"]:,}',
        wording.percent(group['accuracy']),
        wording.interval(group, 'accuracy'),
        wording.percent(group['macro_f1']),
        wording.interval(group, 'macro_f1'),
      )
      for name, group in figures['groups'].items()
    ]
    parts += [
      page.table(
        f'By {attribute.replace("_", " ")}',
        (
          'Group',
          'n',
          'Accuracy',
          '95 % interval',
          'Macro F1',
          '95 % interval',
        ),
        rows,
      ),
      page.tag('p', wording.gap(figures['gap'])),
    ]
  return parts


def _split_plots(evaluation: Evaluation, figures: Figures) -> Html:
  metrics = evaluation.metrics
  names = metrics['class_names']
  counts = np.asarray(metrics['confusion'])
  probs = np.exp(scores.log_softmax(evaluation.logits))
  error = metrics['expected_calibration_error']
  return plot_grid(
    [
      figures.plot(
        'confusion_normalised.png',
        plots.confusion(counts, names, normalised=True),
        _confusion_alt(counts, names),
      ),
      figures.plot(
        'confusion.png',
        plots.confusion(counts, names, normalised=False),
        f'Confusion matrix of {counts.sum():,} examples in counts; '
        f'{np.trace(counts):,} lie on the diagonal.',
      ),
      figures.plot(
        'roc.png',
        plots.roc(scores.roc_curves(probs, evaluation.labels, names)),
        'ROC curve of each class against the rest; macro AUC '
        f'{wording.decimal(metrics["auc_macro"])}.',
      ),
      figures.plot(
        'reliability.png',
        plots.reliability(metrics['calibration'], error),
        'Reliability diagram, accuracy against confidence: expected '
        f'calibration error {wording.percent(error)}.',
      ),
    ]
  )


def _confusion_alt(counts: np.ndarray, names: Sequence[str]) -> str:
  """The matrix in a sentence: its most frequent mistake."""
  mistakes = counts - np.diag(np.diag(counts))
  if not mistakes.any():
    return 'Confusion matrix by true class: every example is right.'
  true, said = divmod(int(mistakes.argmax()), len(names))
  share = wording.percent(counts[true, said] / counts[true].sum())
  return (
    'Confusion matrix by true class. The most frequent mistake: '
    f'{names[true]} taken for {names[said]}, {share} of {names[true]}.'
  )


def _definitions(metrics: dict[str, Any]) -> Html:
  definitions = metrics.get('definitions')
  if not definitions:
    return Html('')
  return page.folded(
    'What these figures mean',
    page.facts(
      (name.replace('_', ' '), meaning) for name, meaning in definitions.items()
    ),
  )


def _making_section(run: Run) -> Html:
  """Time, environment and config."""
  environment = dict(run.facts.get('environment', {}))
  versions = environment.pop('versions', {})
  timing = _timing(run)
  config = [
    (page.code(page.breakable(name)), page.code(wording.plain(value)))
    for name, value in runs.flatten(run.config).items()
  ]
  machine = [
    (name.replace('_', ' '), wording.plain(value))
    for name, value in environment.items()
  ]
  parts = []
  if timing:
    parts.append(page.facts(timing))
  if machine or versions:
    parts.append(
      page.folded('Environment', page.facts([*machine, *versions.items()]))
    )
  parts.append(
    page.folded(
      f'Config, {len(config)} fields',
      page.table(
        'Every field of config.json', ('Field', 'Value'), config, words={1}
      ),
    )
  )
  return page.section('How it was made', *parts)


def _timing(run: Run) -> list[tuple[str, str]]:
  timing = []
  seconds, rate = runs.training_seconds(run), runs.images_per_second(run)
  if seconds is not None:
    timing.append(('Training time', wording.duration(seconds)))
  if rate is not None:
    timing.append(('Images a second, median of epochs', f'{rate:,.0f}'))
  if 'seconds_to_first_step' in run.facts:
    first = run.facts['seconds_to_first_step']
    timing.append(('Start to first step', f'{first:.1f} s'))
  timing += [
    (f'Evaluation, {split}', f'{evaluation.metrics["seconds"]:.1f} s')
    for split, evaluation in run.evaluations.items()
    if 'seconds' in evaluation.metrics
  ]
  return timing
