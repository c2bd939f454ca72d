"""A search as it is usually written: Optuna around single runs.

    python -m fer_jax.benchmark.optuna_loop --config=CONFIG.json \
      --space=configs/sweeps/p0.py --workdir=DIR --trials=16 [--processes]

One trial after another, drawn by one sampler that learns from all before, kept
in SQLite; the config's own values come first, as in `sweep`. Each is trained by
the package's own loop: in this process, or by `train` in a process of its own.
"""

import argparse
import functools
import math
import pathlib
import subprocess
import sys
from collections.abc import Callable

import optuna

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.errors import UserError
from fer_jax.training import records
from fer_jax.tuning import queue, search, space
from fer_jax.tuning import study as study_lib

USAGE_ERROR = 2
"""Exit status of a `train` whose loss is not finite, among other mistakes."""

Train = Callable[[config_lib.Config, pathlib.Path], None]


def in_this_process(config: config_lib.Config, workdir: pathlib.Path) -> None:
  """Trains a run.

  Raises:
    UserError: its loss is not finite.
  """
  from fer_jax.training import loop

  loop.train(config, workdir)


def in_a_process(config: config_lib.Config, workdir: pathlib.Path) -> None:
  """Trains a run in a process of its own.

  Raises:
    UserError: its loss is not finite.
  """
  path = workdir.with_suffix('.json')
  path.parent.mkdir(exist_ok=True)
  files.write_json(path, config_lib.to_json(config))
  command = [sys.executable, '-m', 'fer_jax', 'train']
  command += [f'--config={path}', f'--workdir={workdir}']
  status = subprocess.run(command).returncode
  if status == USAGE_ERROR:
    raise UserError(f'{workdir} was not trained')
  if status:
    raise subprocess.CalledProcessError(status, command)


def best_value(config: config_lib.Config, workdir: pathlib.Path) -> float:
  """The best validation metric of a run; NaN where there is none."""
  metric = config.train.select
  found = [
    record['validation'][metric]
    for record in records.read_metrics(workdir)
    if math.isfinite(record.get('validation', {}).get(metric, math.nan))
  ]
  best = min if metric == 'loss' else max
  return best(found, default=math.nan)


def run(
  config: config_lib.Config,
  domains: dict[str, space.Domain],
  workdir: pathlib.Path,
  *,
  trials: int,
  seed: int,
  train: Train,
) -> None:
  """Searches.

  Args:
    config: whose fields the space varies.
    domains: the space, by dotted field.
    workdir: of the search; that of a trial is where `sweep` would have it.
    trials: how many.
    seed: of the sampler.
    train: a run.
  """
  searched = space.Space(domains, config)
  workdir.mkdir(parents=True)
  study = optuna.create_study(
    storage=study_lib.database(f'sqlite:///{workdir.resolve() / "study.db"}'),
    direction='minimize' if config.train.select == 'loss' else 'maximize',
    sampler=optuna.samplers.TPESampler(seed=seed),
  )
  first = searched.stored_base()
  if first is not None:
    study.enqueue_trial(first)

  def objective(trial: optuna.Trial) -> float:
    suggest = functools.partial(search.suggest, trial)
    params = searched.suggest(
      lambda field, domain: domain.value(suggest(field, domain))
    )
    drawn = searched.config_of(params)
    place = workdir / queue.TRIALS / f'{trial.number:04d}'
    try:
      train(drawn, place)
    except UserError as error:
      print(f'trial {trial.number}: {error}', flush=True)
      raise optuna.TrialPruned from error
    return best_value(drawn, place)

  study.optimize(objective, n_trials=trials)


def main() -> None:
  """Searches, as a process."""
  parser = argparse.ArgumentParser(
    prog='python -m fer_jax.benchmark.optuna_loop',
    description='Optuna around single runs.',
  )
  parser.add_argument('--config', required=True, help='a config.json')
  parser.add_argument('--space', required=True, help='a sweep file')
  parser.add_argument('--workdir', required=True)
  parser.add_argument('--trials', type=int, required=True)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument(
    '--processes', action='store_true', help='one for each trial'
  )
  values = parser.parse_args()
  run(
    config_lib.load_json(values.config),
    space.load(values.space),
    pathlib.Path(values.workdir),
    trials=values.trials,
    seed=values.seed,
    train=in_a_process if values.processes else in_this_process,
  )


if __name__ == '__main__':
  main()
