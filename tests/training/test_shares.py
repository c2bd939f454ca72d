"""Runs that processes divide: whose they are, and who takes over what is left.

Locks of one file exclude each other within a process, too.
"""

import contextlib

import pytest

from fer_jax.training import shares, workdir
from fer_jax.training.workdir import TakenError


def test_parts_cost_nearly_the_same():
  assert shares.divide([5, 5, 5, 5, 5], 2) == [[0, 2, 4], [1, 3]]
  assert shares.divide([3, 1, 1, 1, 4], 2) == [[2, 4], [0, 1, 3]]
  assert shares.divide([7, 7], 1) == [[0, 1]]
  assert shares.divide([7], 3) == [[0], [], []]
  parts = shares.divide([2010] * 7 + [1990] * 3, 4)
  assert sorted(map(len, parts)) == [2, 2, 3, 3]


@pytest.fixture
def process(tiny_config, tmp_path):
  """Makes what a process has of five runs."""
  runs = [(tmp_path / f'run_{n}', tiny_config) for n in range(5)]
  return lambda number, count: shares.Shares(runs, [1] * 5, (number, count))


def test_who_is_left_alone_takes_over(process):
  with process(0, 2) as first:
    with process(1, 2) as second:
      assert first.own() == [0, 2, 4]
      assert second.own() == [1, 3]
      assert first.more(8) == second.more(8) == []
      second.end(1, shares.DIVERGED)
      for run in (0, 2, 4):
        first.end(run, shares.TRAINED)
      assert first.more(8) == []
      assert not first.ended
    assert first.more(8) == [3]  # the second one was let go
    assert not first.ended
    first.end(3, shares.TRAINED)
    assert first.ended
    assert first.diverged == [1]


def test_what_was_left_is_divided(process):
  with process(0, 3) as first, process(1, 3) as second:
    # Nobody has come to take what is theirs.
    assert first.more(1) == [0, 1]
    assert second.own() == [4]
    assert second.more(8) == [2, 3]
  with process(2, 3) as third:
    assert third.more(4) == [0, 1, 2, 3]


def test_runs_that_have_ended_are_looked_at_by_whom_they_belong_to(process):
  with process(0, 1) as before:
    for run in before.own():
      before.end(run, shares.TRAINED)
    assert before.ended
  with process(0, 2) as first, process(1, 2) as second:
    assert first.own() == [0, 2, 4]
    assert first.more(8) == []
    assert second.own() == [1, 3]
  with process(0, 2) as first:
    # The second one ended before it could say how its runs had.
    assert first.more(8) == [0, 1, 2, 3, 4]


def test_one_process_leaves_no_run_to_another(process, tiny_config, tmp_path):
  with workdir.claimed(tmp_path / 'run_3', tiny_config):
    with process(1, 2) as second:
      assert second.own() == [1]
    with (
      pytest.raises(TakenError, match=r'another process trains in .*run_3'),
      process(0, 1) as alone,
    ):
      alone.own()


def test_processes_of_one_workdir_have_a_lock_each(tiny_config, tmp_path):
  tiny_config.seed = 3
  with contextlib.ExitStack() as claims:
    claims.enter_context(workdir.claimed(tmp_path, tiny_config, 1))
    assert not (tmp_path / 'config.json').exists()
    claims.enter_context(workdir.claimed(tmp_path, tiny_config))
    claims.enter_context(workdir.claimed(tmp_path, tiny_config, 2))
    for number in range(3):
      with (
        pytest.raises(TakenError, match='another process trains'),
        workdir.claimed(tmp_path, tiny_config, number),
      ):
        pass
  (tmp_path / 'fold_0' / 'checkpoints' / '1').mkdir(parents=True)
  tiny_config.seed = 4
  with (
    pytest.raises(workdir.UserError, match='made by another config: seed is 3'),
    workdir.claimed(tmp_path, tiny_config, 1),
  ):
    pass
