"""Processes that train together, over loopback and gloo, train as one does.

The reference is the same command run by one process. Equal means 1e-4 after the
few float32 steps that are taken, as in the design.
"""

import json
import os
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from fer_jax import config as config_lib
from fer_jax import hosts
from fer_jax.errors import UserError
from fer_jax.training import checkpoint, records, task

_CONFIG = """
from fer_jax import config as base

def get_config():
  config = base.get_base(model='residual_gru')
  config.data.data_dir = {data_dir!r}
  config.data.options.images = 160
  config.data.image_size = 8
  config.data.residence = 'stream'
  config.model.stem_filters = (4,)
  config.model.filters = (4,)
  config.model.blocks = (1,)
  config.model.units = 4
  config.model.head = (4,)
  config.augment.enabled = False
  config.optim.name = 'sgd'
  config.optim.learning_rate = 0.05
  config.train.batch_size = 32
  config.train.epochs = 2
  config.train.ema_decay = 0.9
  return config
"""


def _train(count, config, workdir, *flags):
  """(status, stdout, stderr) of each of some processes that train together."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    port = free.getsockname()[1]
  command = [sys.executable, '-m', 'fer_jax', 'train', f'--config={config}']
  processes = [
    subprocess.Popen(
      [*command, f'--workdir={workdir}', *flags],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={
        **os.environ,
        'JAX_PLATFORMS': 'cpu',
        'XLA_FLAGS': '--xla_backend_optimization_level=0',
        'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
        'JAX_NUM_PROCESSES': str(count),
        'JAX_PROCESS_ID': str(number),
      },
    )
    for number in range(count)
  ]
  outputs = [process.communicate(timeout=600) for process in processes]
  return [
    (process.returncode, *output)
    for process, output in zip(processes, outputs, strict=True)
  ]


def _finish(*arguments):
  """As `_train`; all must end well, and only the first may say so."""
  first, *others = _train(*arguments)
  assert first[0] == 0, first
  for status, out, err in others:
    printed = [line for line in out.splitlines() if '[Gloo]' not in line]
    assert (status, printed) == (0, []), err
  return first[1]


def _final(workdir):
  config = config_lib.load_json(workdir / 'config.json')
  sealed = checkpoint.latest_intact(workdir)
  run = json.loads((workdir / 'run.json').read_text())
  return checkpoint.restore(
    sealed, task.abstract_state(config, len(run['class_names']))
  )


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
  root = tmp_path_factory.mktemp('hosts')
  config = root / 'config.py'
  config.write_text(_CONFIG.format(data_dir=str(root / 'data')))
  _finish(1, config, root / 'alone')
  return config, root / 'alone'


def _assert_same(workdir, reference):
  found, expected = map(records.read_metrics, (workdir, reference))
  assert [r['epoch'] for r in found] == [1, 2]
  for here, there in zip(found, expected, strict=True):
    assert here['step'] == there['step']
    for part in ('train', 'validation'):
      assert here[part] == pytest.approx(there[part], rel=1e-4)

  def close(x, y):
    largest = max(np.max(np.abs(y), initial=0), 1e-3)
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * largest)

  jax.tree.map(close, _final(workdir), _final(reference))


def test_two_begin_and_one_goes_on_or_four_with_the_set_in_memory(
  alone, tmp_path
):
  config, reference = alone
  one, four = tmp_path / 'one', tmp_path / 'four'
  output = _finish(2, config, one, '--max_seconds=0.001')
  assert 'epoch 1/2' in output
  assert 'epoch 2/2' not in output
  shutil.copytree(one, four)
  written = four / 'config.json'
  written.write_text(written.read_text().replace('"stream"', '"device"'))
  assert 'resuming' in _finish(1, config, one)
  _assert_same(one, reference)
  held = '--config.data.residence=device'
  assert 'resuming' in _finish(4, config, four, held)
  _assert_same(four, reference)


def test_a_mistake_that_the_first_one_finds_ends_all(alone):
  config, reference = alone
  first, second = _train(2, config, reference, '--config.seed=1')
  assert first[0] == second[0] == 2
  assert 'was made by another config: seed is 0' in first[2]
  assert 'the first process of this run failed' in second[2]


STEP = {'SLURM_STEP_NODELIST': 'node[1-4]', 'SLURM_PROCID': '1'}
TPU = {'TPU_ML_PLATFORM': 'JAX'}


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
    # A batch script that asked for tasks, and was not started by srun.
    ({'SLURM_PROCID': '0', 'SLURM_NTASKS': '4'}, None),
    ({'OMPI_MCA_orte_hnp_uri': 'x', 'OMPI_COMM_WORLD_SIZE': '2'}, {}),
    ({'OMPI_MCA_orte_hnp_uri': 'x', 'OMPI_COMM_WORLD_SIZE': '1'}, None),
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


def test_an_environment_that_makes_no_sense_is_named():
  with pytest.raises(UserError, match="JAX_PROCESS_ID=''; expected a whole"):
    hosts.launch({'JAX_NUM_PROCESSES': '2'})


def test_one_process_has_all_rows_and_decides_alone():
  rows = np.arange(5)
  np.testing.assert_array_equal(hosts.share(rows), rows)
  np.testing.assert_array_equal(hosts.gathered(rows, 5), rows)
  assert hosts.on_first(lambda: 'told') == 'told'
  assert hosts.any_host(True)
  assert not hosts.any_host(False)
