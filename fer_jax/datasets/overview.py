"""Pictures of a data set: contact sheets and its class balance."""

import os

import matplotlib
import numpy as np
from PIL import Image
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fer_jax.datasets.dataset import Dataset

_GAP = 2
_CELL = 96


def _cell(picture: np.ndarray) -> np.ndarray:
  """A picture (H, W, C) as RGB, its longer side _CELL pixels."""
  plane = picture[..., 0] if picture.shape[-1] == 1 else picture
  image = Image.fromarray(plane).convert('RGB')
  scale = _CELL / max(image.size)
  width, height = (max(1, round(side * scale)) for side in image.size)
  return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def _row_choice(rows: np.ndarray, count: int) -> np.ndarray:
  """Up to `count` of the rows, evenly spaced: the same ones every time."""
  if len(rows) <= count:
    return rows
  return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def _members(dataset: Dataset, label: int) -> np.ndarray:
  """Rows of a class; those of a test split only where there are no others."""
  split = dataset.table['official_split']
  of_class = dataset.table['label'] == label
  shown = of_class & ~np.isin(split, ('test', 'test_unsplit'))
  return np.flatnonzero(shown if shown.any() else of_class)


def contact_sheet(
  dataset: Dataset, label: int, *, columns: int = 10, rows: int = 8
) -> np.ndarray | None:
  """Examples of one class side by side; of a clip, its frames along a line.

  A test split is not looked at while there is anything else to show.

  Args:
    dataset: a built set.
    label: which class.
    columns: pictures, or frames, a line.
    rows: lines.

  Returns:
    uint8 (height, width, 3), or None for a class without examples.
  """
  members = _members(dataset, label)
  if not len(members):
    return None
  if dataset.is_clips:
    cells = []
    for clip in dataset.each(_row_choice(members, rows)):
      chosen = _row_choice(np.arange(len(clip)), columns)
      line = [_cell(clip[frame]) for frame in chosen]
      cells += [*line, *[None] * (columns - len(line))]
  else:
    chosen = _row_choice(members, rows * columns)
    cells = [_cell(picture) for picture in dataset.each(chosen)]
  lines = -(-len(cells) // columns)
  pitch = _CELL + _GAP
  shape = (lines * pitch + _GAP, columns * pitch + _GAP, 3)
  sheet = np.full(shape, 255, np.uint8)
  for place, cell in enumerate(cells):
    if cell is not None:
      top = _GAP + place // columns * pitch
      left = _GAP + place % columns * pitch
      sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
  return sheet


def write_contact_sheet(
  dataset: Dataset, label: int, path: str | os.PathLike[str]
) -> bool:
  """Writes `contact_sheet` as PNG; False where the class has no example."""
  sheet = contact_sheet(dataset, label)
  if sheet is None:
    return False
  Image.fromarray(sheet).save(path, 'PNG')
  return True


def write_class_balance(dataset: Dataset, path: str | os.PathLike[str]) -> None:
  """Writes a PNG of the rows per class, a bar for each official split."""
  # A class may be named by what Matplotlib would read as a formula.
  with matplotlib.rc_context({'text.parse_math': False}):
    _class_balance(dataset).savefig(path, dpi=150)


def _class_balance(dataset: Dataset) -> Figure:
  counts = dataset.counts()
  figure = Figure(figsize=(8, 4.5), layout='constrained')
  axes = figure.add_subplot()
  places = np.arange(len(dataset.class_names))
  width = 0.8 / len(counts)
  for number, (split, values) in enumerate(counts.items()):
    shift = (number - (len(counts) - 1) / 2) * width
    bars = axes.bar(
      places + shift, values, width, label=f'{split} ({values.sum():,})'
    )
    axes.bar_label(bars, fontsize=6, padding=1)
  axes.set_xticks(places, dataset.class_names)
  axes.set_ylabel('examples')
  axes.set_title(f'{dataset.name}: class balance')
  axes.spines[['top', 'right']].set_visible(False)
  ticks = MaxNLocator('auto', steps=[1, 2, 5, 10], integer=True)
  axes.yaxis.set_major_locator(ticks)
  figure.legend(loc='outside right upper', frameon=False)
  return figure
