"""Plots as PNG bytes. Matplotlib without pyplot: no state is left behind.

Colours are those of Okabe and Ito, told apart with any colour vision, and
never the only difference: lines differ in dash or are labelled as well. Widths
suit a phone: text stays readable when a plot is shown 340 pixels wide.
"""

import dataclasses
import io
import itertools
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import sklearn.metrics
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

COLOURS = (
  '#0072b2',
  '#d55e00',
  '#009e73',
  '#cc79a7',
  '#e69f00',
  '#56b4e9',
  '#000000',
  '#8a8a8a',
)
DASHES = ('-', '--', '-.', ':')
INK = '#1f2328'
MUTED = '#6b7280'
GRID = '#e5e7eb'
WIDTH = 5.2
DOTS_PER_INCH = 160

_STYLE = {
  'font.family': 'sans-serif',
  'font.size': 11,
  'axes.titlesize': 12,
  'axes.titleweight': 'bold',
  'axes.titlelocation': 'left',
  'axes.edgecolor': MUTED,
  'axes.labelcolor': INK,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.grid': True,
  'axes.axisbelow': True,
  'grid.color': GRID,
  'text.color': INK,
  'xtick.color': MUTED,
  'ytick.color': MUTED,
  'xtick.labelcolor': INK,
  'ytick.labelcolor': INK,
  'legend.frameon': False,
  'legend.fontsize': 10,
  'lines.linewidth': 1.8,
}


@dataclasses.dataclass(frozen=True)
class Line:
  """One curve over epochs.

  Attributes:
    label: for the legend.
    x: (m,) epochs.
    y: (m,) values.
    deviation: (m,) half width of the band, None for no band.
    colour: index into `COLOURS`, taken modulo their number.
    dash: index into `DASHES`.
  """

  label: str
  x: np.ndarray
  y: np.ndarray
  deviation: np.ndarray | None = None
  colour: int = 0
  dash: int = 0


def style(**changes: Any) -> Any:
  """The context in which a plot is drawn."""
  settings: Any = _STYLE | changes
  return matplotlib.rc_context(settings)


def blank(height: float, width: float = WIDTH) -> Figure:
  """A figure without axes, in inches."""
  return Figure(figsize=(width, height), layout='constrained')


def png(figure: Figure) -> bytes:
  """The figure's PNG file."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=DOTS_PER_INCH, metadata={})
  return buffer.getvalue()


def literal(text: str) -> str:
  """Text with Matplotlib's own markup defused."""
  return str(text).replace('$', r'\$')


def whole_numbers() -> MaxNLocator:
  """Ticks of an axis that counts, also where it has room for one alone."""
  return MaxNLocator(integer=True, nbins=7, min_n_ticks=1)


def curves(lines: Sequence[Line], *, title: str, percent: bool) -> bytes:
  """Values over epochs, with bands of a standard deviation.

  Args:
    lines: at least one.
    title: of the plot.
    percent: whether values are shares.
  """
  with style():
    figure = blank(3.6)
    axes = figure.subplots()
    for line in lines:
      colour = COLOURS[line.colour % len(COLOURS)]
      axes.plot(
        line.x,
        line.y,
        DASHES[line.dash % len(DASHES)],
        color=colour,
        # A single point draws no line.
        marker='o' if len(line.x) < 3 else None,
        markersize=4,
        label=literal(line.label),
      )
      if line.deviation is not None:
        axes.fill_between(
          line.x,
          line.y - line.deviation,
          line.y + line.deviation,
          color=colour,
          alpha=0.18,
          linewidth=0,
        )
    axes.set_title(title)
    axes.set_xlabel('Epoch')
    axes.xaxis.set_major_locator(whole_numbers())
    if percent:
      axes.yaxis.set_major_formatter(PercentFormatter(1))
    else:
      tops = [n.y if n.deviation is None else n.y + n.deviation for n in lines]
      # A loss of 0 throughout has an axis, too.
      axes.set_ylim(0, 1.06 * max(1e-9, *(float(np.max(top)) for top in tops)))
    columns = 1 if any(len(line.label) > 22 for line in lines) else 2
    figure.legend(loc='outside lower center', ncols=columns)
    return png(figure)


