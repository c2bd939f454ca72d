"""`evaluate`: figures of a run on its own split or on another data set."""

from typing import Any

from absl import flags

from fer_jax import files
from fer_jax.commands import data
from fer_jax.errors import UserError

SUMMARY = 'Evaluate a run on its validation or test split, or on other data.'

_OF_OTHER = ('option', 'class_map', 'data_dir', 'checksum')


def define_flags() -> None:
  """Defines the verb's flags."""
  flags.DEFINE_string('workdir', None, 'Folder of the run.')
  flags.DEFINE_string(
    'split',
    None,
    "'validation' (the default) or 'test'. With --dataset one of its official "
    "splits; 'all' is the default. Every look at test rows is recorded.",
  )
  flags.DEFINE_string(
    'dataset', None, "Another data set to score the run on, not the run's own."
  )
  flags.DEFINE_multi_string(
    'option', [], '--dataset: NAME=VALUE of its builder; may be repeated.'
  )
  flags.DEFINE_list(
    'class_map',
    [],
    "--dataset: THEIRS:OURS,... from its classes to the run's, as "
    'happiness:happy; THEIRS:- leaves a class out. Equal names map themselves.',
  )
  flags.DEFINE_string(
    'data_dir', None, "--dataset: where it is built, if not where the run's is."
  )
  flags.DEFINE_string(
    'checksum',
    None,
    '--dataset: first characters of the source SHA-256, where builds of '
    'several sources stand side by side.',
  )
  flags.DEFINE_list(
    'tta',
    [],
    "Test-time augmentation: 'flip', 'crops' or 'flip,crops'; probabilities "
    'are averaged over the views.',
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
  files.require_writable(values.json)
  if not values.dataset:
    for name in _OF_OTHER:
      if values[name].value:
        raise UserError(f'--{name} is for another data set; --dataset names it')
  from fer_jax import hosts
  from fer_jax.evaluation import summary

  with hosts.joined():
    with summary.shown_if_unsaved(values.json):
      metrics = _evaluate(values)
    print(summary.text(metrics))
    hosts.on_first(lambda: files.write_result(values.json, metrics))
  return 0


def _evaluate(values: flags.FlagValues) -> dict[str, Any]:
  if not values.dataset:
    from fer_jax.evaluation import evaluate

    return evaluate.evaluate(
      values.workdir, values.split or 'validation', augmentations=values.tta
    )
  from fer_jax.evaluation import cross_dataset

  return cross_dataset.evaluate_on(
    values.workdir,
    values.dataset,
    split=values.split or cross_dataset.ALL,
    class_map=cross_dataset.parse_class_map(values.class_map),
    options=data.builder_options(values.dataset, 'option', values.option),
    data_dir=values.data_dir or '',
    checksum=values.checksum or '',
    augmentations=values.tta,
  )
