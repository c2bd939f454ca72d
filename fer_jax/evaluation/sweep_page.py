"""The page of a sweep, from its sweep.json."""

import math
import shlex
from typing import Any

from fer_jax.evaluation import page, run_page, sweep_plots, sweeps, wording
from fer_jax.evaluation.figures import Figures
from fer_jax.evaluation.page import Html
from fer_jax.evaluation.runs import Run
from fer_jax.evaluation.sweeps import Finalist, Parameter, Sweep, Trial

SHAPES_DRAWN = 12
ROWS_OPEN = 15
"""A longer table of trials is folded."""

STATE_NAMES = {
  'complete': 'complete',
  'pruned': 'pruned',
  'failed': 'failed',
  'running': 'under way',
  'waiting': 'waiting',
}


def sections(sweep: Sweep, figures: Figures) -> list[Html]:
  """Header, space, best and finalists, plots, cost, trials."""
  return [
    _header(sweep),
    _space(sweep),
    _best(sweep, figures),
    _plots(sweep, figures),
    _slices(sweep, figures),
    _cost(sweep, figures),
    _trials(sweep),
  ]


def _header(sweep: Sweep) -> Html:
  model = sweep.config.get('model', {}).get('name', 'unknown model')
  data = sweep.config.get('data', {}).get('name', 'unknown data')
  under_way = sum(t.state in ('running', 'waiting') for t in sweep.trials)
  return page.tag(
    'header',
    page.tag('h1', sweep.path.resolve().name),
    page.tag(
      'p',
      f'Sweep of {model} on {data}, {_extent(sweep)}',
      class_='lead',
    ),
    run_page.protocol_notice(
      Run(
        path=sweep.path,
        name='',
        config=sweep.config,
        facts=sweep.facts,
        history=[],
        evaluations={},
        elsewhere={},
        notes=(),
      )
    ),
    page.tag(
      'p',
      'Every value here is of the validation part, which selects; no test '
      'example was opened. The best of many trials is better than it will be '
      'on new examples, and the finalists over seeds say by how much seeds '
      'alone move it.',
    ),
    page.tag('p', f'{_counted(under_way, "trial")} under way or waiting.')
    if under_way
    else '',
    _tiles(sweep),
  )


def _extent(sweep: Sweep) -> str:
  """How many trials there are, of how many that were asked for."""
  count, asked = len(sweep.trials), sweep.search.get('trials')
  if isinstance(asked, int) and asked > count:
    return f'{count:,} of {_counted(asked, "trial")}'
  return _counted(count, 'trial')


def _tiles(sweep: Sweep) -> Html:
  best, cost = sweep.best_trial, sweep.cost
  states = sweeps.count_states(sweep.trials)
  tiles = []
  if best is not None and best.value is not None:
    tiles.append(
      (
        f'Best validation {sweep.metric}',
        _value(sweep, best.value),
        f'trial {best.number}{_sampling_noise(sweep, best.value)}',
      )
    )
  if sweep.finalists:
    number = None if best is None else best.number
    top = next(
      (f for f in sweep.finalists if f.trial == number), sweep.finalists[0]
    )
    tiles.append(
      (
        'The same over seeds',
        _mean(sweep, top.mean, top.deviation),
        f'trial {top.trial}, {_counted(len(top.runs), "seed")}'
        + (f', {len(top.failures)} failed' if top.failures else ''),
      )
    )
  tiles.append(
    (
      'Trials',
      f'{len(sweep.trials):,}',
      ', '.join(f'{n} {STATE_NAMES[s]}' for s, n in states.items())
      or 'none yet',
    )
  )
  if 'device_minutes' in cost:
    shapes = [
      _counted(int(cost[name]), name[:-1])
      for name in ('compilations', 'shapes')
      if name in cost
    ]
    tiles.append(
      (
        'Cost',
        wording.duration(60 * cost['device_minutes']),
        'of devices' + ''.join(f', {part}' for part in shapes),
      )
    )
  return page.tiles(tiles)


