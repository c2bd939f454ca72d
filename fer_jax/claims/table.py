"""The table of claimed and honest figures."""

from collections.abc import Sequence
from typing import Any

from fer_jax.claims.claim import READINGS
from fer_jax.evaluation import wording

_COLUMNS = (
  'claim',
  'claimed',
  'measures',
  'its protocol',
  'honest (95 %)',
  'no twins',
  '1-NN',
  'copy seen',
  'person seen',
  'epochs',
)


_PAGE_COLUMNS = (
  'claim',
  'claimed',
  'measures',
  'under its protocol',
  'honest (95 %)',
  'without twins',
  '1-nearest-neighbour, its protocol / honest',
  'test with a twin in training, its / honest',
  'test whose person is in training, its / honest',
  'epochs, its / honest',
)

_OF_NEITHER = f'{wording.MISSING} / {wording.MISSING}'


def markdown(
  rows: Sequence[dict[str, Any]], records: Sequence[str] = ()
) -> str:
  """The same columns for a page, of the claims that were run.

  Shares that neither protocol has in any of them, such as of persons in
  photographs from the web, are left out.

  Args:
    rows: of `running.run`.
    records: for a link from each, where it is written down.
  """
  run = [
    _page_cells(row, record)
    for row, record in zip(rows, records or [''] * len(rows), strict=True)
    if 'absent' not in row
  ]
  columns = [
    column
    for column in zip(_PAGE_COLUMNS, *run, strict=True)
    if set(column[1:]) != {_OF_NEITHER}
  ]
  names, *lines = zip(*columns, strict=True)
  lines = [names, ('---',) * len(names), *lines]
  return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def _page_cells(row: dict[str, Any], record: str) -> tuple[str, ...]:
  claim, claimed, measures, its, *others = _cells(row, ', unfinished')
  link = f' ([record]({record}))' if record else ''
  if row['reading'] != 'accuracy':
    its += f' (accuracy {wording.percent(row["paper"]["accuracy"])})'
  return (f'`{claim}`{link}', claimed, measures, its, *others)


def text(rows: Sequence[dict[str, Any]]) -> str:
  """The table and what each claim measures, for the terminal.

  Args:
    rows: of `running.run`.
  """
  run = [row for row in rows if 'absent' not in row]
  lines = []
  if run:
    cells = [_COLUMNS, *(_cells(row) for row in run)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines += [
      '  '.join(
        cell.ljust(width) if n == 0 else cell.rjust(width)
        for n, (cell, width) in enumerate(zip(line, widths, strict=True))
      ).rstrip()
      for line in cells
    ]
    lines += ['', *_LEGEND, '']
    lines += [line for row in run for line in _notes(row)]
  for row in rows:
    if 'absent' in row:
      lines.append(
        f'{row["claim"]}: {wording.percent(row["claimed"], digits=2)} claimed, '
        f'{_half(row)}not run: {row["absent"]}'
      )
  return '\n'.join(lines)


def _half(row: dict[str, Any]) -> str:
  """What the paper's own protocol gave where its twin then failed."""
  if 'paper' not in row:
    return ''
  figure = wording.percent(row['paper']['figure'])
  return f'{figure} under its protocol, as the paper counts it; '


_LEGEND = (
  'measures      what the paper counts',
  "its protocol  as the paper counts it, under the paper's own protocol",
  'honest        accuracy under the honest protocol, with its interval',
  'no twins      the same without test images that have a twin in training or '
  'validation',
  '1-NN          one nearest neighbour on raw pixels: its protocol / honest',
  'copy seen     share of the test with a copy or near twin in training or '
  'validation',
  'person seen   share of the test whose person trains or selects, where it is '
  'known',
  'epochs        run of those the paper gives, and folds: its protocol, '
  'honest; * marks a claim that was not run in full, or not from the weights '
  'that the paper starts from, and counts as unfinished: how to finish it is '
  'said below',
)


def _cells(row: dict[str, Any], unfinished: str = ' *') -> tuple[str, ...]:
  paper, honest = row['paper'], row['honest']
  both = (paper, honest)
  return (
    row['claim'],
    wording.percent(row['claimed'], digits=2),
    READINGS[row['reading']].cell,
    wording.percent(paper['figure']),
    f'{wording.percent(honest["accuracy"])} ({_bounds(honest["interval"])})',
    wording.percent(honest['without_twins']),
    ' / '.join(
      wording.percent(twin['audit']['nearest_neighbour']['accuracy'])
      for twin in both
    ),
    ' / '.join(wording.percent(_copy_seen(twin['audit'])) for twin in both),
    ' / '.join(
      wording.percent(twin['audit']['share_of_test_seen']['subject'])
      for twin in both
    ),
    ', '.join(map(_extent, both)) + ('' if finished(row) else unfinished),
  )


def _extent(twin: dict[str, Any]) -> str:
  """Epochs and folds run, of how many."""
  folds = f'{twin["folds"]}/{twin["of_folds"]}'
  return f'{twin["epochs"]}/{twin["of_epochs"]}' + (
    f' in {folds} folds' if twin['of_folds'] > 1 else ''
  )


def _bounds(interval: Sequence[float] | None) -> str:
  if interval is None:
    return 'no interval'
  low, high = interval
  return f'{100 * low:.1f} to {100 * high:.1f}'


def finished(row: dict[str, Any]) -> bool:
  """Whether both twins of a claim ran all their epochs and folds."""
  return (
    'absent' not in row
    and row['paper']['finished']
    and row['honest']['finished']
  )


def _copy_seen(audit: dict[str, Any]) -> float:
  """The share of the test that is seen itself or as a copy."""
  shares = audit['share_of_test_seen']
  return max(
    shares[key] for key in ('exact_copy', 'twin') if shares[key] is not None
  )


def _notes(row: dict[str, Any]) -> list[str]:
  paper, honest = row['paper'], row['honest']
  lines = [f'{row["claim"]}: {row["system"]}', f'  counts   {row["counts"]}']
  lines.append(f'  shown by {row["evidence"]}')
  if row['pretrained'] and not paper['pretrained']:
    lines.append('  trained from random weights, not from published ones')
  if row['reading'] != 'accuracy':
    lines.append(
      '  accuracy under its protocol, plainly: '
      f'{wording.percent(paper["accuracy"])}'
    )
  for figure, claimed in row['beside'].items():
    lines.append(
      f'  {figure} {wording.percent(claimed, digits=2)} claimed; mean over '
      f'classes {wording.percent(paper["macro"][figure])} under its protocol, '
      f'{wording.percent(honest["macro"][figure])} honestly'
    )
  for twin in (paper, honest):
    folds = (
      f', {twin["folds"]} of {twin["of_folds"]} folds'
      if twin['of_folds'] > 1
      else ''
    )
    lines.append(
      f'  {twin["protocol"]["name"]}{folds}: {twin["n"]:,} test examples. '
      f'{twin["protocol"]["reason"]}'
    )
  if not finished(row):
    lines.append(f'  to finish: the same command again{_to_finish(row)}')
  return lines


def _to_finish(row: dict[str, Any]) -> str:
  """The flags that an unfinished claim lacks; '' where it takes time alone."""
  twins = (row['paper'], row['honest'])
  lacking = []
  if any(twin['folds'] < twin['of_folds'] for twin in twins):
    lacking.append('--folds=0')
  if row['pretrained'] and not row['paper']['pretrained']:
    lacking.append('--pretrained=MODEL=FILE')
  return f' with {" and ".join(lacking)}' if lacking else ''
