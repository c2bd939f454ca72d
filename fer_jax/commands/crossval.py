"""`crossval`: all folds of a config, trained side by side and scored."""

import pathlib

from absl import flags
from ml_collections import config_flags

from fer_jax import commands
from fer_jax.errors import UserError

SUMMARY = 'Cross-validate a config: all folds as one population.'


def define_flags() -> None:
  """Defines the verb's flags."""
  from fer_jax.training import mapping

  config_flags.DEFINE_config_file(
    'config',
    None,
    'Config file of a protocol with folds, such as --config.data.protocol='
    'kfold_subjects; single fields are set with --config.SECTION.FIELD=VALUE.',
  )
  flags.DEFINE_string('workdir', None, 'Folder of the cross-validation.')
  flags.DEFINE_integer(
    'seeds', 1, 'How many runs each fold is given.', lower_bound=1
  )
  flags.DEFINE_float(
    'max_seconds',
    0.0,
    'Leave in good order after the epoch that passes this; 0 is no limit.',
    lower_bound=0.0,
  )
  flags.DEFINE_enum(
    'mapping',
    'auto',
    ['auto', *mapping.MAPPINGS],
    'How folds share a device: all at once, or in turn within a dispatch.',
  )
  commands.define_dry_run(
    __name__, 'what memory and time all folds need and how many waves'
  )
  commands.define_profile(__name__)
  flags.DEFINE_string('json', None, 'File to write the figures to as well.')


def main(argv: list[str]) -> int:
  """Runs the verb."""
  from fer_jax import files, hosts
  from fer_jax.evaluation import crossval as scoring
  from fer_jax.evaluation import report, summary
  from fer_jax.training import crossval, preemption

  values = flags.FLAGS
  if len(argv) > 1:
    raise UserError(
      f'crossval takes no argument {argv[1]!r}; see crossval --help'
    )
  if values.config is None:
    raise UserError('--config is missing; expected a config file')
  if values.dry_run:
    from fer_jax.training import rehearsal

    _spread()
    found = rehearsal.rehearse_folds(
      values.config, seeds=values.seeds, how=values.mapping
    )
    print(rehearsal.text(found, values.config.train.batch_size))
    return 0
  if not values.workdir:
    raise UserError('--workdir is missing; expected a folder')
  # Before hours of training: the result must have a place.
  files.require_writable(values.json)
  with preemption.watched() as notice:
    notice.starting = True
    part = hosts.apart()
    _spread(part[1])
    outcome = crossval.train(
      values.config,
      values.workdir,
      seeds=values.seeds,
      max_seconds=values.max_seconds,
      how=values.mapping,
      notice=notice,
      profile_steps=values.profile,
      part=part,
    )
    if not outcome.finished or notice.asked:
      why = (
        'left when asked to' if notice.asked else 'stopped at the time limit'
      )
      print(
        f'{why}, to be resumed by the same command; {len(outcome.places)} runs '
        f'in {values.workdir}'
      )
      return notice.status if notice.asked else 0
    if part[0]:
      print('all folds are trained; process 0 scores them')
      return 0
    notice.starting = True  # scoring can be left at any moment
    workdir = pathlib.Path(values.workdir)
    with summary.shown_if_unsaved():
      metrics = scoring.score(
        workdir, [(p.fold, p.seed, p.workdir) for p in outcome.places]
      )
    print(scoring.text(metrics))
    print(f'\nreport: {report.write_report([workdir])}')
    files.write_result(values.json, metrics)
  return 0


def _spread(processes: int = 1) -> None:
  """The folds of one process of several divide among the cores of a CPU."""
  from fer_jax import config as config_lib
  from fer_jax.training import cores

  values = flags.FLAGS
  config_lib.validate(values.config)
  cores.spread(-(-values.config.data.folds * values.seeds // processes))
