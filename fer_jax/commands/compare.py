"""`compare`: paired figures of several runs on the same examples."""

import pathlib

from absl import flags

from fer_jax.errors import UserError

SUMMARY = 'Compare evaluated runs on the same examples, in pairs and together.'


def define_flags() -> None:
  """Defines the verb's flags."""
  flags.DEFINE_string(
    'split',
    None,
    "'validation' or 'test'; by default test where every run was evaluated "
    'on it, else validation. The workdirs follow the flags: compare A B C.',
  )
  flags.DEFINE_string('json', None, 'File to write the figures to as well.')


def main(argv: list[str]) -> int:
  """Runs the verb."""
  values = flags.FLAGS
  if values.json and not pathlib.Path(values.json).parent.is_dir():
    raise UserError(f'cannot write --json {values.json}: no such folder')
  from fer_jax import files
  from fer_jax.evaluation import compare, comparison_summary

  result = compare.compare(argv[1:], values.split)
  print(comparison_summary.text(result))
  if values.json:
    try:
      files.write_json(pathlib.Path(values.json), result)
    except OSError as error:
      raise UserError(
        f'cannot write --json {values.json}: {error.strerror}'
      ) from error
  return 0