def confusion(
  counts: np.ndarray, class_names: Sequence[str], *, normalised: bool
) -> bytes:
  """Confusion matrix, true classes in rows.

  Args:
    counts: (K, K).
    class_names: K names.
    normalised: divide each row by its sum; a class without examples stays
      blank.
  """
  counts = np.asarray(counts)
  totals = counts.sum(axis=1, keepdims=True)
  shares = np.divide(
    counts, totals, out=np.full(counts.shape, np.nan), where=totals > 0
  )
  shown = shares if normalised else counts.astype(float)
  with style(**{'axes.grid': False}):
    num_classes = len(class_names)
    figure = blank(WIDTH * 0.96)
    axes = figure.subplots()
    top = 1.0 if normalised else max(float(counts.max()), 1.0)
    axes.imshow(shown, cmap='Blues', vmin=0, vmax=top)
    size = 11 if num_classes <= 8 else 88 / num_classes
    for row, column in itertools.product(range(num_classes), repeat=2):
      value = shown[row, column]
      if np.isnan(value):
        continue
      axes.text(
        column,
        row,
        f'{100 * value:.0f}' if normalised else f'{counts[row, column]:,}',
        ha='center',
        va='center',
        fontsize=size,
        color='white' if value > 0.55 * top else INK,
      )
    names = [literal(name) for name in class_names]
    axes.set_xticks(range(num_classes), names, rotation=40, ha='right')
    axes.set_yticks(range(num_classes), names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel('Predicted')
    axes.set_ylabel('True')
    axes.set_title(
      'Confusion, % of each true class' if normalised else 'Confusion, counts'
    )
    return png(figure)


# Curves of a good model stay out of this corner; a poor one's run below it.
_OVER_CURVES = {
  'loc': 'lower right',
  'frameon': True,
  'framealpha': 0.9,
  'edgecolor': 'none',
}


def _blank_roc() -> tuple[Figure, Axes]:
  """A figure whose curves are rates, with the diagonal of chance."""
  figure = blank(WIDTH * 1.08)
  axes = figure.subplots()
  axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1)
  axes.set_xlim(-0.01, 1.01)
  axes.set_ylim(-0.01, 1.01)
  axes.set_aspect('equal')
  axes.set_xlabel('False positive rate')
  axes.set_ylabel('True positive rate')
  return figure, axes


def roc(curves: Sequence[dict[str, Any] | None]) -> bytes:
  """One-vs-rest ROC curves of `scores.roc_curves`; None is left out."""
  with style():
    figure, axes = _blank_roc()
    for index, curve in enumerate(curves):
      if curve is None:
        continue
      axes.plot(
        curve['false_positive_rate'],
        curve['true_positive_rate'],
        DASHES[index % len(DASHES)],
        color=COLOURS[index % len(COLOURS)],
        label=f'{literal(curve["name"])}  {curve["auc"]:.3f}',
      )
    axes.set_title('ROC, each class against the rest')
    if any(curve is not None for curve in curves):
      axes.legend(title='Class and AUC', **_OVER_CURVES)
    return png(figure)


def roc_of_folds(
  false_positive_rate: np.ndarray,
  folds: np.ndarray,
  mean: np.ndarray,
  deviation: np.ndarray,
) -> bytes:
  """ROC of each fold, and their mean with a band of a standard deviation.

  Args:
    false_positive_rate: (p,).
    folds: (F, p) true-positive rates.
    mean: (p,).
    deviation: (p,).
  """
  with style():
    figure, axes = _blank_roc()
    for index, curve in enumerate(folds):
      axes.plot(
        false_positive_rate,
        curve,
        color=MUTED,
        linewidth=0.8,
        label=None if index else 'each fold',
      )
    axes.fill_between(
      false_positive_rate,
      np.clip(mean - deviation, 0, 1),
      np.clip(mean + deviation, 0, 1),
      color=COLOURS[0],
      alpha=0.25,
      linewidth=0,
    )
    area = sklearn.metrics.auc(false_positive_rate, mean)
    axes.plot(
      false_positive_rate,
      mean,
      color=COLOURS[0],
      label=f'mean ± deviation, AUC {area:.3f}',
    )
    axes.set_title('ROC by fold, classes averaged')
    axes.legend(**_OVER_CURVES)
    return png(figure)


