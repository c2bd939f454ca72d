"""Being asked to leave: heard at once, and gone on from bit for bit.

Reference: the same run that nobody asked.
"""

import os
import signal
import subprocess
import sys
import time

import equal_runs
import pytest
from asked_to_leave import AskedAfter, Killed, KilledAfter

from fer_jax.training import checkpoint, loop, preemption, records

pytestmark = pytest.mark.usefixtures('shared_programs')


@pytest.mark.parametrize('residence', ['device', 'stream'])
def test_left_amid_epochs_and_gone_on_with(
  tiny_config, tmp_path, capsys, residence
):
  config = tiny_config
  config.data.residence = residence
  config.train.batch_size = 16
  config.train.block_steps = 1  # so that blocks are counted, not timed
  config.train.ema_decay = 0.9
  whole = loop.train(config, tmp_path / 'whole')
  steps = whole.step // config.train.epochs
  assert steps > 4

  parted = tmp_path / 'parted'
  # The first poll is before any block.
  first = loop.train(config, parted, notice=AskedAfter(2))
  assert first.asked
  assert not first.finished
  assert (first.epoch, first.step) == (0, 2)
  assert f'leaving epoch 1 after 2 of its {steps} steps' in (
    capsys.readouterr().out
  )
  sealed = checkpoint.latest_intact(parted)
  assert (sealed.epoch, sealed.partial.taken) == (0, 2)
  assert records.read_metrics(parted) == []
  assert checkpoint.latest_intact(parted, whole=True) is None
  assert records.read_metrics(parted) == []

  # Again in the same epoch, then in the next: all parts' sums are carried.
  assert loop.train(config, parted, notice=AskedAfter(2)).step == 4
  third = loop.train(config, parted, notice=AskedAfter(steps))
  assert third.asked
  assert third.epoch == 1
  assert steps < third.step < 2 * steps
  last = loop.train(config, parted)
  assert last == whole
  equal_runs.assert_same_bits(parted, tmp_path / 'whole')


def test_a_long_epoch_is_saved_amid_it(tiny_config, tmp_path, monkeypatch):
  config = tiny_config
  config.train.batch_size = 16
  config.train.block_steps = 1
  whole = loop.train(config, tmp_path / 'whole')
  parted = tmp_path / 'parted'
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, 'AMID_SECONDS', 0.0)
    with pytest.raises(Killed):
      loop.train(config, parted, notice=KilledAfter(3))
  sealed = checkpoint.latest_intact(parted)
  assert (sealed.epoch, sealed.partial.taken) == (0, 2)
  assert loop.train(config, parted) == whole
  equal_runs.assert_same_bits(parted, tmp_path / 'whole')


def test_a_signal_is_heard_and_handlers_are_given_back(capfd):
  before = signal.getsignal(signal.SIGTERM)
  with preemption.watched() as notice:
    assert not notice.agreed()
    os.kill(os.getpid(), signal.SIGTERM)
    deadline = time.monotonic() + 10
    while not notice.asked and time.monotonic() < deadline:
      time.sleep(0.01)
    assert notice.agreed()
    assert notice.status == preemption.REQUEUE_STATUS
  assert signal.getsignal(signal.SIGTERM) is before
  (line,) = capfd.readouterr().err.splitlines()
  assert line.startswith('fer_jax: SIGTERM: finishing the block under way')


def test_a_ctrl_c_that_a_parent_passes_on_is_one(monkeypatch, capfd):
  """The terminal sends SIGINT to all, the parent SIGTERM to its children."""
  left, seen = [], []
  monkeypatch.setattr(preemption, '_leave', lambda _, why: left.append(why))
  with preemption.watched() as notice:
    for number, heard in (
      (signal.SIGTERM, lambda: notice.asked),
      (signal.SIGINT, lambda: left or notice.status == 130),
      (signal.SIGTERM, lambda: True),
      (signal.SIGINT, lambda: left),
    ):
      signal.raise_signal(number)
      deadline = time.monotonic() + 10
      while not heard() and time.monotonic() < deadline:
        time.sleep(0.01)
      seen.append((notice.status, *left))
  assert seen == [(75,), (130,), (130,), (130, 'interrupted again')]
  first, second, *_ = capfd.readouterr().err.splitlines()
  assert first.startswith('fer_jax: SIGTERM: finishing')
  assert first.endswith('leaving with status 75')
  assert second.startswith('fer_jax: SIGINT: finishing')
  assert second.endswith('leaving with status 130')


def test_what_fails_while_leaving_is_one_line(capfd):
  def fail(number=None):
    with preemption.watched() as notice:
      if number:
        os.kill(os.getpid(), number)
      while number and not notice.asked:
        time.sleep(0.01)
      raise RuntimeError('a worker\nis gone')

  with pytest.raises(SystemExit) as left:
    fail(signal.SIGINT)
  assert left.value.code == preemption.INTERRUPTED_STATUS
  assert 'RuntimeError while leaving: a worker is gone;' in (
    capfd.readouterr().err
  )
  with pytest.raises(RuntimeError, match='is gone'):
    fail()


_STUCK = """
import sys, threading
from fer_jax.training import preemption

with preemption.watched(grace=float(sys.argv[1])):
  print('listening', flush=True)
  threading.Event().wait(60)
"""


@pytest.mark.parametrize(
  ('grace', 'signals', 'status', 'why'),
  [
    ('0.2', [signal.SIGTERM], 75, 'not done within 0.2 s'),
    ('50', [signal.SIGINT, signal.SIGINT], 130, 'interrupted again'),
  ],
)
def test_whoever_cannot_finish_leaves_all_the_same(grace, signals, status, why):
  process = subprocess.Popen(
    [sys.executable, '-c', _STUCK, grace],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  ready = process.stdout.readline()
  assert ready == 'listening\n', process.communicate()
  said = ''
  for number in signals:
    process.send_signal(number)
    said += process.stderr.readline()
  rest = process.communicate(timeout=30)[1]
  assert process.returncode == status
  assert f'{why}, left; the same command goes on from' in said + rest
  assert 'Traceback' not in said + rest


def test_blocks_become_as_long_as_leaving_allows(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(preemption.time, 'monotonic', lambda: now[0])
  pace = preemption.Pace(100)
  pace.begin()
  pace.done(2)
  assert pace.steps == 1
  now[0] = 0.5
  pace.done(4)  # 4 steps a second
  assert pace.steps == 4 * preemption.BLOCK_SECONDS
  assert not pace.long
  pace.begin()  # validation took an hour
  now[0] = 3600.0
  pace.done(8)
  assert pace.steps == 4 * preemption.BLOCK_SECONDS
  now[0] += 0.01
  pace.done(16)
  assert pace.steps == 100
  now[0] += 6.0
  pace.done(17)
  assert pace.steps == 1
  assert pace.long
