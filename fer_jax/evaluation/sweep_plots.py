"""Plots of a sweep as PNG bytes, in the style of `plots`.

A trial is a mark: full for one trained to its end, a cross for one pruned, a
star for the best. Colour is never the only difference.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter

from fer_jax.evaluation import plots, sweeps, wording
from fer_jax.evaluation.sweeps import Parameter, Sweep, Trial

BEST, PLAIN, DROPPED = plots.COLOURS[1], plots.COLOURS[0], '#8a8f98'
LONGEST_LABEL = 26


def history(sweep: Sweep) -> bytes:
  """Each trial's value by its number, and the best so far as a step."""
  with plots.style():
    figure = plots.blank(3.6)
    axes = figure.subplots()
    best = sweep.best_trial
    _marks(
      axes,
      [(t.number, t.value, t) for t in sweep.trials if t.value is not None],
      best,
    )
    complete = sweep.complete
    if complete:
      lower = sweep.metric in sweeps.LOWER_IS_BETTER
      values = np.array([t.value for t in complete], float)
      so_far = (np.minimum if lower else np.maximum).accumulate(values)
      numbers = [t.number for t in complete]
      # On to the last trial of all: later ones have not bettered it.
      axes.step(
        [*numbers, sweep.trials[-1].number],
        [*so_far, so_far[-1]],
        where='post',
        color=BEST,
        label='best so far',
        zorder=1,
      )
    failed = [t.number for t in sweep.trials if t.state == 'failed']
    if failed:
      axes.plot(
        failed,
        np.full(len(failed), 0.03),
        '^',
        transform=axes.get_xaxis_transform(),
        color=plots.INK,
        markersize=5,
        clip_on=False,
        label='failed',
      )
    axes.set_title('Value of each trial')
    axes.set_xlim(
      sweep.trials[0].number - 0.5 - 0.02 * len(sweep.trials),
      sweep.trials[-1].number + 0.5 + 0.02 * len(sweep.trials),
    )
    axes.set_xlabel('Trial')
    axes.xaxis.set_major_locator(plots.whole_numbers())
    _value_axis(axes, sweep.metric)
    figure.legend(loc='outside lower center', ncols=2)
    return plots.png(figure)


def learning_curves(sweep: Sweep) -> bytes:
  """The metric by epoch: complete, pruned (dashed, crossed), the best one."""
  with plots.style():
    figure = plots.blank(3.6)
    axes = figure.subplots()
    best = sweep.best_trial
    # The best last, that it lies on top.
    trials = [t for t in sweep.trials if t.values and t is not best]
    if best is not None and best.values:
      trials.append(best)
    named = set()
    for trial in trials:
      name, colour, dash, width = _curve_style(trial, best)
      epochs, values = list(trial.values), list(trial.values.values())
      axes.plot(
        epochs,
        values,
        dash,
        color=colour,
        linewidth=width,
        alpha=1 if trial is best else 0.75,
        marker='o' if len(epochs) < 2 else None,
        markersize=4,
        label=None if name in named else name,
      )
      named.add(name)
      if trial.state == 'pruned':
        axes.plot(epochs[-1], values[-1], 'x', color=colour, markersize=6)
    axes.set_title(f'Validation {plots.literal(sweep.metric)} of each trial')
    axes.set_xlabel('Epoch')
    axes.xaxis.set_major_locator(plots.whole_numbers())
    _value_axis(axes, sweep.metric, label=False)
    figure.legend(loc='outside lower center', ncols=2)
    return plots.png(figure)


def importance(shares: dict[str, float]) -> bytes:
  """Share of each field in what the values differ by, the largest on top."""
  ranked = sorted(shares.items(), key=lambda entry: entry[1])
  with plots.style(**{'axes.grid': False}):
    figure = plots.blank(1.1 + 0.36 * len(ranked))
    axes = figure.subplots()
    widths = [share for _, share in ranked]
    bars = axes.barh(
      [_label(name) for name, _ in ranked], widths, color=PLAIN, height=0.66
    )
    axes.bar_label(bars, [f'{100 * w:.0f} %' for w in widths], padding=3)
    axes.set_xlim(0, 1.18 * max(max(widths), 1e-9))
    axes.xaxis.set_visible(False)
    axes.spines['bottom'].set_visible(False)
    axes.tick_params(axis='y', length=0)
    axes.set_title('Importance of each parameter')
    return plots.png(figure)


