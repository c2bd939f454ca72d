"""launch/slurm.py: what it refuses, and jobs on a cluster of one node.

The reference of a job that was requeued is the same training undisturbed, as a
job of its own; equal means bit for bit.
"""

import json
import os
import pathlib
import re
import signal
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
    'a sweep takes several nodes by --workers': (
      '--verb=sweep', '--nodes=2', '--', f'--config={config}', absolute,
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


RUN_TASK = """
import runpy, signal, sys
script, seconds, command = sys.argv[1:]
sys.argv = [script]
signal.signal(signal.SIGUSR2, lambda *_: print('at limit', flush=True))
Task = runpy.run_path(script)['Task']
Task.__call__.__globals__['HEARD_SECONDS'] = float(seconds)
Task(['sh', '-c', 'echo begun; ' + command], 3)()
"""


@pytest.mark.parametrize(
  ('command', 'environment', 'number', 'status', 'said'),
  [
    ('exit 75', {}, None, 75, 'requeue 7'),
    ('exit 75', {'SLURM_RESTART_COUNT': '2'}, None, 75, 'requeue 7'),
    ('exit 75', {'SLURM_RESTART_COUNT': '3'}, None, 75, ''),
    (
      'exit 75',
      {'SLURM_ARRAY_JOB_ID': '5', 'SLURM_ARRAY_TASK_ID': '1'},
      None,
      75,
      'requeue 5_1',
    ),
    ('kill -9 $$', {'SLURM_NTASKS': '2'}, None, 137, 'requeue 7'),
    ('kill -9 $$', {'SLURM_NTASKS': '1'}, None, 137, ''),
    ('exit 2', {'SLURM_NTASKS': '2'}, None, 2, ''),
    ('exit 1', {'SLURM_NTASKS': '2'}, None, 1, ''),
    # Slurm tells this process after another one has left for it.
    ('exit 75', {'SLURM_NTASKS': '2'}, signal.SIGTERM, 75, ''),
    ('exit 75', {'SLURM_NTASKS': '2'}, signal.SIGUSR2, 75, 'at limit'),
    (
      'trap "exit 75" TERM; sleep 9 >/dev/null 2>&1 & wait',
      {},
      signal.SIGTERM,
      75,
      '',
    ),
  ],
)
def test_who_is_queued_again(
  command, environment, number, status, said, tmp_path
):
  scontrol = tmp_path / 'scontrol'
  scontrol.write_text('#!/bin/sh\necho "$*"\n')
  scontrol.chmod(0o755)
  with subprocess.Popen(
    [sys.executable, '-c', RUN_TASK, SCRIPT, '2' if number else '0', command],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={
      **os.environ,
      **environment,
      'SLURM_JOB_ID': '7',
      'PATH': f'{tmp_path}:{os.environ["PATH"]}',
    },
  ) as process:
    assert process.stdout.readline() == 'begun\n'
    if number:
      time.sleep(0.3)  # from its first word to the handlers of who waits for it
      process.send_signal(number)
    # Not by `communicate`, which does not see what came with the first line.
    out, err = process.stdout.read(), process.stderr.read()
  assert (process.returncode, out.strip()) == (status, said), err


def _submit(cluster, config, workdir, *flags, verb='train', sbatch=()) -> str:
  done = _launch(
    f'--verb={verb}', '--partition=main', '--minutes=20', *sbatch, '--',
    f'--config={config}', f'--workdir={workdir}', *flags,
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


def test_of_two_processes_one_is_killed_and_two_divide_folds_meanwhile(
  cluster, config, tmp_path
):
  two, folds = tmp_path / 'two', tmp_path / 'folds'
  job = _submit(
    cluster, config, two, '--config.train.epochs=6',
    sbatch=['--sbatch=ntasks_per_node=2'],
  )  # fmt: skip
  _until_epoch(cluster, job, two, 2)
  heartbeat = json.loads((two / 'heartbeat.json').read_text())
  os.kill(heartbeat['pid'], signal.SIGKILL)
  validated = _submit(
    cluster, config, folds, '--config.data.protocol=kfold_subjects',
    '--config.data.folds=2', '--config.train.epochs=1', verb='crossval',
    sbatch=['--sbatch=ntasks_per_node=2'],
  )  # fmt: skip
  for each in (validated, job):
    cluster.wait(each, 'COMPLETED')

  assert cluster.state(validated)['Restarts'] == '0'
  assert json.loads((folds / 'metrics_crossval.json').read_text())
  log = (folds / 'slurm' / f'{validated}_1_log.out').read_text()
  assert 'all folds are trained; process 0 scores them' in log
  assert cluster.state(job)['Restarts'] == '1'
  log = (two / 'slurm' / f'{job}_0_log.out').read_text()
  assert log.count('2 processes with 2 devices together') == 2
  assert log.count('resuming') == 1
  epochs = [r['epoch'] for r in records.read_metrics(two)]
  assert epochs == list(range(1, 7))


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
