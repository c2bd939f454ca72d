"""launch/slurm.py: what it refuses, and jobs on a cluster of one node.

The reference of a job that was requeued is the same training undisturbed, as a
job of its own; equal means bit for bit.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import jax
import numpy as np
import psycopg
import pytest
from small_config import small_config

from fer_jax import config as config_lib
from fer_jax.training import checkpoint, records, task

SCRIPT = pathlib.Path(__file__).parents[2] / 'launch' / 'slurm.py'
EPOCHS = 20


def _launch(*arguments, **environment):
  return subprocess.run(
    [sys.executable, SCRIPT, *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, **environment},
  )


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """Of epochs long enough to be caught in, and of a second to compile."""
  root = tmp_path_factory.mktemp('slurm')
  config = small_config(root / 'data')
  config.data.options.images = 400
  config.train.batch_size = 4
  config.train.epochs = EPOCHS
  path = root / 'config.json'
  path.write_text(json.dumps(config_lib.to_json(config)))
  return path


def _mistakes(folder):
  config = folder / 'config.json'
  config.write_text('{}')
  absolute = f'--workdir={folder / "run"}'
  train = ('--verb=train', '--dry_run')
  return {
    '--verb is missing': ('--', f'--config={config}', absolute),
    '--config is missing': (*train, '--', absolute),
    'there is no file': (*train, '--', f'--config={folder}/no.py', absolute),
    '--workdir is missing': (*train, '--', f'--config={config}'),
    'is relative; expected an absolute path': (
      *train, '--', f'--config={config}', '--workdir', 'runs/a',
    ),
    'is for --verb=sweep': (
      *train, '--workers=2', '--', f'--config={config}', absolute,
    ),
    '--max_seconds after the --': (
      *train, '--', f'--config={config}', absolute, '--max_seconds=60',
    ),
    'leaves no time to work': (
      *train, '--minutes=2', '--', f'--config={config}', absolute,
    ),
    '--sbatch==x: expected NAME=VALUE': (
      *train, '--sbatch==x', '--', f'--config={config}', absolute,
    ),
    'sbatch is not found': (
      '--verb=train', '--', f'--config={config}', absolute,
    ),
  }  # fmt: skip


def test_mistakes_are_one_line_and_leave_nothing(tmp_path):
  for said, arguments in _mistakes(tmp_path).items():
    done = _launch(*arguments, PATH='/nowhere')
    assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
    assert said in done.stderr
  assert not (tmp_path / 'run').exists()


def test_a_dry_run_shows_the_array_and_submits_nothing(config, tmp_path):
  done = _launch(
    '--verb=sweep', '--workers=8', '--partition=gpu', '--gpus=1',
    '--minutes=240', '--sbatch=account=faces', '--dry_run', '--',
    f'--config={config}', f'--workdir={tmp_path}/sweep', '--trials=32',
    PATH='/nowhere',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  for option in (
    '--array=0-7%8', '--partition=gpu', '--gpus-per-node=1', '--time=240',
    '--signal=USR2@90', '--requeue', '--open-mode=append', '--account=faces',
  ):  # fmt: skip
    assert f'#SBATCH {option}\n' in done.stdout
  assert f'-m fer_jax sweep --config={config}' in done.stdout
  assert not (tmp_path / 'sweep').exists()


def _submit(cluster, config, workdir) -> str:
  done = _launch(
    '--verb=train', '--partition=main', '--minutes=20', '--',
    f'--config={config}', f'--workdir={workdir}',
    **cluster.environment, JAX_PLATFORMS='cpu',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return re.search(r'submitted job (\d+)', done.stdout)[1]


def _until_epoch(cluster, job, workdir, epoch) -> None:
  """Until an epoch is recorded; the job must not end before."""
  deadline = time.monotonic() + 240
  while len(records.read_metrics(workdir)) < epoch:
    assert cluster.state(job)['JobState'] != 'COMPLETED'
    assert time.monotonic() < deadline
    time.sleep(0.05)


def test_a_requeued_training_ends_as_an_undisturbed_one(
  cluster, config, tmp_path
):
  undisturbed, disturbed = tmp_path / 'undisturbed', tmp_path / 'disturbed'
  reference = _submit(cluster, config, undisturbed)
  job = _submit(cluster, config, disturbed)
  # As an administrator or preemption does it.
  _until_epoch(cluster, job, disturbed, 2)
  cluster.ask('scontrol', 'requeue', job)
  # As Slurm warns before the limit: the job itself asks to be queued again.
  before = len(records.read_metrics(disturbed))
  _until_epoch(cluster, job, disturbed, before + 2)
  cluster.ask('scancel', '--signal=USR2', job)
  for each in (reference, job):
    cluster.wait(each, 'COMPLETED')

  assert cluster.state(job)['Restarts'] == '2'
  log = (disturbed / 'slurm' / f'{job}_0_log.out').read_text()
  assert log.count('resuming') == 2
  errors = (disturbed / 'slurm' / f'{job}_0_log.err').read_text()
  assert errors.count('saving and leaving with status 75') == 2
  assert f'done: epoch {EPOCHS} of {EPOCHS}' in log
  ends = [checkpoint.latest_intact(w) for w in (undisturbed, disturbed)]
  assert ends[0].step == ends[1].step
  assert ends[0].best_step == ends[1].best_step
  target = task.abstract_state(config_lib.load_json(config), 7)
  jax.tree.map(
    np.testing.assert_array_equal,
    *(checkpoint.restore(end, target) for end in ends),
  )
  epochs = [r['epoch'] for r in records.read_metrics(disturbed)]
  assert epochs == list(range(1, EPOCHS + 1))


SWEEP = """
from fer_jax import config as base
from fer_jax.tuning import log_uniform

