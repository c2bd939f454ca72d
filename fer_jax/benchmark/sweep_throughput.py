"""Trials an hour of one small search: populations, and Optuna's own loop.

Contenders are what a user starts: `sweep` with populations of several sizes,
and `optuna_loop`, which trains one run after another. All have the same config,
space, sampler, seed and number of trials. Each begins with an empty workdir and
no compiled program, and is timed from the start of its process to the end.

Rounds are minutes long, so within one nothing can be interleaved; a drift of
the machine shows between rounds, if there are several.

Contenders do not draw the same trials. A population holds on to a shape, and
prefers one that costs less (`tuning.shapes`), which makes trials cheaper, too.
So beside trials an hour there is what they were: how many shapes, how many
programs were compiled, how many multiply-adds a trial took, and the best value.
"""

import dataclasses
import functools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from fer_jax import config as config_lib
from fer_jax import files, models, provenance
from fer_jax.benchmark import optuna_loop
from fer_jax.benchmark import rounds as rounds_lib
from fer_jax.benchmark.worker import TAIL_LINES, WorkerError
from fer_jax.models.layer_table import layer_table
from fer_jax.training import task
from fer_jax.tuning import queue, space

POPULATIONS = (1, 4, 16)
LOOPS = {
  'one_process': 'Optuna, one process',
  'process_a_trial': 'Optuna, a process a trial',
}
SEED = 0
LEAST_COMPILE_SECONDS = '0.1'
"""What a program must take to be kept, as the command line has it."""

_SWEEP_FILE = """
from fer_jax import config as base
from fer_jax.tuning import space


def get_config():
  return base.load_json({config!r})


def get_space():
  return space.load({source!r})
"""


@dataclasses.dataclass(frozen=True)
class Search:
  """What is searched.

  Attributes:
    config: whose fields the space varies.
    source: the sweep file that has the space.
    trials: how many.
    seed: of the sampler.
  """

  config: config_lib.Config
  source: pathlib.Path
  trials: int
  seed: int = SEED


@dataclasses.dataclass(frozen=True)
class _Contender:
  """Who searches.

  Attributes:
    command: without its workdir.
    population: how many trials train side by side; None of a loop.
  """

  command: list[str]
  population: int | None


@dataclasses.dataclass(frozen=True)
class _Turn:
  """A search that was done.

  Attributes:
    seconds: of its process.
    programs: that it compiled, of those that take long enough to be kept.
    trials: config, epochs trained, and best validation (NaN without one).
  """

  seconds: float
  programs: int
  trials: list[tuple[config_lib.Config, int, float]]


