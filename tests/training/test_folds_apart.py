"""Processes that divide the folds of a cross-validation train them as one does.

The reference is the same command run by one process. Equal means 1e-4 after the
few float32 steps that are taken, as in the design.
"""

import itertools
import json
import shutil
import signal

import equal_runs
import forked
import pytest

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.errors import UserError
from fer_jax.training import checkpoint, crossval, records

FOLDS = 3
ENDS = 'metrics_crossval.json'


@pytest.fixture(scope='module')
def config(tmp_path_factory):
  """The file of a config of three folds."""
  path = equal_runs.write_config(tmp_path_factory.mktemp('apart'))
  config = config_lib.load_json(path)
  config.data.protocol = 'kfold_subjects'
  config.data.folds = FOLDS
  files.write_json(path, config_lib.to_json(config))
  return path


def _start(count, config, workdir, *arguments):
  return [
    forked.Command(
      *('crossval', f'--config={config}', f'--workdir={workdir}', *arguments),
      environ=environ,
      options={'jax_platforms': 'cpu', 'jax_num_cpu_devices': 1},
    )
    for environ in equal_runs.environments(count)
  ]


def _finish(count, *arguments):
  """What each of some processes prints; all must end well."""
  ends = [process.result() for process in _start(count, *arguments)]
  assert [status for status, *_ in ends] == [0] * count, ends
  return [out for _, out, _ in ends]


@pytest.fixture(scope='module')
def alone(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('alone')
  (said,) = _finish(1, config, workdir)
  assert 'report: ' in said
  return workdir


def _assert_same(workdir, reference):
  for n in range(FOLDS):
    equal_runs.assert_same(workdir / f'fold_{n}', reference / f'fold_{n}')
  found, expected = (
    json.loads((folder / ENDS).read_text()) for folder in (workdir, reference)
  )
  assert found['mean'] == pytest.approx(expected['mean'], rel=1e-4)
  for name in ('accuracy', 'n'):
    theirs = [fold[name] for fold in expected['folds']]
    assert [fold[name] for fold in found['folds']] == theirs
  assert (
    found['out_of_fold']['confusion'] == (expected['out_of_fold']['confusion'])
  )


def test_two_train_what_one_does_and_one_goes_on_with_it(
  config, alone, tmp_path
):
  two, one = tmp_path / 'two', tmp_path / 'one'
  first, second = _finish(2, config, two, '--max_seconds=1e-6')
  for said in (first, second):
    assert 'stopped at the time limit' in said
  trained = [
    line.rpartition(' trains ')[2].split(', ')
    for said in (first, second)
    for line in said.splitlines()
    if line.startswith('process ')
  ]
  assert [len(folds) for folds in trained] == [2, 1]
  assert sorted(itertools.chain(*trained)) == ['fold_0', 'fold_1', 'fold_2']
  for n in range(FOLDS):
    assert checkpoint.latest_intact(two / f'fold_{n}').epoch == 1
  shutil.copytree(two, one)

  first, second = _finish(2, config, two)
  assert 'report: ' in first
  assert 'report: ' not in second
  assert 'all folds are trained; process 0 scores them' in second
  _assert_same(two, alone)
  (said,) = _finish(1, config, one)
  assert 'report: ' in said
  _assert_same(one, alone)


def test_one_that_is_asked_and_one_that_is_killed_leave_their_folds(
  config, tmp_path
):
  epochs = 30
  workdir = tmp_path / 'folds'
  processes = _start(3, config, workdir, f'--config.train.epochs={epochs}')
  signals = signal.SIGTERM, signal.SIGKILL
  for process, number in zip(processes[1:], signals, strict=True):
    process.until('epoch 2/')
    process.send_signal(number)
  with pytest.raises(UserError, match=r'another process trains in .*folds;'):
    crossval.train(config_lib.load_json(workdir / 'config.json'), workdir)

  first, asked, killed = (process.result() for process in processes)
  assert (first[0], asked[0], killed[0]) == (0, 75, -9), (first, asked)
  assert 'left when asked to, to be resumed by the same command' in asked[1]
  assert first[1].count('process 0 of 3 trains fold_') > 1
  assert 'report: ' in first[1]
  for n in range(FOLDS):
    found = records.read_metrics(workdir / f'fold_{n}')
    assert [r['epoch'] for r in found] == list(range(1, epochs + 1))


def test_a_loss_that_is_not_finite_in_another_process_is_told(config, tmp_path):
  ends = [
    process.result()
    for process in _start(
      *(2, config, tmp_path / 'folds'),
      *('--config.optim.learning_rate=1e30', '--config.train.epochs=1'),
    )
  ]
  for status, _, why in ends:
    assert status == 2
    said = why.splitlines()[-1].partition('the loss is not finite in ')[2]
    for n in range(FOLDS):
      assert f'fold_{n}' in said