def _sampling_noise(sweep: Sweep, value: float) -> str:
  """Half a 95 % interval of a share, by the number of validation examples."""
  count = sweep.facts.get('protocol', {}).get('validation')
  if sweep.metric != 'accuracy' or not isinstance(count, int) or count < 1:
    return ''
  if not 0 <= value <= 1:
    return ''
  half = 1.96 * math.sqrt(value * (1 - value) / count)
  return f'; ± {100 * half:.1f} points by sampling alone, {count:,} examples'


def _space(sweep: Sweep) -> Html:
  rows = [
    (
      page.code(page.breakable(parameter.name)),
      _range(parameter),
      _condition(parameter),
    )
    for parameter in sweep.parameters
  ]
  facts: list[tuple[str, object]] = [
    (name.replace('_', ' ').capitalize(), wording.plain(value))
    for name, value in sweep.search.items()
  ]
  facts.append(('Metric', f'validation {sweep.metric}'))
  if sweep.study:
    facts.append(('Study', page.code(sweep.study)))
  if sweep.storage:
    facts.append(('Storage', page.code(sweep.storage)))
  return page.section(
    'What was searched',
    page.tag(
      'div',
      page.tag(
        'div',
        page.table(
          'The space',
          ('Field', 'Values', 'Only if'),
          rows,
          words={1, 2},
        ),
      ),
      page.tag('div', page.facts(facts)),
      class_='columns',
    ),
    page.folded(
      'The same study in Optuna Dashboard',
      page.command(f'optuna-dashboard {shlex.quote(sweep.storage)}'),
    )
    if sweep.storage
    else '',
  )


def _range(parameter: Parameter) -> str:
  if parameter.choices:
    said = ', '.join(wording.plain(choice) for choice in parameter.choices)
    return f'one of {said}'
  said = f'{_plain(parameter.low)} to {_plain(parameter.high)}'
  if parameter.kind:
    said += f', {parameter.kind.replace("_", " ")}'
  if parameter.log and 'log' not in parameter.kind:
    said += ', log scale'
  return said


def _condition(parameter: Parameter) -> str:
  return ', '.join(
    f'{name} is {wording.plain(value)}'
    for name, value in parameter.when.items()
  )


def _best(sweep: Sweep, figures: Figures) -> Html:
  best = sweep.best_trial
  if best is None:
    return page.section(
      'Best', page.tag('p', 'No trial has trained to its end yet.')
    )
  content: list[object] = [
    page.table(
      f'Trial {best.number}, validation {sweep.metric} '
      f'{_value(sweep, best.value)}',
      ('Field', 'Value', 'In the config'),
      [
        (
          page.code(page.breakable(name)),
          _plain(value),
          _plain(sweep.of_config(name)),
        )
        for name, value in best.params.items()
      ],
      words={1, 2},
    ),
    page.tag('p', _named_for(sweep, best)),
  ]
  content += _finalists(sweep, figures)
  content += _commands(sweep, best)
  heading = 'Best so far' if sweep.best is None else 'Best'
  return page.section(heading, *content)


def _finalists(sweep: Sweep, figures: Figures) -> list[Html]:
  if not sweep.finalists:
    return []
  values = {t.number: t.value for t in sweep.trials}
  content = [
    page.table(
      'Finalists: the best trials trained again from other seeds',
      (
        'Trial',
        'In the search',
        f'Mean ± deviation, {sweep.metric}',
        'Each seed',
      ),
      [
        (
          f.trial,
          _value(sweep, values.get(f.trial)),
          _mean(sweep, f.mean, f.deviation),
          _each_seed(sweep, f),
        )
        for f in sweep.finalists
      ],
      words={3},
    )
  ]
  if any(f.failures for f in sweep.finalists):
    said = (
      'A finalist that failed under another seed is left out of the choice.'
    )
    content.append(page.tag('p', said))
  if any(f.runs for f in sweep.finalists):
    plot = figures.plot(
      'finalists.png',
      sweep_plots.finalists(sweep),
      'Finalists: the value of each seed, with mean and deviation.',
    )
    content.append(run_page.plot_grid([plot]))
  return content