def parallel(sweep: Sweep) -> bytes:
  """Parallel coordinates: a line a trial through its parameters to its value.

  The coordinates lie one under another, so that it reads on a phone. A line
  breaks where a parameter was not searched.
  """
  best = sweep.best_trial
  trials = [t for t in sweep.trials if t.value is not None]
  values = np.array([t.value for t in trials], float)
  scales = [_Scale.of(p, trials) for p in sweep.parameters]
  scales.append(_Scale.of_values(sweep.metric, values))
  of_value = scales[-1].places(values)
  share = 1 - of_value if sweep.metric in sweeps.LOWER_IS_BETTER else of_value
  colours = matplotlib.colormaps['viridis_r'](0.05 + 0.85 * share)
  with plots.style(**{'axes.grid': False}):
    figure = plots.blank(0.5 + 0.72 * len(scales))
    axes = figure.subplots()
    rows = -np.arange(len(scales), dtype=float)
    for row, scale in zip(rows, scales, strict=True):
      axes.plot([0, 1], [row, row], color=plots.MUTED, linewidth=1, zorder=1)
      _coordinate(axes, row, scale)
    order = sorted(
      range(len(trials)), key=lambda t: (trials[t] is best, share[t])
    )
    for t in order:
      places = [scale.place(trials[t]) for scale in scales[:-1]]
      finest = trials[t] is best
      axes.plot(
        [*places, of_value[t]],
        rows,
        ':' if trials[t].state == 'pruned' else '-',
        color=BEST if finest else colours[t],
        linewidth=2.6 if finest else 1.1,
        # A value between two parameters that were not searched has no line.
        marker='.',
        markersize=7 if finest else 3,
        zorder=3 if finest else 2,
      )
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(rows[-1] - 0.5, 0.55)
    axes.set_axis_off()
    axes.set_title('Parallel coordinates: best thick, pruned dotted')
    return plots.png(figure)


def slice_of(sweep: Sweep, parameter: Parameter) -> bytes:
  """Values of the trials over one parameter."""
  trials = [
    t
    for t in sweep.trials
    if t.value is not None and parameter.name in t.params
  ]
  scale = _Scale.of(parameter, trials)
  with plots.style():
    figure = plots.blank(3.2)
    axes = figure.subplots()
    if scale.labels:
      places = [
        scale.index(t.params[parameter.name]) + 0.5 * _jitter(t.number)
        for t in trials
      ]
      labels = [_label(label) for label in scale.labels]
      crowded = sum(map(len, labels)) > 44
      axes.set_xticks(
        range(len(labels)),
        labels,
        rotation=30 if crowded else 0,
        ha='right' if crowded else 'center',
      )
      axes.set_xlim(-0.6, len(labels) - 0.4)
      axes.grid(False, axis='x')
    else:
      places = [float(t.params[parameter.name]) for t in trials]
      if scale.log:
        axes.set_xscale('log')
        if max(places) / min(places) >= 10:
          axes.xaxis.set_minor_formatter(NullFormatter())
      elif all(place == round(place) for place in places):
        axes.xaxis.set_major_locator(plots.whole_numbers())
      else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    _marks(
      axes,
      [(x, t.value, t) for x, t in zip(places, trials, strict=True)],
      sweep.best_trial,
    )
    axes.set_xlabel(plots.literal(parameter.name))
    _value_axis(axes, sweep.metric)
    return plots.png(figure)


