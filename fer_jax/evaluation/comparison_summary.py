"""Several runs compared, as tables for the terminal."""

from collections.abc import Sequence
from typing import Any


def text(result: dict[str, Any]) -> str:
  """Lines of figures, what they say last.

  Args:
    result: of `compare.compare`.
  """
  lines = [
    f'{result["split"]} split ({result["split_taken"]}), {result["n"]} '
    f'examples, {len(result["runs"])} runs',
    *(_origin(run) for run in result['runs']),
    '',
    *_scores(result),
    '',
    *_pairs(result['pairs']),
    '',
    'accuracy at 95 %, p after Holm; of these runs, not of other seeds:',
    *(f'  {pair["statement"]}' for pair in result['pairs']),
    f'  {result["ensemble"]["statement"]}',
  ]
  remarks = [f'warning: {said}' for said in result['warnings']]
  remarks += [f'note: {said}' for said in result['notes']]
  if remarks:
    lines += ['', *remarks]
  return '\n'.join(lines)


def _origin(run: dict[str, Any]) -> str:
  protocol = run['protocol']
  leaks = {True: 'LEAKS', False: 'does not leak'}.get(
    protocol['leaks'], 'leaks: unknown'
  )
  return (
    f'  {run["name"]}: {run["model"]}, seed {run["seed"]}, protocol '
    f'{protocol["name"]} ({leaks}), epoch {run["checkpoint"].get("epoch")}, '
    f'views {"+".join(run["views"])}'
  )


def _scores(result: dict[str, Any]) -> list[str]:
  systems = [(run['name'], run) for run in result['runs']]
  systems.append(('ensemble', result['ensemble']))
  return _table(
    ('run', 'accuracy %', 'macro F1 %', 'cross-entropy', 'calibration error %'),
    [
      (
        name,
        _percent(figures['accuracy'], figures['intervals']['accuracy']),
        _percent(figures['macro_f1'], figures['intervals']['macro_f1']),
        f'{figures["loss"]:.4f}',
        f'{100 * figures["expected_calibration_error"]:.2f}',
      )
      for name, figures in systems
    ],
  )


def _pairs(pairs: Sequence[dict[str, Any]]) -> list[str]:
  def difference(pair: dict[str, Any], name: str) -> str:
    found = pair[name]
    return _percent(found['difference'], found['interval'], sign='+')

  return [
    'b and c: units of which the first run has more right, and the second; p: '
    'McNemar, exact',
    *_table(
      (
        'pair',
        'accuracy, points',
        'macro F1, points',
        'b',
        'c',
        'p',
        'p (Holm)',
        'agreement %',
        'kappa',
      ),
      [
        (
          f'{pair["first"]} - {pair["second"]}',
          difference(pair, 'accuracy'),
          difference(pair, 'macro_f1'),
          str(pair['mcnemar']['b']),
          str(pair['mcnemar']['c']),
          f'{pair["mcnemar"]["p"]:.2g}',
          f'{pair["mcnemar"]["p_holm"]:.2g}',
          f'{100 * pair["agreement"]:.2f}',
          '-' if pair['kappa'] is None else f'{pair["kappa"]:.3f}',
        )
        for pair in pairs
      ],
    ),
  ]


def _percent(
  value: float, interval: Sequence[float] | None, *, sign: str = ''
) -> str:
  if interval is None:
    return f'{100 * value:{sign}.2f}'
  low, high = interval
  return (
    f'{100 * value:{sign}.2f} [{100 * low:{sign}.2f}, {100 * high:{sign}.2f}]'
  )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  """Lines of aligned columns, the first one to the left."""
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
  return [
    '  '.join(
      [
        row[0].ljust(widths[0]),
        *(
          cell.rjust(width)
          for cell, width in zip(row[1:], widths[1:], strict=True)
        ),
      ]
    )
    for row in (header, *rows)
  ]
