"""`torture`: kills a small run many times, compares it with a whole one."""

import pathlib

from absl import flags

from fer_jax.errors import UserError

SUMMARY = 'Kill a small run at random moments and compare it with a whole one.'

DIFFERENT = 1


def define_flags() -> None:
  """Defines the verb's flags."""
  flags.DEFINE_string('workdir', None, 'A new folder for the runs.')
  flags.DEFINE_integer(
    'kills', 100, 'How many lives end by SIGKILL.', lower_bound=0
  )
  flags.DEFINE_integer(
    'terms', 0, 'How many more end by SIGTERM.', lower_bound=0
  )
  flags.DEFINE_bool(
    'population', False, 'Torture a cross-validation instead of one run.'
  )
  flags.DEFINE_integer('seed', 0, 'Of the moments.')
  flags.DEFINE_string('json', None, 'File to write the record to as well.')


def main(argv: list[str]) -> int:
  """Runs the verb."""
  import logging

  from fer_jax import files, torture

  values = flags.FLAGS
  if len(argv) > 1:
    raise UserError(
      f'torture takes no argument {argv[1]!r}; see torture --help'
    )
  if not values.workdir:
    raise UserError('--workdir is missing; expected a new folder')
  files.require_writable(values.json)
  # Checkpoints that are passed over are what this is about.
  logging.getLogger('fer_jax.training').setLevel(logging.ERROR)
  record = torture.torture(
    pathlib.Path(values.workdir),
    kills=values.kills,
    terms=values.terms,
    population=values.population,
    seed=values.seed,
    say=lambda line: print(line, flush=True),
  )
  print(torture.text(record))
  files.write_result(values.json, record)
  return 0 if record['identical'] else DIFFERENT