def finalists(sweep: Sweep) -> bytes:
  """Each finalist's seeds, with their mean and a deviation either way."""
  entries = [f for f in sweep.finalists if f.runs][::-1]
  with plots.style():
    figure = plots.blank(1.3 + 0.42 * len(entries))
    axes = figure.subplots()
    for row, finalist in enumerate(entries):
      seeds = [value for _, value in finalist.runs]
      axes.plot(seeds, [row] * len(seeds), 'o', color=PLAIN, markersize=5)
      if finalist.mean is not None:
        axes.errorbar(
          finalist.mean,
          row,
          xerr=finalist.deviation,
          fmt='|',
          color=BEST,
          markersize=15,
          markeredgewidth=2.2,
          capsize=4,
        )
    axes.set_yticks(range(len(entries)), [f'trial {f.trial}' for f in entries])
    axes.set_ylim(-0.6, len(entries) - 0.4)
    axes.grid(False, axis='y')
    axes.set_title('Finalists over seeds, mean ± deviation')
    axes.set_xlabel(f'Validation {plots.literal(sweep.metric)}')
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
    if sweep.metric == 'accuracy':
      axes.xaxis.set_major_formatter(PercentFormatter(1))
    return plots.png(figure)


def cost(minutes: Sequence[tuple[str, float]]) -> bytes:
  """Device-minutes of each shape, in the order given, its name over its bar."""
  with plots.style(**{'axes.grid': False}):
    figure = plots.blank(0.6 + 0.55 * len(minutes))
    axes = figure.subplots()
    rows = range(len(minutes))
    spent = [each for _, each in minutes]
    bars = axes.barh(rows, spent, color=PLAIN, height=0.42)
    axes.bar_label(bars, [f'{each:.1f}' for each in spent], padding=3)
    for row, (name, _) in enumerate(minutes):
      axes.text(0, row - 0.28, _label(name, 72), va='bottom', fontsize=8.5)
    axes.set_ylim(len(minutes) - 0.7, -0.75)
    axes.set_xlim(0, 1.15 * max(1e-9, *spent))
    axes.set_axis_off()
    axes.set_title('Device-minutes by shape')
    return plots.png(figure)


