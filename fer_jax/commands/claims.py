"""`claims`: what papers claim, beside what is honest."""

import contextlib
import pathlib
from typing import Any

from absl import flags

from fer_jax import files
from fer_jax.commands import data
from fer_jax.errors import UserError
from fer_jax.training import preemption

SUMMARY = 'Claims of the papers, run as they were made and run honestly.'


def define_flags() -> None:
  """Defines the verb's flags."""
  flags.DEFINE_string('data_dir', None, 'Folder of all builds.')
  flags.DEFINE_list(
    'only', [], 'Claims whose names begin so, such as p4 or p3_improved_cnn.'
  )
  flags.DEFINE_string('workdir', 'runs/claims', 'Folder of all runs.')
  flags.DEFINE_float(
    'max_seconds',
    0.0,
    'Seconds of training for each run; the same command goes on with it. 0 '
    'trains to the end.',
    lower_bound=0.0,
  )
  flags.DEFINE_integer(
    'folds',
    1,
    'How many folds of a k-fold protocol are run; 0 for all, without which '
    'the claims of P0 and P1 count as unfinished.',
    lower_bound=0,
  )
  flags.DEFINE_string(
    'configs',
    None,
    "Folder of claims; configs/papers of the package's repository by default.",
  )
  flags.DEFINE_multi_string(
    'pretrained',
    [],
    'MODEL=FILE: published weights of a model, for the papers that start from '
    'such; may be repeated. See docs/models.md for the files.',
  )
  flags.DEFINE_bool('list', False, 'Name the claims and leave.')
  flags.DEFINE_string('json', None, 'File for the table as JSON.')
  flags.DEFINE_string('markdown', None, 'File for the table as Markdown.')


def main(argv: list[str]) -> int:
  """Runs the verb."""
  values = flags.FLAGS
  if len(argv) > 1:
    raise UserError(f'claims takes no argument {argv[1]!r}; see claims --help')
  # Before hours of training: the result must have a place.
  files.require_writable(values.json)
  files.require_writable(values.markdown, '--markdown')
  with preemption.watched() as notice:
    notice.starting = True
    return _run(values, notice)


def _run(values: Any, notice: preemption.Notice) -> int:
  from fer_jax import datasets, provenance
  from fer_jax.claims import running, table

  root = pathlib.Path(__file__).parents[2]
  folder = pathlib.Path(values.configs or root / 'configs' / 'papers')
  claims = running.select(running.load(folder), values.only)
  if values.list:
    for name, claim in claims.items():
      print(f'{name:<26} {100 * claim.claimed:6.2f} %  {claim.system}')
    return 0
  weights = data.assignments('pretrained', values.pretrained)
  running.require_weights(claims, weights)
  running.spread(claims.values())
  rows, members = [], {}
  for name, claim in claims.items():
    print(f'{name}: {claim.system}')
    row: dict[str, Any] = {}
    with contextlib.suppress(running.LeftError):
      row = running.run(
        name,
        claim,
        data_dir=str(values.data_dir or datasets.default_data_dir()),
        workdir=pathlib.Path(values.workdir),
        limits=running.Limits(values.max_seconds, values.folds, weights),
        members=members,
        notice=notice,
      )
    if notice.asked:
      print(
        f'left {name} when asked to, to be resumed by the same command; runs '
        f'in {values.workdir}'
      )
      return notice.status
    rows.append(row)
    # After each claim: hours of work are in it.
    record = {'claims': rows, 'environment': provenance.environment()}
    files.write_result(values.json, record)
    if values.markdown:
      with files.writing(f'--markdown {values.markdown}'):
        files.write_text(pathlib.Path(values.markdown), table.markdown(rows))
  print(f'\n{table.text(rows)}')
  absent = [row['claim'] for row in rows if 'absent' in row]
  if len(absent) == len(rows):
    raise UserError(f'none could be run of {", ".join(absent)}; see above')
  return 0