def get_config():
  return base.load_json({config!r})

def get_space():
  return {{'optim.learning_rate': log_uniform(1e-3, 1e-1)}}
"""


def test_a_sweep_of_two_workers_outlives_its_database(
  cluster, postgres, config, tmp_path
):
  space, workdir = tmp_path / 'space.py', tmp_path / 'sweep'
  space.write_text(SWEEP.format(config=str(config)))
  done = _launch(
    '--verb=sweep', '--workers=2', '--minutes=20', '--', f'--config={space}',
    f'--workdir={workdir}', f'--storage={postgres.url}', '--trials=5',
    '--search=random', '--population=1', '--seeds=0', '--config.train.epochs=6',
    **cluster.environment, JAX_PLATFORMS='cpu',
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  job = re.search(r'submitted job (\d+) of 2 tasks', done.stdout)[1]
  # One of the workers has begun its second trial.
  _until_epoch(cluster, f'{job}_0', workdir / 'trials' / '0002', 1)
  postgres.kill()
  time.sleep(2)
  postgres.start()
  for task_number in (0, 1):
    cluster.wait(f'{job}_{task_number}', 'COMPLETED')

  content = json.loads((workdir / 'sweep.json').read_text())
  assert [t['number'] for t in content['trials']] == list(range(5))
  assert {t['state'] for t in content['trials']} == {'complete'}
  for trial in content['trials']:
    recorded = records.read_metrics(workdir / trial['workdir'])
    assert [r['epoch'] for r in recorded] == list(range(1, 7))
  assert (workdir / 'report.html').exists()
  url = postgres.url.replace('+psycopg', '')
  with psycopg.connect(url) as connection:
    (count,) = connection.execute('select count(*) from trials').fetchone()
  assert count == 5


def test_what_slurm_and_sbatch_refuse_is_one_line(cluster, config, tmp_path):
  for said, option in (
    ("there is no partition 'mian'; there are main; did you mean 'main'?",
     '--partition=mian'),
    ('sbatch refuses: Batch job submission failed: Invalid node name',
     '--sbatch=nodelist=elsewhere'),
  ):  # fmt: skip
    done = _launch(
      '--verb=train', option, '--', f'--config={config}',
      f'--workdir={tmp_path}/run', **cluster.environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count('\n')) == (2, 1), done.stderr
    assert said in done.stderr
