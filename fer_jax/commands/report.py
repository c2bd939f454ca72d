"""`report`: one HTML page of one or several runs."""

from absl import flags

from fer_jax.errors import UserError

SUMMARY = 'Write a self-contained report.html of one or several runs.'


def define_flags() -> None:
  """Defines the verb's flags."""
  flags.DEFINE_multi_string(
    'workdir',
    [],
    'Folder of a run. Repeat it, or name more folders after the flags, to '
    'compare runs; those that differ in the seed alone are one group.',
  )
  flags.DEFINE_string(
    'output',
    None,
    'Folder for report.html and figures/; by default the workdir, of several '
    'runs the folder comparison in the first.',
  )


def main(argv: list[str]) -> int:
  """Runs the verb."""
  values = flags.FLAGS
  workdirs = [*values.workdir, *argv[1:]]
  if not workdirs:
    raise UserError('--workdir is missing; expected the folder of a run')
  from fer_jax.evaluation import report

  print(f'wrote {report.write_report(workdirs, values.output)}')
  return 0
