"""`sweep`: searches a space of configs, and names a winner."""

import dataclasses
import importlib.util
import os
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from fer_jax import commands
from fer_jax.errors import UserError

SUMMARY = 'Search hyperparameters: populations of trials, resumable anywhere.'

SEARCHES = ('tpe', 'random', 'grid')
PRUNERS = ('none', 'halving', 'median')
MAPPINGS = ('auto', 'vmap', 'in_turn')


def define_flags() -> None:
  """Defines the verb's flags."""
  config_flags.DEFINE_config_file(
    'config',
    None,
    'Sweep file: a config file that has get_space() as well, such as '
    'configs/sweeps/p0.py; single fields that are not searched are set with '
    '--config.SECTION.FIELD=VALUE.',
  )
  flags.DEFINE_string(
    'workdir',
    None,
    'Folder of the sweep. Each further process of the same command is one more '
    'worker.',
  )
  flags.DEFINE_enum('search', 'tpe', SEARCHES, 'How trials are drawn.')
  flags.DEFINE_enum(
    'prune', 'none', PRUNERS, 'What stops trials early, by validation.'
  )
  flags.DEFINE_integer(
    'trials', 0, 'How many; 0 is a whole grid, else 32.', lower_bound=0
  )
  flags.DEFINE_integer('seed', 0, 'Of what is drawn.', lower_bound=0)
  flags.DEFINE_integer(
    'population',
    0,
    'Trials that train side by side, less where memory is short; 0 is one a '
    'core on CPU and at most 16 on an accelerator.',
    lower_bound=0,
  )
  flags.DEFINE_integer(
    'workers',
    1,
    'Processes on this machine, a device each where there are several; 0 is '
    'one of those, which leaves the result to who started it.',
    lower_bound=0,
  )
  flags.DEFINE_integer(
    'top', 3, 'How many of the best trials are finalists.', lower_bound=0
  )
  flags.DEFINE_integer(
    'seeds',
    3,
    'Under how many other seeds a finalist is repeated before a winner is '
    'named; 0 names the best trial.',
    lower_bound=0,
  )
  flags.DEFINE_string(
    'storage',
    '',
    'Database of the study, as postgresql://user@host/name with the password '
    'in ~/.pgpass; the default is the file study.db in --workdir.',
  )
  flags.DEFINE_string(
    'study', '', "The study's name there; the default is the workdir's."
  )
  flags.DEFINE_float(
    'storage_patience',
    300.0,
    'Seconds for which a database that has gone away is waited for.',
    lower_bound=0.0,
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
    MAPPINGS,
    'How trials share a device: all at once, or in turn within a dispatch.',
  )
  commands.define_dry_run(
    __name__,
    'what is searched, what memory and time trials need and how many fit side '
    'by side',
  )
  commands.define_profile(__name__, 'WORKDIR/workers/N')
  flags.DEFINE_string('json', None, 'File to write sweep.json to as well.')


def require_optuna(what: str) -> None:
  """Raises UserError where Optuna is missing, which `what` needs."""
  for package in ('optuna', 'sqlalchemy'):
    if importlib.util.find_spec(package) is None:
      raise UserError(
        f'{what} needs {package}, which the extra tune installs: '
        "pip install -e '.[tune]'"
      )


def sweep_file() -> pathlib.Path:
  """The file of --config, without what follows its colon."""
  name = config_flags.get_config_filename(flags.FLAGS['config'])
  file, _, argument = str(name).partition(':')
  # A config.json follows the file that reads it.
  return pathlib.Path(argument if argument.endswith('.json') else file)


