"""Times this package on this machine against peers, all in the same run."""

import datetime
import functools
import pathlib
import sys
from collections.abc import Callable, Iterable

from absl import flags
from ml_collections import config_flags

from fer_jax import files
from fer_jax.commands import sweep
from fer_jax.commands.summary import parse_assignment
from fer_jax.errors import UserError, nearest

SUMMARY = 'Times train step, input path, start-up and data, some beside peers.'

USUAL = ('train_step', 'input', 'startup')
OF_NO_MODEL = ('recurrent', 'sweep')
MEASUREMENTS = (*USUAL, 'compilation', 'population', 'data', *OF_NO_MODEL)
LOOPS = ('one_process', 'process_a_trial')
NUM_CLASSES = 7
SEED = 0
LEARNING_RATE = 1e-3


def define_flags() -> None:
  """Defines this verb's flags."""
  flags.DEFINE_string('model', 'residual_bilstm', 'name of the model')
  flags.DEFINE_multi_string(
    'set', [], 'FIELD=VALUE of the model, such as filters=32,64; may repeat'
  )
  flags.DEFINE_integer('batch_size', 64, 'images a step', lower_bound=1)
  flags.DEFINE_list(
    'what',
    list(USUAL),
    f'of {", ".join(MEASUREMENTS)}; population is --members runs side by side '
    'and in a row; recurrent is recurrent layers alone, with sizes of its own '
    'and Keras on JAX; data is building and reading of every data set, from '
    'files that it writes itself, beside the training step; sweep is the '
    'search of --config, see below',
  )
  flags.DEFINE_list(
    'peers',
    ['flax', 'torch', 'keras'],
    'who the train step is compared with: flax, torch, keras (its default '
    'back end), keras_tensorflow, keras_jax, keras_torch; those that are not '
    'installed are named and left out',
  )
  flags.DEFINE_integer(
    'members', 10, 'runs of --what=population', lower_bound=1
  )
  flags.DEFINE_list(
    'mappings',
    ['auto'],
    'how the members of --what=population share a device: auto, vmap, in_turn; '
    'each is timed, the first is the reference',
  )
  flags.DEFINE_list(
    'backends',
    ['auto'],
    'of our layers of --what=recurrent: auto, scan, fused, cudnn; each is '
    'timed, the first is the reference',
  )
  flags.DEFINE_list(
    'cells', ['lstm', 'gru'], 'cells of --what=recurrent: lstm, gru'
  )
  flags.DEFINE_integer(
    'rounds',
    None,
    'turns of each contender; 10 if not given, 1 of --what=sweep',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'warm_up', 8, 'steps that each runs first, not counted', lower_bound=1
  )
  flags.DEFINE_integer(
    'steps_per_dispatch',
    8,
    'steps in one loop of ours; train.block_steps is what training has',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'steps_per_epoch',
    8,
    'steps in an epoch of Keras, which has a cost of its own; few where a '
    'step takes seconds',
    lower_bound=1,
  )
  flags.DEFINE_float(
    'turn_seconds', 2.0, 'what a turn lasts at least', lower_bound=0.0
  )
  flags.DEFINE_integer(
    'starts', 3, 'starts that --what=startup counts', lower_bound=1
  )
  flags.DEFINE_string(
    'startup_config',
    'configs/quickstart.py',
    'the run that --what=startup starts',
  )
  flags.DEFINE_integer(
    'data_examples',
    512,
    'examples of each set of --what=data; CK+ has a sixteenth as sequences',
    lower_bound=8,
  )
  config_flags.DEFINE_config_file(
    'config',
    None,
    'sweep file of --what=sweep, such as configs/sweeps/p0_small.py; fields '
    'are set with --config.SECTION.FIELD=VALUE',
  )
  flags.DEFINE_integer(
    'trials', 16, 'trials of each search of --what=sweep', lower_bound=1
  )
  flags.DEFINE_list(
    'populations', ['1', '4', '16'], 'trials side by side of --what=sweep'
  )
  flags.DEFINE_list(
    'loops',
    list(LOOPS),
    "of --what=sweep, Optuna's loop around single runs: one_process has them "
    'all, process_a_trial starts one for each; the first is the reference',
  )
  flags.DEFINE_string('json', None, 'file to write the record to')


