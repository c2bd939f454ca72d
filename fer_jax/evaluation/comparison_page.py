"""The sections of a report that compare several runs."""

from collections.abc import Callable, Sequence
from typing import Any

from fer_jax.evaluation import page, plots, run_page, runs, wording
from fer_jax.evaluation.figures import Figures
from fer_jax.evaluation.page import Html
from fer_jax.evaluation.runs import Group, Run


def sections(members: Sequence[Run], figures: Figures) -> list[Html]:
  """Header, tables and curves of at least two runs."""
  groups = runs.group(members)
  return [
    page.tag(
      'header',
      page.tag('h1', f'{len(members)} runs compared'),
      page.tag(
        'p',
        'Runs whose configs differ in the seed alone are one group.',
        class_='lead',
      ),
      _protocol_notice(members),
    ),
    _group_section(groups),
    _curves_section(groups, figures),
    _run_section(groups),
  ]


def _measured_on(run: Run) -> tuple[str, ...]:
  """What two runs must share for their figures to rank them."""
  dataset = run.facts.get('dataset', {})
  protocol = run.facts.get('protocol', {})
  return (
    dataset.get('name', 'unknown data'),
    dataset.get('checksum', 'unknown'),
    protocol.get('name', 'unknown'),
    protocol.get('digest', 'unknown'),
  )


def _protocol_notice(members: Sequence[Run]) -> Html:
  """Whether the figures may be compared at all, and the leak flags."""
  measured = {_measured_on(run) for run in members}
  flags = {run_page.leak_flag(run) for run in members}
  if len(measured) == 1 and len(flags) == 1:
    dataset, checksum, protocol, digest = measured.pop()
    flag = run_page.LEAK_FLAGS[flags.pop()]
    clean = run_page.leak_flag(members[0]) is False
    lines = [
      page.tag('strong', f'All runs: {dataset}, protocol {protocol}. {flag}'),
      page.tag(
        'p', str(members[0].facts.get('protocol', {}).get('reason', ''))
      ),
      page.facts(
        [
          ('Data checksum', page.code(f'sha256 {checksum}')),
          ('Partition digest', page.code(f'sha256 {digest}')),
        ]
      ),
    ]
  else:
    clean = False
    lines = [
      page.tag(
        'strong',
        'These runs differ in data or protocol: their figures were not '
        'measured on the same examples and do not rank them.',
      ),
      page.facts(
        (
          run.name,
          f'{run.facts.get("dataset", {}).get("name", "unknown data")}, '
          f'protocol {run.facts.get("protocol", {}).get("name", "unknown")}. '
          + run_page.LEAK_FLAGS[run_page.leak_flag(run)],
        )
        for run in members
      ),
    ]
  return page.tag(
    'div', *lines, class_=f'notice {"clean" if clean else "leaks"}'
  )


def _group_section(groups: Sequence[Group]) -> Html:
  share, number = wording.spread_percent, wording.spread

  def row(group: Group) -> tuple[object, ...]:
    def over(figure: Callable[[Run], float | None]) -> list[float | None]:
      return [figure(run) for run in group.runs]

    return (
      page.breakable(group.label),
      len(group.runs),
      share(over(_best_accuracy)),
      share(over(lambda run: _test(run, 'accuracy'))),
      share(over(lambda run: _test(run, 'balanced_accuracy'))),
      share(over(lambda run: _test(run, 'macro', 'f1'))),
      share(over(lambda run: _test(run, 'expected_calibration_error'))),
      number(over(runs.images_per_second), '{:,.0f}'),
      number(over(_minutes), '{:,.1f}'),
    )

  members = [run for group in groups for run in group.runs]
  return page.section(
    'Comparison',
    page.table(
      'Mean ± standard deviation over the runs of a group',
      (
        'Group',
        'Runs',
        'Validation accuracy of the best epoch',
        'Test accuracy',
        'Test balanced accuracy',
        'Test macro F1',
        'Test calibration error',
        'Images/s',
        'Minutes',
      ),
      [row(group) for group in groups],
    ),
    page.tag(
      'p',
      'The best epoch of a run is the one that its train.select prefers.',
      class_='small',
    ),
    *(page.tag('p', note, class_='small') for note in _cautions(members)),
  )


def _cautions(members: Sequence[Run]) -> list[str]:
  """What keeps the test figures from being comparable."""
  tested = [
    run.evaluations['test'].metrics
    for run in members
    if 'test' in run.evaluations
  ]
  cautions = []
  if len({metrics.get('ids_sha256') for metrics in tested}) > 1:
    cautions.append('The test figures are not of the same examples.')
  if len({tuple(metrics.get('views', ())) for metrics in tested}) > 1:
    cautions.append('The test figures differ in test-time augmentation.')
  if len(tested) < len(members):
    cautions.append(
      f'{len(members) - len(tested)} of {len(members)} runs have not been '
      'evaluated on the test split.'
    )
  return cautions


def _curves_section(groups: Sequence[Group], figures: Figures) -> Html:
  drawn = []
  for part, quantity in (
    ('validation', 'accuracy'),
    ('validation', 'loss'),
    ('train', 'accuracy'),
    ('train', 'loss'),
  ):
    lines = []
    for index, group in enumerate(groups):
      epochs, mean, deviation = runs.mean_curve(group, part, quantity)
      if len(epochs):
        label = f'{group.label} ({len(group.runs)})'
        lines.append(
          plots.Line(label, epochs, mean, deviation, colour=index, dash=index)
        )
    if lines:
      name = f'{part}_{quantity}'
      drawn.append(run_page.curve_plot(lines, name, quantity, figures))
  if not drawn:
    return Html('')
  return page.section(
    'Curves',
    run_page.plot_grid(drawn),
    page.tag(
      'p',
      'A line is the mean of a group over the epochs that all its runs have, '
      'its band one standard deviation over the seeds either way; the number '
      'of runs is in brackets.',
      class_='small',
    ),
  )


def _run_section(groups: Sequence[Group]) -> Html:
  rows = []
  for group in groups:
    for run in group.runs:
      best = runs.best_validation(run) or {}
      test = run.evaluations.get('test')
      rows.append(
        (
          page.breakable(run.name),
          page.breakable(group.label),
          run.config.get('seed', wording.MISSING),
          best.get('epoch', wording.MISSING),
          wording.percent(best.get('accuracy')),
          wording.percent(_test(run, 'accuracy')),
          wording.interval(test.metrics if test else {}, 'accuracy'),
        )
      )
  return page.section(
    'Runs',
    page.table(
      'The interval is that of sampling examples, not that of the seeds',
      (
        'Run',
        'Group',
        'Seed',
        'Best epoch',
        'Validation accuracy',
        'Test accuracy',
        '95 % interval',
      ),
      rows,
      words={1},
    ),
  )


def _best_accuracy(run: Run) -> float | None:
  return (runs.best_validation(run) or {}).get('accuracy')


def _test(run: Run, *names: str) -> float | None:
  """A figure of the run's test split, None where it was not evaluated."""
  evaluation = run.evaluations.get('test')
  if evaluation is None:
    return None
  value: Any = evaluation.metrics
  for name in names:
    value = value[name]
  return value


def _minutes(run: Run) -> float | None:
  seconds = runs.training_seconds(run)
  return None if seconds is None else seconds / 60