def reliability(bins: Sequence[dict[str, Any]], error: float) -> bytes:
  """Reliability diagram over the share of examples in each bin.

  Args:
    bins: of `scores.calibration_bins`.
    error: the expected calibration error.
  """
  with style():
    figure = blank(WIDTH * 1.08)
    diagram, histogram = figure.subplots(
      2, 1, sharex=True, height_ratios=(3.2, 1)
    )
    filled = [part for part in bins if part['count']]
    total = sum(part['count'] for part in filled)
    width = bins[0]['upper'] - bins[0]['lower']
    centres = [(part['lower'] + part['upper']) / 2 for part in filled]
    accuracy = np.array([part['accuracy'] for part in filled])
    confidence = np.array([part['confidence'] for part in filled])
    diagram.bar(
      centres,
      accuracy,
      width=width * 0.94,
      color=COLOURS[0],
      label='Accuracy',
    )
    diagram.bar(
      centres,
      np.abs(confidence - accuracy),
      bottom=np.minimum(accuracy, confidence),
      width=width * 0.94,
      facecolor='none',
      edgecolor=COLOURS[1],
      hatch='///',
      linewidth=0.8,
      label='Gap to mean confidence',
    )
    diagram.plot([0, 1], [0, 1], '--', color=INK, linewidth=1.2)
    diagram.set_ylim(0, 1.02)
    diagram.set_xlim(0, 1)
    diagram.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    diagram.set_ylabel('Accuracy')
    diagram.set_title(f'Reliability, calibration error {100 * error:.1f} %')
    figure.legend(loc='outside lower center', ncols=2)
    histogram.bar(
      centres,
      [part['count'] / total for part in filled],
      width=width * 0.94,
      color=MUTED,
    )
    histogram.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    histogram.yaxis.set_major_locator(MaxNLocator(3))
    histogram.set_ylabel('Examples')
    histogram.set_xlabel('Confidence (largest probability)')
    histogram.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return png(figure)


def contact_sheet(
  images: Sequence[np.ndarray], captions: Sequence[str], *, title: str
) -> bytes:
  """Images in a grid with a caption under each.

  Args:
    images: uint8 (h, w, 3), all of one shape.
    captions: two lines for each image.
    title: of the sheet.
  """
  height, width = images[0].shape[:2]
  ratio = min(height / width, 1.0)
  columns = min(6 if ratio == 1 else 3, len(images))
  rows = -(-len(images) // columns)
  cell_width = 1.3 if ratio == 1 else 2.6
  # In units of a cell's width: the picture, then two lines of caption.
  cell_height = ratio + 0.45 / cell_width
  with style(**{'font.size': 8}):
    figure = Figure(
      figsize=(columns * cell_width, rows * cell_height * cell_width + 0.35)
    )
    top = rows * cell_height * cell_width
    axes = figure.add_axes((0, 0, 1, top / (top + 0.35)))
    axes.set_axis_off()
    for index, (image, caption) in enumerate(
      zip(images, captions, strict=True)
    ):
      row, column = divmod(index, columns)
      left, upper = column + 0.04, row * cell_height
      axes.imshow(
        image, extent=(left, left + 0.92, upper + 0.92 * ratio, upper)
      )
      axes.text(left, upper + 0.92 * ratio + 0.02, literal(caption), va='top')
    axes.set_xlim(0, columns)
    axes.set_ylim(rows * cell_height, 0)
    axes.set_aspect('auto')
    figure.text(0.01, 0.99, title, va='top', fontweight='bold', fontsize=11)
    return png(figure)