def main(argv: list[str]) -> None:
  """Measures, prints a table, and writes the record."""
  from fer_jax.benchmark import (
    contest,
    machine,
    recurrent_layers,
    train_step,
    worker,
  )
  from fer_jax.nn.recurrent.backends import BACKENDS
  from fer_jax.training.mapping import MAPPINGS

  _no_arguments(argv)
  values = flags.FLAGS
  _known('--what', values.what, MEASUREMENTS)
  _known('--peers', values.peers, train_step.PEERS)
  _known('--loops', values.loops, LOOPS)
  for flag, given, known in (
    ('--mappings', values.mappings, ('auto', *MAPPINGS)),
    ('--backends', values.backends, ('auto', *BACKENDS)),
    ('--cells', values.cells, recurrent_layers.CELLS),
  ):
    _known(flag, given, known)
    if not given:
      raise UserError(f'{flag} is empty: expected some of {", ".join(known)}')
  if 'recurrent' in values.what:
    recurrent_layers.require_peers(values.peers)
  if 'sweep' in values.what:
    _require_search(values)
  usual_rounds = 1 if set(values.what) == {'sweep'} else contest.Effort.rounds
  effort = contest.Effort(
    rounds=values.rounds or usual_rounds,
    warm_up=values.warm_up,
    turn_seconds=values.turn_seconds,
  )
  startup_config = pathlib.Path(values.startup_config)
  if 'startup' in values.what and not startup_config.is_file():
    raise UserError(
      f'--startup_config {startup_config} is no file: name a config, or leave '
      'startup out of --what'
    )
  files.require_writable(values.json)
  case = _case(
    values.model,
    values.set,
    values.batch_size,
    steps_per_dispatch=values.steps_per_dispatch,
    steps_per_epoch=values.steps_per_epoch,
    of_peers=bool({'train_step', 'population'} & set(values.what)),
  )
  record = {
    'time': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
    'machine': machine.describe(),
    'settings': {
      **_settings(values.what, case, effort),
      'statistic': 'median over rounds; ratios are formed inside each round',
    },
  }

  def keep(name: str, result: dict) -> None:
    record[name] = result
    files.write_result(values.json, record)

  failures: list[str] = []
  measurements = _measurements(case, values.peers, effort, startup_config)
  for name in MEASUREMENTS:
    if name in values.what:
      try:
        keep(name, measurements[name](functools.partial(keep, name)))
      except (worker.WorkerError, UserError) as error:
        first, _, rest = str(error).partition('\n')
        failures.append(f'--what={name}: {first}')
        if rest:
          print(rest, file=sys.stderr)
  print(render(record))
  if values.json:
    print(f'record: {values.json}')
  if failures:
    raise UserError('; '.join(failures))


def _settings(what: Iterable[str], case: dict, effort) -> dict:
  """What the record says of how it was measured."""
  if set(what) == {'sweep'}:
    return {'rounds': effort.rounds}
  names = ('model', 'overrides', 'batch_size', 'input_shape', 'num_classes')
  of_model = bool(set(what) - set(OF_NO_MODEL))
  return {
    **({name: case[name] for name in names} if of_model else {}),
    'rounds': effort.rounds,
    'warm_up_steps': effort.warm_up,
    'turn_seconds': effort.turn_seconds,
  }


def _measurements(
  case, peers, effort, startup_config
) -> dict[str, Callable[[Callable[[dict], None]], dict]]:
  """For each name what gives its result.

  It is called with what takes a result that is not whole yet.
  """
  from fer_jax.benchmark import (
    compilation,
    data_path,
    input_path,
    population,
    recurrent_layers,
    startup,
    train_step,
  )

  values = flags.FLAGS
  return {
    'train_step': lambda _: train_step.measure(case, peers, effort),
    'input': lambda _: input_path.measure(case, effort),
    'startup': lambda _: startup.measure(startup_config, starts=values.starts),
    'compilation': lambda _: compilation.measure(case),
    'population': lambda _: population.measure(
      case, peers, effort, members=values.members, mappings=values.mappings
    ),
    'recurrent': lambda keep: recurrent_layers.measure(
      peers, effort, backends=values.backends, cells=values.cells, keep=keep
    ),
    'data': lambda _: data_path.measure(
      case, effort, examples=values.data_examples
    ),
    'sweep': lambda _: _search(),
  }


def _require_search(values) -> None:
  """Checks what --what=sweep needs before anything is measured.

  Raises:
    UserError: a flag is missing or does not fit, or Optuna is missing.
  """
  if values.config is None:
    raise UserError(
      '--what=sweep needs --config; expected a sweep file such as '
      'configs/sweeps/p0_small.py'
    )
  for size in values.populations:
    if not (size.isdecimal() and int(size)):
      raise UserError(
        f'--populations={size}: expected whole numbers of at least 1'
      )
  if not (values.populations or values.loops):
    raise UserError('--populations and --loops are empty: nobody searches')
  sweep.require_optuna('--what=sweep')
  from fer_jax.tuning import space

  space.Space(space.load(sweep.sweep_file()), values.config)