def measure(
  search: Search,
  *,
  populations: Sequence[int] = POPULATIONS,
  loops: Sequence[str] = tuple(LOOPS),
  rounds: int = 1,
  say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> dict:
  """Lets each contender search, one after another.

  Args:
    search: what is searched.
    populations: sizes of those of `sweep`.
    loops: of `LOOPS`; the first contender of all is the reference.
    rounds: turns of each.
    say: takes lines of progress.

  Returns:
    'config', its file; 'base', the config itself; 'space'; 'trials' and 'seed';
    'train_images' of an epoch; 'environment'; 'reference', a name; and for each
    of 'contenders' its 'population' (None of a loop), over rounds the spreads
    of 'seconds', 'trials_per_hour' and 'speed_of_reference' (above 1 it is
    faster than that), and 'rounds', each as `_facts` has it.

  Raises:
    UserError: config or space do not hold, or the data cannot be had.
    WorkerError: a contender failed.
  """
  config_lib.validate(search.config)
  searched = space.Space(space.load(search.source), search.config)
  # Built here, so that no contender pays for it.
  dataset = task.load_dataset(search.config)
  images = len(task.partition_of(search.config, dataset).train)

  turns: dict[str, list[_Turn]] = {}
  with tempfile.TemporaryDirectory(prefix='fer_jax_sweep_') as name:
    folder = pathlib.Path(name)
    contenders = _contenders(search, folder, populations, loops)

    def seconds_of_turn(name: str) -> float:
      say(f'{name}: {search.trials} trials')
      turn = _search(name, contenders[name].command, search.trials, folder)
      say(f'{name}: {turn.seconds:.0f} s')
      turns.setdefault(name, []).append(turn)
      return turn.seconds

    seconds = rounds_lib.interleave(
      {n: functools.partial(seconds_of_turn, n) for n in contenders}, rounds
    )

  reference = next(iter(contenders))
  # JAX last: no contender should find a device that is held here.
  work = _Work(images, len(dataset.class_names))
  return {
    'config': search.source.name,
    'base': config_lib.to_json(search.config),
    'space': searched.to_json(),
    'trials': search.trials,
    'seed': search.seed,
    'train_images': images,
    'environment': {
      **provenance.environment(),
      'versions': provenance.versions((*provenance.PACKAGES, 'optuna')),
    },
    'reference': reference,
    'contenders': {
      name: {
        'population': contender.population,
        'seconds': rounds_lib.spread(seconds[name]),
        'trials_per_hour': rounds_lib.spread(
          [3600 * search.trials / value for value in seconds[name]]
        ),
        'speed_of_reference': rounds_lib.ratios(
          seconds[reference], seconds[name]
        ),
        'rounds': [_facts(turn, searched, work) for turn in turns[name]],
      }
      for name, contender in contenders.items()
    },
  }


def _contenders(
  search: Search,
  folder: pathlib.Path,
  populations: Sequence[int],
  loops: Sequence[str],
) -> dict[str, _Contender]:
  """Those asked for, by name; writes what they read into the folder."""
  config, sweep_file = folder / 'config.json', folder / 'sweep.py'
  source = str(search.source.resolve())
  files.write_json(config, config_lib.to_json(search.config))
  files.write_text(
    sweep_file, _SWEEP_FILE.format(config=str(config), source=source)
  )
  drawn = [f'--trials={search.trials}', f'--seed={search.seed}']
  python = [sys.executable, '-m']
  loop = [*python, 'fer_jax.benchmark.optuna_loop', f'--config={config}']
  loop += [f'--space={source}', *drawn]
  sweep = [*python, 'fer_jax', 'sweep', f'--config={sweep_file}', *drawn]
  # Finalists are none of the trials.
  sweep += ['--search=tpe', '--prune=none', '--seeds=0']
  found = {
    LOOPS[name]: _Contender(
      loop + ['--processes'] * (name == 'process_a_trial'), None
    )
    for name in loops
  }
  for size in populations:
    command = [*sweep, f'--population={size}']
    found[f'population of {size}'] = _Contender(command, size)
  return found


def _search(
  name: str, command: Sequence[str], count: int, folder: pathlib.Path
) -> _Turn:
  """Lets a contender search; nothing but the data is there before.

  Raises:
    WorkerError: it failed, or did not do what it was asked.
  """
  with tempfile.TemporaryDirectory(dir=folder) as place:
    workdir, programs = (pathlib.Path(place) / n for n in ('work', 'programs'))
    programs.mkdir()
    with (pathlib.Path(place) / 'said').open('w+', errors='replace') as said:
      begun = time.monotonic()
      status = subprocess.run(
        [*command, f'--workdir={workdir}'],
        stdout=said,
        stderr=subprocess.STDOUT,
        env={
          **os.environ,
          'JAX_ENABLE_COMPILATION_CACHE': 'true',
          'JAX_COMPILATION_CACHE_DIR': str(programs),
          'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': LEAST_COMPILE_SECONDS,
        },
      ).returncode
      seconds = time.monotonic() - begun
      said.seek(0)
      words = ''.join(said.readlines()[-TAIL_LINES:]).rstrip()
    if status:
      last = words.rpartition('\n')[2]
      raise WorkerError(f'{name}: ended with status {status}: {last}\n{words}')
    trials = []
    for path in sorted((workdir / queue.TRIALS).glob('*/config.json')):
      config = config_lib.load_json(path)
      trials.append(
        (
          config,
          queue.epochs_done(path.parent),
          optuna_loop.best_value(config, path.parent),
        )
      )
    validated = sum(not math.isnan(best) for _, _, best in trials)
    if len(trials) != count or not validated:
      raise WorkerError(
        f'{name}: expected {count} trials with a validation; {len(trials)} '
        f'were begun, {validated} have one\n{words}'
      )
    return _Turn(seconds, len(list(programs.glob('*-cache'))), trials)


class _Work:
  """What a config's training takes, by its model."""

  def __init__(self, images: int, class_count: int) -> None:
    """Makes one that has looked at no model.

    Args:
      images: of an epoch.
      class_count: K.
    """
    self._images = images
    self._class_count = class_count
    self._of_image: dict[str, int] = {}

  def multiply_adds(self, config: config_lib.Config) -> int:
    """Of the forward passes of an epoch's images."""
    key = json.dumps(config_lib.model_overrides(config), sort_keys=True)
    if key not in self._of_image:
      model = nnx.eval_shape(
        lambda: models.create(
          config.model.name,
          num_classes=self._class_count,
          rngs=nnx.Rngs(0),
          **config_lib.model_overrides(config),
        )
      )
      totals = layer_table(model)['totals']
      self._of_image[key] = totals['multiply_adds']
    return self._images * self._of_image[key]


def _facts(turn: _Turn, searched: space.Space, work: _Work) -> dict[str, Any]:
  """What was searched in a turn.

  Returns:
    'seconds'; 'shapes', how many trials can share no program; 'programs', how
    many were compiled; 'epochs' of all trials; 'multiply_adds_per_trial', the
    mean over trials of all their forward passes; 'best' validation metric.
  """
  shapes = set()
  for config, _, _ in turn.trials:
    values = dict(config_lib.flatten(config))
    shapes.add(searched.shape_text({f: values[f] for f in searched.domains}))
  values = [best for _, _, best in turn.trials if not math.isnan(best)]
  larger = searched.base.train.select != 'loss'
  return {
    'seconds': turn.seconds,
    'shapes': len(shapes),
    'programs': turn.programs,
    'epochs': sum(epochs for _, epochs, _ in turn.trials),
    'multiply_adds_per_trial': statistics.fmean(
      epochs * work.multiply_adds(config) for config, epochs, _ in turn.trials
    ),
    'best': max(values) if larger else min(values),
  }


def lines(result: dict) -> list[str]:
  """The result as text for the terminal."""
  base = result['base']
  contenders = result['contenders']
  rounds = len(contenders[result['reference']]['rounds'])
  found = [
    f'search of {result["config"]}: {result["trials"]} trials of '
    f'{base["train"]["epochs"]} epochs of {result["train_images"]:,} images, '
    f'{base["model"]["name"]}; {rounds} rounds',
    f'{"":28}{"trials an hour":>16}{"speed":>8}{"shapes":>8}{"programs":>10}'
    f'{"GMAdd a trial":>15}{"best":>8}',
  ]
  for name, row in contenders.items():
    first = row['rounds'][0]
    found.append(
      f'{name:28}{row["trials_per_hour"]["median"]:>16,.0f}'
      f'{row["speed_of_reference"]["median"]:>6.2f} x{first["shapes"]:>8}'
      f'{first["programs"]:>10}{first["multiply_adds_per_trial"] / 1e9:>15,.0f}'
      f'{first["best"]:>8.4f}'
    )
  return found