def main(argv: list[str]) -> int:
  """Runs the verb."""
  values = flags.FLAGS
  if len(argv) > 1:
    raise UserError(f'sweep takes no argument {argv[1]!r}; see sweep --help')
  if values.config is None:
    raise UserError(
      '--config is missing; expected a sweep file such as configs/sweeps/p0.py'
    )
  if not (values.workdir or values.dry_run):
    raise UserError('--workdir is missing; expected a folder for the sweep')
  require_optuna('sweep')

  from fer_jax import files
  from fer_jax.tuning import crew, space

  files.require_writable(values.json)
  domains = space.load(sweep_file())
  if values.dry_run:
    return _rehearse(domains)
  if values.workers > 1:
    from fer_jax import hosts

    if (count := hosts.placed(os.environ)[1]) > 1:
      raise UserError(
        f'--workers is {values.workers} in each of {count} processes, which '
        'are workers themselves; allowed is 1'
      )
    # Whatever is wrong with it, said once.
    space.Space(domains, values.config)
    statuses = crew.run(
      [sys.executable, '-m', 'fer_jax', 'sweep', *sys.argv[1:], '--workers=0'],
      values.workers,
    )
    return _after(statuses)
  return _work(domains)


def _settings():
  """How the flags say that it is done."""
  from fer_jax.tuning import search, sweep

  values = flags.FLAGS
  return sweep.Settings(
    searching=search.Settings(values.search, values.prune, values.seed),
    trials=values.trials,
    population=values.population,
    top=values.top,
    seeds=values.seeds,
    storage=values.storage,
    study=values.study,
    patience=values.storage_patience,
    max_seconds=values.max_seconds,
    how=values.mapping,
    profile_steps=values.profile,
  )


def _spread() -> None:
  """Trials divide among the cores of a CPU."""
  from fer_jax import provenance
  from fer_jax.training import cores
  from fer_jax.tuning import sweep, worker

  values = flags.FLAGS
  trials = values.trials or sweep.DEFAULT_TRIALS
  cores.spread(
    worker.members_on_cores(values.population, trials, provenance.cores())
  )


def _rehearse(domains) -> int:
  """Says what the sweep searches, and what its trials take."""
  from fer_jax.tuning import rehearsal

  values = flags.FLAGS
  _spread()
  settings = _settings()
  if values.workdir:
    study = settings.study_in(pathlib.Path(values.workdir))
    settings = dataclasses.replace(settings, study=study)
  found = rehearsal.rehearse(values.config, domains, settings)
  print(rehearsal.text(found, values.config.train.batch_size))
  return 0


def _work(domains) -> int:
  """This process as a worker."""
  from fer_jax.training import preemption

  values = flags.FLAGS
  with preemption.watched() as notice:
    # Seconds, in which signals are heard.
    from fer_jax import hosts
    from fer_jax.tuning import sweep

    notice.starting = True
    # Several processes are as many workers, of which the first tells the rest.
    number, _ = hosts.apart()
    _spread()
    finished, content = sweep.run(
      values.config, domains, values.workdir, _settings(), notice
    )
  if values.workers and not number:
    _say(content, finished)
  return notice.status if notice.asked and not finished else 0


def _after(statuses: list[int]) -> int:
  """Says the result of several workers; returns the exit status of all."""
  from fer_jax import files
  from fer_jax.training import preemption
  from fer_jax.tuning import summary

  if not statuses:
    return preemption.REQUEUE_STATUS  # asked to leave before any began
  goes_on = 'the same command takes over its trials'
  if max(statuses) >= 0:
    goes_on = 'the others take over its trials, or the same command does'
  for number, status in enumerate(statuses):
    if status < 0:
      print(f'worker {number} was ended by signal {-status}; {goes_on}')
  if 0 not in statuses:
    return next((s for s in statuses if s > 0), 1)
  content = files.read_json(pathlib.Path(flags.FLAGS.workdir) / summary.SUMMARY)
  _say(content, content['best'] is not None)
  return 0


def _say(content: dict, finished: bool) -> None:
  from fer_jax import files
  from fer_jax.tuning import summary

  values = flags.FLAGS
  files.write_result(values.json, content)
  if not finished:
    print(
      'stopped before the end, to be resumed by the same command: '
      f'{summary.counts(content)}; sweep in {values.workdir}'
    )
    return
  from fer_jax.evaluation import report  # not for who has to leave soon

  print(summary.text(content))
  print(f'best config: {pathlib.Path(values.workdir) / summary.BEST}')
  print(f'report: {report.write_report([values.workdir])}')
