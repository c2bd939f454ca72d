"""Contenders in processes of their own: real ones that do almost nothing."""

import os
import sys
import textwrap

import pytest

from fer_jax import provenance
from fer_jax.benchmark import contest
from fer_jax.benchmark.contest import Contender, Effort
from fer_jax.benchmark.worker import Worker, WorkerError

SLEEPER = """
import os, time

print('a library that prints on import')

def prepare(case):
  if case.get('fault') == 'value':
    raise ValueError('no such layer')
  if case.get('fault') == 'import':
    import a_framework_that_nobody_has
  if case.get('fault') == 'crash':
    import sys
    print('last words', file=sys.stderr, flush=True)
    os._exit(7)

  def run(steps):
    with open(case['log'], 'a') as log:
      log.write(f'{case["name"]} {steps}\\n')
    print('a library that prints')
    time.sleep(case['seconds'] * steps)
    return case['seconds'] * steps

  return run, {
    'steps_per_dispatch': 2,
    'parameters': case['parameters'],
    'threads': os.environ['OMP_NUM_THREADS'],
    'device': case['device'],
  }
"""


@pytest.fixture
def contender(tmp_path):
  (tmp_path / 'sleeper.py').write_text(textwrap.dedent(SLEEPER))
  path = os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')])

  def make(name, seconds=0.01, **case):
    case = {
      'name': name,
      'seconds': seconds,
      'parameters': 5,
      'device': 'cpu',
      'log': str(tmp_path / 'log'),
      **case,
    }
    return Contender(name, 'sleeper', case, {'PYTHONPATH': path})

  return make


def test_turns_are_interleaved_and_long_enough(contender, tmp_path):
  result = contest.hold(
    [contender('quick', 0.005), contender('slow', 0.02)],
    Effort(rounds=3, warm_up=3, turn_seconds=0.04),
    images=10,
    say=lambda line: None,
  )
  turns = (tmp_path / 'log').read_text().split('\n')[:-1]
  assert turns == [
    # Warming up in whole dispatches, and one dispatch to choose the turns by.
    *['quick 4', 'quick 2', 'slow 4', 'slow 2'],
    # 0.04 s are 8 steps of the quick one and 2 of the slow one.
    *['quick 8', 'slow 2'],
    *['slow 2', 'quick 8'],
    *['quick 8', 'slow 2'],
  ]
  assert result['reference'] == 'quick'
  slow = result['contenders']['slow']
  assert slow['steps_per_turn'] == 2
  assert slow['speedup_of_reference']['median'] == pytest.approx(4.0)
  assert slow['images_per_second']['median'] == pytest.approx(500.0)
  assert slow['threads'] == str(len(os.sched_getaffinity(0)))


@pytest.mark.skipif(sys.platform != 'linux', reason='no /proc')
def test_the_peak_of_memory_is_of_the_contender_alone(contender):
  """A child counts its parent's peak where the kernel's figure is not asked."""
  result = contest.hold(
    [contender('small')],
    Effort(rounds=1, warm_up=1, turn_seconds=0.0),
    images=1,
    say=lambda line: None,
  )
  ours = provenance.peak_memory()
  assert ours is not None
  peak = result['contenders']['small']['peak_memory_bytes']
  # The Python that waits here has JAX in it.
  assert 2**20 < peak < ours / 2


def test_check_sees_everyone_before_anything_runs(contender, tmp_path):
  def check(infos):
    assert {n: i['parameters'] for n, i in infos.items()} == {'a': 5, 'b': 6}
    raise KeyError('different')

  with pytest.raises(KeyError):
    contest.hold(
      [contender('a'), contender('b', parameters=6)],
      Effort(rounds=1),
      images=1,
      check=check,
      say=lambda line: None,
    )
  assert not (tmp_path / 'log').exists()


def test_a_framework_that_is_not_installed_is_named_and_left_out(contender):
  result = contest.hold(
    [contender('ours'), contender('peer', fault='import')],
    Effort(rounds=1, warm_up=1, turn_seconds=0.0),
    images=1,
    say=lambda line: None,
  )
  assert result['absent'] == {
    'peer': 'a_framework_that_nobody_has is not installed'
  }
  assert list(result['contenders']) == ['ours']


def test_who_finds_no_accelerator_is_not_beside_one(contender):
  result = contest.hold(
    [
      contender('ours', device='NVIDIA H200'),
      contender('peer'),
      contender('other', device='NVIDIA H200 NVL'),
    ],
    Effort(rounds=1, warm_up=1, turn_seconds=0.0),
    images=1,
    say=lambda line: None,
  )
  assert result['absent'] == {'peer': 'computes on the CPU, not on NVIDIA H200'}
  assert list(result['contenders']) == ['ours', 'other']


def test_a_contender_that_dies_says_its_last_words(contender):
  dying = contender('dying', fault='crash')
  with (
    Worker(dying.module, environment=dying.environment) as worker,
    pytest.raises(WorkerError, match=r'sleeper: .* status 7: last words'),
  ):
    worker.prepare(dying.case)


def test_a_contender_that_refuses_says_why(contender):
  refusing = contender('refusing', fault='value')
  with (
    Worker(refusing.module, environment=refusing.environment) as worker,
    pytest.raises(WorkerError, match='no such layer'),
  ):
    worker.prepare(refusing.case)
