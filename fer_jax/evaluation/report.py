"""One self-contained report.html of one or several runs, and its PNG files.

Reads what training and evaluation wrote and nothing else: no data set, no
checkpoint; and no JAX, but where the configs of runs compared differ in their
fields, to tell the defaults.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Sequence

from fer_jax import files
from fer_jax.errors import UserError
from fer_jax.evaluation import (
  comparison_page,
  crossval,
  crossval_page,
  page,
  run_page,
  runs,
  sweep_page,
  sweeps,
)
from fer_jax.evaluation.figures import Figures
from fer_jax.evaluation.runs import Run

FILE_NAME = 'report.html'
FIGURES = 'figures'
COMPARISON = 'comparison'
"""Folder in the first of several workdirs, whose own page stays as it is."""
_COMPARED = 'compared'


@dataclasses.dataclass(frozen=True)
class Report:
  """A report in memory.

  Attributes:
    html: the page.
    figures: PNG bytes by file name.
  """

  html: str
  figures: dict[str, bytes]


def write_report(
  workdirs: Sequence[str | pathlib.Path],
  output: str | pathlib.Path | None = None,
) -> pathlib.Path:
  """Writes report.html and figures/*.png.

  Args:
    workdirs: of one or several runs.
    output: folder to write to; where None the workdir, of several runs the
      folder `COMPARISON` in the first.

  Returns:
    The path of report.html.

  Raises:
    UserError: a folder is no workdir, its files are damaged, or the output
      cannot be written.
  """
  if not workdirs:
    raise UserError('report needs at least one workdir')
  draw = _drawing(workdirs)
  beside = pathlib.Path(workdirs[0])
  if len({pathlib.Path(workdir).resolve() for workdir in workdirs}) > 1:
    beside /= COMPARISON
  folder = pathlib.Path(output) if output else beside
  # Before anything is drawn: the page must have a place.
  with files.writing(f'the report to {folder}'):
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    files.probe(folder / FILE_NAME)
  report = draw()
  with files.writing(f'the report to {folder}'):
    for name, png in report.figures.items():
      files.write_bytes(folder / FIGURES / name, png)
    files.write_bytes(folder / FILE_NAME, report.html.encode())
  return folder / FILE_NAME


def _drawing(
  workdirs: Sequence[str | pathlib.Path],
) -> Callable[[], Report]:
  """Reads the workdirs; what it returns makes the page."""
  first = pathlib.Path(workdirs[0])
  if len(workdirs) == 1 and (first / crossval.METRICS).exists():
    metrics, folds = crossval.read(first)
    return lambda: _of_folds(first, metrics, folds)
  if len(workdirs) == 1 and (first / sweeps.FILE).exists():
    sweep = sweeps.read(first)
    return lambda: _of_sweep(sweep)
  members = runs.read_all(workdirs)
  for run in members:
    runs.require_figures(run)
  return lambda: render(members)


def _of_folds(workdir, metrics, folds) -> Report:
  figures = Figures({})
  content = crossval_page.sections(workdir, metrics, folds, figures)
  title = f'{workdir.name}: cross-validation'
  return Report(page.document(title, *content), figures.files)


def _of_sweep(sweep: sweeps.Sweep) -> Report:
  figures = Figures({})
  content = sweep_page.sections(sweep, figures)
  title = f'{sweep.path.resolve().name}: sweep'
  return Report(page.document(title, *content), figures.files)


def render(members: Sequence[Run]) -> Report:
  """The page and its figures, for one run or for several compared."""
  figures = Figures({})
  if len(members) == 1:
    (run,) = members
    title = f'{run.name}: report'
    content = [run_page.header(run), *run_page.sections(run, figures)]
  else:
    title = f'{len(members)} runs compared'
    content = comparison_page.sections(members, figures.within(f'{_COMPARED}_'))
    details = [
      page.folded(
        run.name,
        run_page.header(run),
        *run_page.sections(run, figures.within(f'{stem}_')),
      )
      for run, stem in zip(members, _file_stems(members), strict=True)
    ]
    content.append(page.section('Each run in full', *details))
  return Report(page.document(title, *content), figures.files)


def _file_stems(members: Sequence[Run]) -> list[str]:
  """What the runs' PNG files begin with, each another."""
  stems = [_COMPARED]
  for run in members:
    name = re.sub(r'[^A-Za-z0-9._-]+', '_', run.name).strip('._') or 'run'
    stem, number = name, 1
    # Whether or not a file system tells capitals from small letters.
    while stem.lower() in map(str.lower, stems):
      number += 1
      stem = f'{name}_{number}'
    stems.append(stem)
  return stems[1:]
