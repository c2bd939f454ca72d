"""`evaluate`: figures of a run on its validation or test split."""

import pathlib

from absl import flags

from fer_jax.errors import UserError

SUMMARY = 'Evaluate a run on its validation or test split.'


def define_flags() -> None:
  """Defines the verb's flags."""
  flags.DEFINE_string('workdir', None, 'Folder of the run.')
  flags.DEFINE_string(
    'split',
    'validation',
    "'validation' or 'test'. Every look at the test split is recorded.",
  )
  flags.DEFINE_list(
    'tta',
    [],
    "Test-time augmentation: 'flip', 'crops' or both; probabilities are "
    'averaged over the views.',
  )
  flags.DEFINE_string('json', None, 'File to write the figures to as well.')


def main(argv: list[str]) -> int:
  """Runs the verb."""
  values = flags.FLAGS
  if len(argv) > 1:
    raise UserError(
      f'evaluate takes no argument {argv[1]!r}; see evaluate --help'
    )
  if not values.workdir:
    raise UserError('--workdir is missing; expected the folder of a run')
  # Before the test split is opened: a look must not end without its figures.
  if values.json and not pathlib.Path(values.json).parent.is_dir():
    raise UserError(f'cannot write --json {values.json}: no such folder')
  from fer_jax import files
  from fer_jax.evaluation import evaluate, summary

  metrics = evaluate.evaluate(
    values.workdir, values.split, augmentations=values.tta
  )
  print(summary.text(metrics))
  if values.json:
    try:
      files.write_json(pathlib.Path(values.json), metrics)
    except OSError as error:
      raise UserError(
        f'cannot write --json {values.json}: {error.strerror}'
      ) from error
  return 0
