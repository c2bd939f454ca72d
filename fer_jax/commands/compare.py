"""`compare`: paired figures of several runs on the same examples."""

from absl import flags

from fer_jax import files

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
  files.require_writable(values.json)
  from fer_jax.evaluation import compare, comparison_summary

  result = compare.compare(argv[1:], values.split)
  print(comparison_summary.text(result))
  files.write_result(values.json, result)
  return 0
