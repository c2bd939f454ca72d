"""A run alone on a CPU divides its batches over the cores.

The reference is the same command on one device, as a user can ask for. Equal
means 1e-4 after the few float32 steps that are taken, as in the design.
"""

import json
import os
import shutil
import signal

import equal_runs
import forked
import jax
import numpy as np
import pytest

from fer_jax import provenance
from fer_jax.training import cores, records

several_cores = pytest.mark.skipif(
  provenance.cores() < 2, reason='needs two cores'
)


@pytest.mark.parametrize(
  ('count', 'batch_size', 'parts'),
  [
    (1, 64, 1),
    (2, 64, 2),
    (2, 32, 2),
    (2, 31, 1),  # one of them would have 15
    (2, 33, 1),
    (2, 16, 1),
    (3, 64, 2),
    (8, 64, 4),
    (8, 128, 8),
    (64, 100, 5),
    (64, 1, 1),
  ],
)
def test_parts_are_even_and_of_sixteen_images(
  count, batch_size, parts, monkeypatch
):
  monkeypatch.setattr(provenance, 'cores', lambda: count)
  assert cores.parts_of_batch(batch_size) == parts


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """A file: batches of 32, and what rounding disturbs least."""
  return equal_runs.write_config(tmp_path_factory.mktemp('cores'))


def _train(config, *arguments, flag='', **options):
  """What `train` says, in a process where JAX has computed nothing yet."""
  status, said, complaints = forked.Command(
    *('train', f'--config={config}', *arguments),
    environ={'XLA_FLAGS': f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()},
    options={'jax_platforms': 'cpu', **options},
  ).result()
  assert status == 0, complaints
  return said


def _devices(workdir):
  run = json.loads((workdir / 'run.json').read_text())
  return run['environment']['device_count']


@several_cores
def test_a_run_over_two_cores_is_that_of_one_device(config, tmp_path):
  one, two, both = (tmp_path / name for name in ('one', 'two', 'both'))
  _train(config, f'--workdir={one}', jax_num_cpu_devices=1)
  assert _devices(one) == 1
  _train(config, f'--workdir={two}', '--max_seconds=1e-6')
  assert _devices(two) == 2
  shutil.copytree(two, both)
  assert 'resuming' in _train(config, f'--workdir={two}')
  equal_runs.assert_same(two, one)
  # Begun on two devices, and gone on with on one.
  said = _train(config, f'--workdir={both}', jax_num_cpu_devices=1)
  assert 'resuming' in said
  assert _devices(both) == 1
  equal_runs.assert_same(both, one)


@several_cores
def test_a_dry_run_has_the_devices_of_the_run(config):
  assert '16 of a batch on each of 2 devices' in _train(config, '--dry_run')
  flag = '--xla_force_host_platform_device_count=4'
  said = _train(config, '--dry_run', flag=flag)
  assert '8 of a batch on each of 4 devices' in said


CLAIMS = """
from fer_jax import config as base
from fer_jax.claims import Claim, chosen

SMALL = base.load_json({config!r})
GIVEN = ('model.name', 'data.name', 'data.data_dir')

def claim(batch_size, epochs):
  small = [field for field in base.flatten(SMALL) if field[0] not in GIVEN]
  return Claim(
    paper='P9', system='small', model='residual_gru', dataset='synthetic_faces',
    claimed=1.0, reading='accuracy', evidence='None.', protocol=(), honest=(),
    recipe=(
      *(chosen(*field, 'small') for field in small),
      chosen('train.batch_size', batch_size, 'small'),
      chosen('train.epochs', epochs, 'few'),
    ),
  )

CLAIMS = {{'parts': claim(32, 4), 'whole': claim(16, 2)}}
"""


@several_cores
def test_runs_of_claims_are_those_of_train_in_one_process_of_many(
  config, tmp_path
):
  """Bit for bit, and where the claims were asked to leave amid one as well."""
  papers, runs = tmp_path / 'papers', tmp_path / 'runs'
  papers.mkdir()
  (papers / 'small.py').write_text(CLAIMS.format(config=str(config)))
  command = (
    *('claims', f'--configs={papers}', f'--workdir={runs}'),
    f'--data_dir={config.parent / "data"}',
  )
  asked = forked.Command(*command, options={'jax_platforms': 'cpu'})
  for line in asked.stdout:
    if line.startswith('epoch 1/'):
      asked.send_signal(signal.SIGTERM)
      break
  status, said, complaints = asked.result()
  assert status == 75, complaints
  assert 'left small_parts when asked to' in said
  assert len(list(runs.iterdir())) == 1

  status, said, complaints = forked.Command(
    *command, options={'jax_platforms': 'cpu'}
  ).result()
  assert status == 0, complaints
  assert said.count('resuming') == 1
  made = {}
  for run in runs.iterdir():
    again = tmp_path / 'again' / run.name
    _train(run / 'config.json', f'--workdir={again}')
    assert _devices(run) == _devices(again)
    made[records.read_metrics(run)[-1]['epoch']] = _devices(run)
    jax.tree.map(
      np.testing.assert_array_equal,
      *map(equal_runs.final_state, (run, again)),
    )
  assert made == {4: 2, 2: 1}
