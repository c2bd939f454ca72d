"""Searches as processes, tiny, and what is counted of them."""

import json
import sys

import optuna
import pytest
from small_config import small_config

from fer_jax.benchmark import optuna_loop, sweep_throughput
from fer_jax.benchmark.worker import WorkerError
from fer_jax.commands.summary import summarise
from fer_jax.errors import UserError
from fer_jax.training import records
from fer_jax.tuning import study as study_lib

SPACE = """
from fer_jax.tuning import choice, log_uniform

def get_space():
  return {
    'train.batch_size': choice(16, 32),
    'optim.learning_rate': log_uniform(1e-4, 1e-2),
  }
"""


@pytest.fixture
def source(tmp_path):
  path = tmp_path / 'space.py'
  path.write_text(SPACE)
  return path


def test_a_search_is_timed_and_counted(tmp_path, source):
  """Two trials of one epoch as a population, which has one shape."""
  config = small_config(tmp_path / 'data')
  config.data.image_size = 8
  config.train.epochs = 1
  result = sweep_throughput.measure(
    sweep_throughput.Search(config, source, trials=2),
    populations=[2],
    loops=[],
    say=lambda line: None,
  )
  (row,) = result['contenders'].values()
  (turn,) = row['rounds']
  assert row['population'] == 2
  assert row['trials_per_hour']['median'] == 7200 / turn['seconds']
  assert turn['shapes'] == 1
  assert turn['programs'] > 0
  assert turn['epochs'] == 2
  assert 0 <= turn['best'] <= 1
  fields = {'input_shape': (8, 8, 1), **dict(config.model.items())}
  fields.pop('name')
  one_image = summarise('residual_gru', 7, fields)['totals']['multiply_adds']
  assert turn['multiply_adds_per_trial'] == result['train_images'] * one_image
  text = sweep_throughput.lines(json.loads(json.dumps(result)))
  assert '2 trials of 1 epochs of 128 images' in text[0]
  assert text[-1].startswith('population of 2 ')


def test_a_loop_learns_from_what_its_runs_wrote(tmp_path, source, monkeypatch):
  """As its process is started, but that nothing is trained."""
  seen = []

  def train(config, workdir):
    seen.append((config.train.batch_size, config.optim.learning_rate))
    if len(seen) == 2:
      raise UserError('the loss is not finite')
    workdir.mkdir(parents=True)
    with (workdir / records.METRICS).open('w') as metrics:
      for epoch, accuracy in ((1, 0.3), (2, 0.2)):
        validation = {'accuracy': accuracy, 'loss': 1.0}
        record = {'epoch': epoch, 'step': epoch, 'validation': validation}
        metrics.write(json.dumps(record) + '\n')

  monkeypatch.setattr(optuna_loop, 'in_a_process', train)
  found = sweep_throughput._contenders(
    sweep_throughput.Search(small_config(tmp_path), source, trials=3),
    tmp_path,
    populations=[],
    loops=['process_a_trial'],
  )
  (contender,) = found.values()
  _, _, *arguments = contender.command
  monkeypatch.setattr(sys, 'argv', [*arguments, f'--workdir={tmp_path}/work'])
  optuna_loop.main()

  study = optuna.load_study(
    study_name=None,
    storage=study_lib.database(f'sqlite:///{tmp_path}/work/study.db'),
  )
  assert [t.state.name for t in study.trials] == [
    'COMPLETE',
    'PRUNED',
    'COMPLETE',
  ]
  assert study.best_value == 0.3
  assert seen[0] == (32, 1e-3)  # the config's own
  assert len(set(seen)) == 3


@pytest.mark.parametrize(
  ('program', 'message'),
  [
    ('import sys; sys.exit("no luck")', 'loop: ended with status 1: no luck'),
    ('pass', 'loop: expected 3 trials'),
  ],
)
def test_a_contender_that_did_not_search_is_named(program, message, tmp_path):
  command = [sys.executable, '-c', program]
  with pytest.raises(WorkerError, match=message):
    sweep_throughput._search('loop', command, 3, tmp_path)
