"""`train`: trains a run, or goes on with an interrupted one."""

from absl import flags
from ml_collections import config_flags

from fer_jax import commands
from fer_jax.errors import UserError

SUMMARY = 'Train a run from a config, or resume the one in --workdir.'


def define_flags() -> None:
  """Defines the verb's flags."""
  config_flags.DEFINE_config_file(
    'config',
    None,
    'Config file (Python, or the config.json of a run); single fields are '
    'set with --config.SECTION.FIELD=VALUE.',
  )
  flags.DEFINE_string('workdir', None, 'Folder of the run.')
  flags.DEFINE_float(
    'max_seconds',
    0.0,
    'Leave in good order after the epoch that passes this; 0 is no limit.',
    lower_bound=0.0,
  )
  commands.define_dry_run(__name__, 'what memory and time the run needs')
  commands.define_profile(__name__)
  flags.DEFINE_bool(
    'fields', False, 'List the fields of --config, or of the base, and leave.'
  )


def main(argv: list[str]) -> int:
  """Runs the verb."""
  from fer_jax import config as config_lib
  from fer_jax.training import preemption

  values = flags.FLAGS
  if values.fields:
    print(config_lib.describe_fields(values.config))
    return 0
  if len(argv) > 1:
    raise UserError(f'train takes no argument {argv[1]!r}; see train --help')
  if values.config is None:
    raise UserError(
      '--config is missing; expected a config file such as '
      'configs/quickstart.py'
    )
  if values.dry_run:
    from fer_jax import hosts
    from fer_jax.training import rehearsal

    with hosts.joined():
      _spread(values.config)
      found = rehearsal.rehearse(values.config)
    print(rehearsal.text(found, values.config.train.batch_size))
    return 0
  if not values.workdir:
    raise UserError('--workdir is missing; expected a folder for the run')
  with preemption.watched() as notice:
    notice.starting = True
    from fer_jax import hosts
    from fer_jax.training import loop  # seconds, in which signals are heard

    with hosts.joined():
      _spread(values.config)
      outcome = loop.train(
        values.config,
        values.workdir,
        max_seconds=values.max_seconds,
        notice=notice,
        profile_steps=values.profile,
      )
  if outcome.asked:
    ended = 'left when asked to, to be resumed by the same command'
  elif not outcome.finished:
    ended = 'stopped at the time limit, to be resumed by the same command'
  else:
    ended = 'done, stopped early' if outcome.stopped_early else 'done'
  best = 'no validation yet'
  if values.config.train.select == 'last':
    best = 'the last epoch is taken'
  elif outcome.best_step:
    best = (
      f'best validation {values.config.train.select} '
      f'{outcome.best_metric:.4f} at step {outcome.best_step}'
    )
  back = ''
  if outcome.rollbacks:
    back = f'; rolled back {outcome.rollbacks} times, see its run.json'
  print(
    f'{ended}: epoch {outcome.epoch} of {values.config.train.epochs}, step '
    f'{outcome.step}; {best}{back}; run in {values.workdir}'
  )
  return notice.status if outcome.asked else 0


def _spread(config) -> None:
  """A run alone divides its batches over the cores of a CPU."""
  from fer_jax import config as config_lib
  from fer_jax import hosts
  from fer_jax.training import cores

  config_lib.validate(config)
  if hosts.count() == 1:
    cores.spread(cores.parts_of_batch(config.train.batch_size))
