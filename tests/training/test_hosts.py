"""Processes that train together, over loopback and gloo, train as one does.

The reference is the same command run by one process. Equal means 1e-4 after the
few float32 steps that are taken, as in the design.
"""

import os
import shutil
import signal
import subprocess
import sys

import equal_runs
import forked
import numpy as np
import pytest
from jax._src.clusters import ClusterEnv

from fer_jax import config as config_lib
from fer_jax import files, hosts
from fer_jax.errors import UserError
from fer_jax.evaluation import evaluate
from fer_jax.evaluation import workdir as workdir_lib
from fer_jax.training import checkpoint, journal, loop


def _start(count, *arguments, limits=None):
  """Some processes of a command line that belong together.

  Args:
    count: how many.
    *arguments: the verb and its flags.
    limits: by number of a process, the most bytes that it may write to a file.
  """
  return [
    forked.Command(
      *arguments,
      environ=environ,
      options={'jax_platforms': 'cpu'},
      largest_file=(limits or {}).get(number),
    )
    for number, environ in enumerate(equal_runs.environments(count))
  ]


def _ends(processes):
  """(status, stdout, stderr) of each."""
  return [process.result() for process in processes]


def _finish(count, *arguments, **options):
  """Runs some processes; all must end well, and only the first may say so."""
  return _told(_ends(_start(count, *arguments, **options)))


def _told(ends):
  first, *others = ends
  assert first[0] == 0, first
  for status, out, err in others:
    printed = [line for line in out.splitlines() if '[Gloo]' not in line]
    assert (status, printed) == (0, []), err
  return first[1]


def _train(config, workdir):
  return 'train', f'--config={config}', f'--workdir={workdir}'


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  root = tmp_path_factory.mktemp('hosts')
  path = equal_runs.write_config(root, residence='stream')
  _finish(1, *_train(path, root / 'alone'))
  return path, root / 'alone'


def test_two_begin_and_one_goes_on_or_four_with_the_set_in_memory(
  alone, tmp_path
):
  config, reference = alone
  one, four = tmp_path / 'one', tmp_path / 'four'
  # As users start them, which takes longer than a fork.
  command = [sys.executable, '-m', 'fer_jax', *_train(config, one)]
  started = [
    subprocess.Popen(
      [*command, '--max_seconds=0.001'],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu', **environ},
    )
    for environ in equal_runs.environments(2)
  ]
  said = [process.communicate(timeout=600) for process in started]
  output = _told(
    [(p.returncode, *words) for p, words in zip(started, said, strict=True)]
  )
  assert 'epoch 1/2' in output
  assert 'epoch 2/2' not in output
  shutil.copytree(one, four)
  assert 'resuming' in _finish(1, *_train(config, one))
  equal_runs.assert_same(one, reference)
  held = '--config.data.residence=device'
  assert 'resuming' in _finish(4, *_train(config, four), held)
  equal_runs.assert_same(four, reference)


def test_a_mistake_that_the_first_one_finds_ends_all(alone):
  config, reference = alone
  first, second = _ends(
    _start(2, *_train(config, reference), '--config.seed=1')
  )
  assert first[0] == second[0] == 2
  assert 'was made by another config: seed is 0' in first[2]
  assert 'the first process of this run failed' in second[2]


def test_three_evaluate_as_one_does_and_the_first_writes(alone, tmp_path):
  one, three = tmp_path / 'one', tmp_path / 'three'
  for workdir in (one, three):
    shutil.copytree(alone[1], workdir)
  expected = evaluate.evaluate(one, 'test')
  assert expected['n'] % 3  # not all have as many
  flags = f'--workdir={three}', '--split=test'
  output = _finish(3, 'evaluate', *flags, limits={1: 0, 2: 0})
  assert 'accuracy' in output
  found = files.read_json(three / 'metrics_test.json')
  assert found['looks'] == expected['looks'] + 1
  assert found['accuracy'] == expected['accuracy']
  assert found['loss'] == pytest.approx(expected['loss'], rel=1e-4)
  here, there = (workdir_lib.read_evaluation(w, 'test') for w in (three, one))
  np.testing.assert_array_equal(here.ids, there.ids)
  np.testing.assert_array_equal(here.labels, there.labels)
  np.testing.assert_allclose(here.logits, there.logits, rtol=1e-4, atol=1e-5)