def _each_seed(sweep: Sweep, finalist: Finalist) -> str:
  each = [f'{_value(sweep, v)} (seed {seed})' for seed, v in finalist.runs]
  each += [f'failed (seed {seed}): {why}' for seed, why in finalist.failures]
  return ', '.join(each) or wording.MISSING


def _commands(sweep: Sweep, best: Trial) -> list[Html]:
  """That train the best config anew, and the best trial again."""
  replayed = best.workdir and f'{best.workdir}/config.json'
  content = []
  for what, config in (
    ('Train the best config again', sweep.best_config),
    (f'Replay trial {best.number}', replayed),
  ):
    if config:
      content += [
        page.tag('p', f'{what}:', class_='small'),
        page.command(
          'python -m fer_jax train '
          f'--config={shlex.quote(str(sweep.path / config))} '
          '--workdir=NEW_FOLDER'
        ),
      ]
  return content


def _named_for(sweep: Sweep, best: Trial) -> str:
  """Why a trial is the best, and what the config itself came to."""
  if sweep.best is None:
    said = 'The best value so far; the sweep has not ended.'
  elif any(f.mean is not None for f in sweep.finalists):
    said = 'Named best for its mean under seeds that it was not selected by.'
  else:
    said = 'Named best for the value that it was selected by, which '
    said += (
      'no other seed confirms: every finalist failed under one.'
      if sweep.finalists
      else 'is better than to be expected: it was repeated under no other seed.'
    )
  first = sweep.first
  if first is best:
    return f"{said} It has the config's own values."
  if first is not None and first.value is not None:
    state = STATE_NAMES[first.state]
    ended = '' if first.state == 'complete' else f' ({state})'
    said += (
      f" With the config's own values, trial {first.number}, it is "
      f'{_value(sweep, first.value)}{ended}.'
    )
  return said


def _plots(sweep: Sweep, figures: Figures) -> Html:
  valued = [t for t in sweep.trials if t.value is not None]
  drawn = []
  if valued:
    drawn.append(
      figures.plot(
        'history.png',
        sweep_plots.history(sweep),
        f'Validation {sweep.metric} of {len(valued)} trials in their order, '
        'with the best so far.',
      )
    )
  if any(t.values for t in sweep.trials):
    drawn.append(
      figures.plot(
        'learning_curves.png',
        sweep_plots.learning_curves(sweep),
        f'Validation {sweep.metric} by epoch of each trial; pruned ones end '
        'early.',
      )
    )
  if valued and sweep.parameters:
    drawn.append(
      figures.plot(
        'parallel.png',
        sweep_plots.parallel(sweep),
        'Parallel coordinates: the values that each trial took.',
      )
    )
  if sweep.importance:
    ranked = sorted(sweep.importance.items(), key=lambda e: -e[1])
    drawn.append(
      figures.plot(
        'importance.png',
        sweep_plots.importance(sweep.importance),
        'Importance of each parameter: '
        + ', '.join(f'{name} {100 * share:.0f} %' for name, share in ranked)
        + '.',
      )
    )
  if not drawn:
    return Html('')
  return page.section(
    'How the search went',
    run_page.plot_grid(drawn),
    page.tag(
      'p',
      'Importance is of the trials that were made, estimated by Optuna '
      '(PED-ANOVA): how far the values of a parameter in the better trials '
      'differ from those in all of them. From few trials it says little.',
      class_='small',
    )
    if sweep.importance
    else page.tag(
      'p',
      'The importance of the parameters is estimated when the sweep has ended, '
      'of four complete trials or more that differ in value.',
      class_='small',
    ),
  )


def _slices(sweep: Sweep, figures: Figures) -> Html:
  drawn = []
  for number, parameter in enumerate(sweep.parameters):
    tried = [
      t
      for t in sweep.trials
      if t.value is not None and parameter.name in t.params
    ]
    if tried:
      drawn.append(
        figures.plot(
          f'slice_{number}.png',
          sweep_plots.slice_of(sweep, parameter),
          f'Validation {sweep.metric} of {len(tried)} trials by '
          f'{parameter.name}.',
        )
      )
  if not drawn:
    return Html('')
  return page.section('Each parameter by itself', run_page.plot_grid(drawn))