@dataclasses.dataclass(frozen=True)
class _Scale:
  """Where a parameter's values lie on a coordinate from 0 to 1.

  Attributes:
    name: over the coordinate.
    low: at 0.
    high: at 1.
    log: by orders of magnitude.
    labels: of the choices, () for a range.
    percent: whether values are shares.
  """

  name: str
  low: float = 0.0
  high: float = 1.0
  log: bool = False
  labels: tuple[str, ...] = ()
  percent: bool = False

  @classmethod
  def of(cls, parameter: Parameter, trials: Sequence[Trial]) -> '_Scale':
    """Of a parameter: its range, or its choices and what else was tried."""
    tried = [
      t.params[parameter.name] for t in trials if parameter.name in t.params
    ]
    numeric = all(_is_number(value) for value in tried)
    if parameter.choices or not numeric:
      every = [wording.plain(v) for v in (*parameter.choices, *tried)]
      return cls(parameter.name, labels=tuple(dict.fromkeys(every)))
    bounds = [*map(float, tried)]
    bounds += [b for b in (parameter.low, parameter.high) if b is not None]
    return cls(
      parameter.name,
      min(bounds),
      max(bounds),
      parameter.log and min(bounds) > 0,
    )

  @classmethod
  def of_values(cls, metric: str, values: np.ndarray) -> '_Scale':
    """Of the metric, from the least to the largest."""
    low, high = (float(values.min()), float(values.max()))
    return cls(f'validation {metric}', low, high, percent=metric == 'accuracy')

  def index(self, value: Any) -> int:
    """Which choice a value is."""
    return self.labels.index(wording.plain(value))

  def place(self, trial: Trial) -> float:
    """Of a trial's value, NaN where the parameter was not searched."""
    if self.name not in trial.params:
      return math.nan
    value = trial.params[self.name]
    if self.labels:
      among = (self.index(value) + 0.5) / len(self.labels)
      return among + 0.35 * _jitter(trial.number) / len(self.labels)
    return float(self.places(np.array([float(value)]))[0])

  def places(self, values: np.ndarray) -> np.ndarray:
    """Of numbers; the middle where the range is a single one."""
    low, high = self.low, self.high
    if self.log:
      values, low, high = np.log(values), math.log(low), math.log(high)
    if high <= low:
      return np.full(len(values), 0.5)
    return (values - low) / (high - low)

  def ticks(self) -> list[tuple[float, str]]:
    """(place, label): the ends of a range, or the choices."""
    if self.labels:
      count = len(self.labels)
      return [
        ((index + 0.5) / count, _label(label, max(5, 46 // count)))
        for index, label in enumerate(self.labels)
      ]
    if self.high <= self.low:
      return [(0.5, self._said(self.low))]
    return [(0.0, self._said(self.low)), (1.0, self._said(self.high))]

  def _said(self, value: float) -> str:
    return wording.percent(value) if self.percent else f'{value:.4g}'


def _coordinate(axes: Axes, row: float, scale: _Scale) -> None:
  """Name and ticks of one coordinate."""
  said = f'{scale.name}, log' if scale.log else scale.name
  axes.text(
    0,
    row + 0.1,
    plots.literal(said),
    fontsize=9.5,
    fontweight='bold',
    zorder=4,
    bbox={'facecolor': 'white', 'edgecolor': 'none', 'pad': 0.6, 'alpha': 0.7},
  )
  for place, label in scale.ticks():
    axes.plot(place, row, '|', color=plots.INK, markersize=6, zorder=1)
    axes.text(
      place,
      row - 0.13,
      label,
      ha='left' if place == 0 else 'right' if place == 1 else 'center',
      va='top',
      fontsize=8.5,
      zorder=4,
      bbox={
        'facecolor': 'white',
        'edgecolor': 'none',
        'pad': 0.4,
        'alpha': 0.7,
      },
    )


def _marks(
  axes: Axes,
  points: Sequence[tuple[float, float | None, Trial]],
  best: Trial | None,
) -> None:
  """Trials as marks: (x, value, trial) of each."""
  for label, marker, colour, size, states in (
    ('pruned', 'x', DROPPED, 5, ('pruned',)),
    ('complete', 'o', PLAIN, 5, ('complete',)),
    ('under way', 'o', 'none', 5, ('running', 'waiting')),
    ('best', '*', BEST, 12, ()),
  ):
    shown = [
      (x, y)
      for x, y, trial in points
      if (trial.state in states if trial is not best else label == 'best')
    ]
    if shown:
      axes.plot(
        *zip(*shown, strict=True),
        marker,
        color=colour,
        markeredgecolor=PLAIN if colour == 'none' else colour,
        markersize=size,
        alpha=0.85,
        label=label,
        zorder=3 if label == 'best' else 2,
      )


def _curve_style(
  trial: Trial, best: Trial | None
) -> tuple[str, str, str, float]:
  if trial is best:
    return f'best, trial {trial.number}', BEST, '-', 2.6
  if trial.state == 'pruned':
    return 'pruned', DROPPED, '--', 1.0
  if trial.state == 'complete':
    return 'complete', PLAIN, '-', 1.0
  return 'failed or under way', plots.COLOURS[2], '-.', 1.0


def _value_axis(axes: Axes, metric: str, *, label: bool = True) -> None:
  if label:
    axes.set_ylabel(f'Validation {plots.literal(metric)}')
  axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
  if metric == 'accuracy':
    axes.yaxis.set_major_formatter(PercentFormatter(1))


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _jitter(number: int) -> float:
  """-0.5 to 0.5, so that trials of one choice lie side by side."""
  return (number * 0.618034 + 0.5) % 1 - 0.5


def _label(text: str, longest: int = LONGEST_LABEL) -> str:
  """A label that leaves room for the plot."""
  if len(text) > longest:
    text = f'{text[: longest - 1]}…'
  return plots.literal(text)