def test_a_last_checkpoint_that_cannot_be_written_ends_all(alone, tmp_path):
  config, reference = alone
  workdir = tmp_path / 'run'
  shutil.copytree(reference, workdir)
  last = checkpoint.latest_intact(workdir)
  shutil.rmtree(last.path)
  before = checkpoint.latest_intact(workdir)
  assert before.epoch == 1
  largest = max(p.stat().st_size for p in before.path.rglob('*') if p.is_file())
  first, second = _ends(
    _start(2, *_train(config, workdir), limits={0: largest // 2})
  )
  assert (first[0], second[0]) == (2, 2)
  assert 'cannot write a checkpoint' in first[2]
  assert 'the first process of this run failed' in second[2]
  assert 'Traceback' not in first[2] + second[2]
  assert checkpoint.latest_intact(workdir) == before


def test_one_that_is_asked_takes_all_along_and_one_that_dies_ends_all(
  alone, tmp_path, capsys
):
  config, _ = alone
  workdir = tmp_path / 'run'
  endless = (*_train(config, workdir), '--config.train.epochs=100000')
  processes = _start(2, *endless)
  processes[0].until('epoch 2/')
  processes[1].send_signal(signal.SIGTERM)
  first, second = _ends(processes)
  assert (first[0], second[0]) == (75, 75), (first, second)
  assert 'left when asked to' in first[1]
  assert 'SIGTERM: finishing the block under way' in second[2]
  left = checkpoint.latest_intact(workdir)
  # Only the first writes, of whom nobody had asked.
  assert [e['event'] for e in journal.read(workdir)] == ['started', 'left']
  assert journal.read(workdir)[1]['why'] == 'asked'

  processes = _start(2, *endless)
  processes[0].until('resuming')
  processes[0].until('epoch ')
  processes[1].send_signal(signal.SIGKILL)
  first, _ = _ends(processes)
  assert first[0] == 75, first
  assert 'another process of this run is gone' in first[2]
  assert 'Traceback' not in first[2]
  failed = journal.read(workdir)[-1]
  assert failed['event'] == 'failed', failed
  assert checkpoint.latest_intact(workdir).step >= left.step
  loop.train(
    config_lib.load_json(workdir / 'config.json'), workdir, max_seconds=1e-6
  )
  assert 'resuming' in capsys.readouterr().out


STEP = {'SLURM_STEP_NODELIST': 'node[1-4]', 'SLURM_PROCID': '1'}
TPU = {'TPU_ML_PLATFORM': 'JAX'}
OF_FOUR = {**STEP, 'SLURM_NTASKS': '4', 'SLURM_LOCALID': '3'}
OMPI = {
  'OMPI_MCA_orte_hnp_uri': 'x',
  'OMPI_COMM_WORLD_SIZE': '6',
  'OMPI_COMM_WORLD_RANK': '5',
  'OMPI_COMM_WORLD_LOCAL_RANK': '1',
}


@pytest.mark.parametrize(
  ('environ', 'expected'),
  [
    ({}, None),
    ({**STEP, 'SLURM_NTASKS': '4'}, {}),
    ({**STEP, 'SLURM_NTASKS': '1'}, None),
    (
      {**STEP, 'SLURM_NTASKS': '4', 'CUDA_VISIBLE_DEVICES': '3'},
      {'local_device_ids': [0]},
    ),
    ({**STEP, 'SLURM_NTASKS': '4', 'CUDA_VISIBLE_DEVICES': '0,1'}, {}),
    # One process a node, with several devices.
    (
      {
        **STEP,
        'SLURM_NTASKS': '4',
        'SLURM_STEP_NUM_NODES': '4',
        'CUDA_VISIBLE_DEVICES': '0,1',
      },
      hosts.ALL_DEVICES,
    ),
    # A batch script that asked for tasks, and was not started by srun.
    ({'SLURM_PROCID': '0', 'SLURM_NTASKS': '4'}, None),
    ({'OMPI_MCA_orte_hnp_uri': 'x', 'OMPI_COMM_WORLD_SIZE': '2'}, {}),
    ({'OMPI_MCA_orte_hnp_uri': 'x', 'OMPI_COMM_WORLD_SIZE': '1'}, None),
    (
      {
        'OMPI_MCA_orte_hnp_uri': 'x',
        'OMPI_COMM_WORLD_SIZE': '2',
        'OMPI_COMM_WORLD_LOCAL_SIZE': '1',
      },
      hosts.ALL_DEVICES,
    ),
    ({**TPU, 'TPU_WORKER_HOSTNAMES': 'a,b'}, {}),
    ({**TPU, 'TPU_WORKER_HOSTNAMES': 'localhost'}, None),
    ({**TPU, 'TPU_WORKER_HOSTNAMES': 'a', 'MEGASCALE_NUM_SLICES': '2'}, {}),
    (TPU, {}),
    ({**TPU, 'TPU_SKIP_MDS_QUERY': '1'}, None),
    ({'TPU_WORKER_HOSTNAMES': 'a,b'}, None),  # no TPU here
    ({'JAX_NUM_PROCESSES': '1'}, None),
    (
      {
        'JAX_COORDINATOR_ADDRESS': 'a:1',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '1',
        **STEP,
      },
      {'coordinator_address': 'a:1', 'num_processes': 2, 'process_id': 1},
    ),
  ],
)
def test_the_environment_tells_how_to_start(environ, expected):
  assert hosts.launch(environ) == expected


@pytest.mark.parametrize(
  ('environ', 'expected'),
  [
    ({}, (0, 1, '')),
    ({**OF_FOUR, 'SLURM_NTASKS': '1'}, (0, 1, '')),
    (OF_FOUR, (1, 4, '3')),
    ({**OF_FOUR, 'CUDA_VISIBLE_DEVICES': '3'}, (1, 4, '0')),
    ({**OF_FOUR, 'SLURM_STEP_NUM_NODES': '4'}, (1, 4, '')),
    ({**OMPI, 'OMPI_COMM_WORLD_LOCAL_SIZE': '2'}, (5, 6, '1')),
    ({**OMPI, 'OMPI_COMM_WORLD_LOCAL_SIZE': '1'}, (5, 6, '')),
    ({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '1'}, (1, 2, '')),
    (
      {
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '1',
        'JAX_LOCAL_DEVICE_IDS': '2,3',
      },
      (1, 2, '2,3'),
    ),
    (TPU, (0, 1, '')),
    ({**TPU, 'TPU_WORKER_HOSTNAMES': 'localhost'}, (0, 1, '')),
  ],
)
def test_processes_that_stay_apart_have_the_devices_they_would_have(
  environ, expected
):
  assert hosts.placed(environ) == expected


def test_a_process_alone_on_its_machine_is_left_all_devices(monkeypatch):
  for name, value in {
    **STEP,
    'SLURM_JOB_ID': '7',
    'SLURM_LOCALID': '0',
    'SLURM_NTASKS': '4',
    'SLURM_STEP_NUM_NODES': '4',
  }.items():
    monkeypatch.setenv(name, value)
  detect = ClusterEnv.auto_detect_unset_distributed_params
  ids = hosts.launch(os.environ)['local_device_ids']
  assert list(detect(None, None, None, None, None, 1)[3]) == [0]
  assert list(detect(None, None, None, ids, None, 1)[3]) == []


def test_an_environment_that_makes_no_sense_is_named():
  with pytest.raises(UserError, match="JAX_PROCESS_ID=''; expected a whole"):
    hosts.launch({'JAX_NUM_PROCESSES': '2'})
  with pytest.raises(UserError, match='JAX_PROCESS_ID is 2; allowed is 0 to 1'):
    hosts.placed({'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '2'})
  with pytest.raises(UserError, match='populations need a slice of one host'):
    hosts.placed({**TPU, 'TPU_WORKER_HOSTNAMES': 'a,b'})


def test_one_process_has_all_rows_and_decides_alone():
  rows = np.arange(5)
  np.testing.assert_array_equal(hosts.share(rows), rows)
  np.testing.assert_array_equal(hosts.gathered(rows, 5), rows)
  assert (
    hosts.on_first(lambda: 'told') == hosts.on_all(lambda: 'told') == 'told'
  )
  assert hosts.any_host(True)
  assert not hosts.any_host(False)