def _cost(sweep: Sweep, figures: Figures) -> Html:
  if not any(t.device_seconds for t in sweep.trials):
    return Html('')
  rows = []
  for shape, trials in sweeps.by_shape(sweep.trials).items():
    best = sweeps.best_of(trials, sweep.metric)
    rows.append(
      (
        shape or "the config's own",
        len(trials),
        sum(t.epoch for t in trials),
        sum(t.device_seconds for t in trials) / 60,
        None if best is None else best.value,
      )
    )
  again = sum(f.device_seconds for f in sweep.finalists)
  if again:
    runs = sum(len(f.runs) + len(f.failures) for f in sweep.finalists)
    rows.append(('finalists under other seeds', runs, None, again / 60, None))
  rows.sort(key=lambda row: -row[3])
  minutes = [(name, spent) for name, _, _, spent, _ in rows[:SHAPES_DRAWN]]
  if len(rows) > SHAPES_DRAWN:
    rest = sum(row[3] for row in rows[SHAPES_DRAWN:])
    minutes.append((f'{len(rows) - SHAPES_DRAWN} others', rest))
  return page.section(
    'Cost',
    page.tag(
      'p',
      'A shape is what has to be compiled anew; trials of one shape differ in '
      'scalars alone and train side by side. A trial is charged its share of '
      "the device's time.",
    ),
    page.table(
      'By shape',
      ('Shape', 'Runs', 'Epochs', 'Device-minutes', f'Best {sweep.metric}'),
      [
        (
          page.breakable(name),
          trials,
          wording.MISSING if epochs is None else epochs,
          f'{spent:,.1f}',
          _value(sweep, value),
        )
        for name, trials, epochs, spent, value in rows
      ],
    ),
    run_page.plot_grid(
      [
        figures.plot(
          'cost.png',
          sweep_plots.cost(minutes),
          'Device-minutes by shape: '
          + ', '.join(f'{name} {spent:.1f}' for name, spent in minutes)
          + '.',
        )
      ]
    )
    if len(rows) > 1
    else '',
  )


def _trials(sweep: Sweep) -> Html:
  fields = [parameter.name for parameter in sweep.parameters]
  table = page.table(
    'Every trial; a field without a value was not searched in it',
    (
      'Trial',
      'State',
      sweep.metric.capitalize(),
      'Epochs',
      'Device time',
      *fields,
      'Workdir',
    ),
    [
      (
        t.number,
        STATE_NAMES[t.state] + (f': {t.failure}' if t.failure else ''),
        _value(sweep, t.value),
        str(t.epoch) + (f' of {t.epochs}' if t.epochs else ''),
        wording.duration(t.device_seconds),
        *(
          _plain(t.params[name]) if name in t.params else wording.MISSING
          for name in fields
        ),
        page.code(t.workdir),
      )
      for t in sweep.trials
    ],
    words={1, len(fields) + 5},
  )
  if len(sweep.trials) > ROWS_OPEN:
    return page.section(
      'Trials', page.folded(f'All {len(sweep.trials)} trials', table)
    )
  return page.section('Trials', table)


def _value(sweep: Sweep, value: float | None) -> str:
  if sweep.metric == 'accuracy':
    return wording.percent(value)
  return wording.decimal(value)


def _mean(sweep: Sweep, mean: float | None, deviation: float | None) -> str:
  if mean is None or deviation is None:
    return _value(sweep, mean)
  if sweep.metric == 'accuracy':
    return f'{100 * mean:.1f} ± {100 * deviation:.1f}{wording.PER_CENT}'
  return f'{mean:.3f} ± {deviation:.3f}'


def _plain(value: Any) -> str:
  """A parameter's value, numbers to four figures."""
  if value is None:
    return wording.MISSING
  if isinstance(value, float):
    return f'{value:.4g}'
  return wording.plain(value)


def _counted(count: int, noun: str) -> str:
  return f'{count:,} {noun}{"" if count == 1 else "s"}'