def _search() -> dict:
  """The result of --what=sweep."""
  from fer_jax.benchmark import sweep_throughput

  values = flags.FLAGS
  return sweep_throughput.measure(
    sweep_throughput.Search(values.config, sweep.sweep_file(), values.trials),
    populations=[int(size) for size in values.populations],
    loops=values.loops,
    rounds=values.rounds or 1,
  )


def _case(
  model: str,
  assignments: list[str],
  batch_size: int,
  *,
  steps_per_dispatch: int,
  steps_per_epoch: int,
  of_peers: bool,
) -> dict:
  """What the contenders are asked to build, as JSON holds it."""
  from fer_jax import models
  from fer_jax.benchmark import translation

  overrides = dict(map(parse_assignment, assignments))
  try:
    specification = models.specify(model, **overrides)
    layers = (
      translation.layers(specification, num_classes=NUM_CLASSES)
      if of_peers
      else []
    )
  except ValueError as error:
    raise UserError(str(error)) from error
  fields = {**models.fields(model), **overrides}
  return {
    'model': model,
    'overrides': overrides,
    'layers': layers,
    'input_shape': list(specification.input_shape),
    'dropout': fields['dropout'],
    'num_classes': NUM_CLASSES,
    'batch_size': batch_size,
    'steps_per_dispatch': steps_per_dispatch,
    'steps_per_epoch': steps_per_epoch,
    'learning_rate': LEARNING_RATE,
    'seed': SEED,
  }


def _no_arguments(argv: list[str]) -> None:
  if len(argv) > 1:
    raise UserError(f'benchmark takes flags only, not {argv[1]!r}')


def _known(flag: str, given: Iterable[str], known: Iterable[str]) -> None:
  known = list(known)
  for name in given:
    if name not in known:
      raise UserError(
        f'{flag} {name} is not one of {", ".join(known)}{nearest(name, known)}'
      )


def render(record: dict) -> str:
  """The record as text for the terminal."""
  from fer_jax.benchmark import (
    compilation,
    data_path,
    population,
    recurrent_layers,
  )

  machine, settings = record['machine'], record['settings']
  of_model = 'model' in settings
  lines = [
    (
      f'{settings["model"]}, batch {settings["batch_size"]}, '
      if of_model
      else ''
    )
    + f'{settings["rounds"]} rounds, medians (smallest to largest)',
    f'{machine["cpu"]}, {machine["cores"]} cores, load before '
    f'{machine["load_average_before"]:.2f}',
  ]
  if 'train_step' in record:
    lines += ['', *_train_step_lines(record['train_step'])]
  if 'input' in record:
    lines += ['', *_input_lines(record['input'])]
  if 'startup' in record:
    startup = record['startup']
    lines += [
      '',
      f'start-up of {startup["config"]}: first training step after '
      f'{_spread(startup["seconds_to_first_step"], "{:.1f}")} s, '
      f'{startup["cold"]:.1f} s the first time',
    ]
  if 'compilation' in record:
    lines += ['', *compilation.lines(record['compilation'])]
  if 'population' in record:
    lines += ['', *population.lines(record['population'])]
  if 'recurrent' in record:
    lines += ['', *recurrent_layers.table(record['recurrent'])]
  if 'data' in record:
    lines += ['', *data_path.lines(record['data'])]
  if 'sweep' in record:
    from fer_jax.benchmark import sweep_throughput

    lines += ['', *sweep_throughput.lines(record['sweep'])]
  return '\n'.join(lines)


def _train_step_lines(result: dict) -> list[str]:
  lines = [
    f'train step, {result["parameters"]:,} parameters each',
    f'{"":18}{"images/s":>24}{"speed of " + result["reference"]:>26}',
  ]
  for name, row in result['contenders'].items():
    rate = _spread(row['images_per_second'], '{:.1f}')
    ratio = (
      ''
      if name == result['reference']
      else _spread(row['speedup_of_reference'], '{:.2f}') + ' x'
    )
    lines.append(f'{name:18}{rate:>24}{ratio:>26}'.rstrip())
  for name, reason in result['absent'].items():
    lines.append(f'{name:18}absent: {reason}')
  return lines


def _input_lines(result: dict) -> list[str]:
  rows = result['contenders']
  return [
    'input path: gather, augmentation and standardisation are '
    f'{_spread(result["input_share"], "{:.1%}")} of a training step; without '
    f'augmentation a step takes '
    f'{_spread(result["augmentation_share"], "{:.1%}")} less',
    *(
      f'{name:22}{_spread(row["seconds_per_step"], "{:.4f}"):>28} s a step'
      for name, row in rows.items()
    ),
  ]


def _spread(spread: dict[str, float], form: str) -> str:
  median, low, high = (
    form.format(spread[key]) for key in ('median', 'min', 'max')
  )
  return f'{median} ({low} to {high})'
