"""What is counted of processes that ended while they trained a run."""

import json

import pytest
import small_sweeps

from fer_jax.training import checkpoint, journal, preemption, records
from fer_jax.tuning import Space, queue, seats, sweep, takeovers


@pytest.fixture
def life(tmp_path):
  """What a process does that begins to train, and how it ends."""

  def live(*, records_step=0, keeps_step=0, excused=False):
    takeovers.mark(tmp_path)
    if records_step:
      with (tmp_path / records.METRICS).open('a') as f:
        f.write(json.dumps({'epoch': 1, 'step': records_step}) + '\n')
    if keeps_step:
      folder = checkpoint.directory(tmp_path) / str(keeps_step)
      folder.mkdir(parents=True)
      manifest = {
        **{'step': keeps_step, 'epoch': 0, 'best_step': keeps_step},
        **{'files': {}, 'arrays': {}},
      }
      (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
    if excused:
      takeovers.unmark(tmp_path)
    cost = takeovers.lost(tmp_path)
    takeovers.settle(tmp_path, cost)
    return cost.processes

  return live


def test_those_count_that_end_in_a_row_and_kept_nothing(life):
  assert [life(), life(), life()] == [1, 2, 3]
  assert life(records_step=4) == 1  # an epoch was over
  assert life(keeps_step=6) == 1  # amid the next
  assert life() == 2
  assert life(excused=True) == 2
  assert life(records_step=8, excused=True) == 0


def test_trials_that_have_cost_two_processes_train_alone(
  config, domains, tmp_path, capsys
):
  """Processes are queues here, whose locks are let go as the kernel does."""
  settings = small_sweeps.settings(search='random', trials=2)
  space = Space(domains, config)
  study = sweep._study(config, space, tmp_path, settings)

  def killed():
    trials = queue.Trials(study, space, tmp_path, 2)
    head = trials.head()
    runs = [head, *([] if head.alone else trials.more(head.shape, 1))]
    for run in runs:
      takeovers.mark(run.workdir)
      run.claim.close()
    return [(run.number, run.alone) for run in runs]

  assert killed() == [(0, False), (1, False)]
  assert killed() == [(0, False), (1, False)]
  assert killed() == [(0, True)]
  assert killed() == [(1, True)]
  trials = queue.Trials(study, space, tmp_path, 2)
  assert trials.head() is None
  assert not trials.left()
  assert capsys.readouterr().out == ''.join(
    f'trial {number}: failed ({takeovers.REASON})\n' for number in (0, 1)
  )
  events = journal.read(tmp_path / 'trials/0001')
  names = [event['event'] for event in events]
  assert names == ['taken_over', 'taken_over', 'failed']
  assert [event.get('processes') for event in events] == [1, 2, None]


def test_finalists_that_cost_as_much_train_alone_and_then_fail(
  config, tmp_path, capsys
):
  repeats = [
    queue.Repeat(4, seed, config, tmp_path / str(seed), '') for seed in (7, 8)
  ]

  def killed():
    again = queue.Repeats(repeats, tmp_path)
    head = again.head()
    runs = [head, *again.more(head.shape, 1)]
    for run in runs:
      takeovers.mark(run.workdir)
      run.claim.close()
    return [(run.name, run.alone) for run in runs]

  first, second = 'finalist 4 seed 7', 'finalist 4 seed 8'
  assert killed() == [(first, False), (second, False)]
  assert killed() == [(first, False), (second, False)]
  assert killed() == [(first, True)]
  assert killed() == [(second, True)]
  again = queue.Repeats(repeats, tmp_path)
  assert again.head() is None
  assert not again.left()
  assert capsys.readouterr().out == ''.join(
    f'{name}: failed ({takeovers.REASON})\n' for name in (first, second)
  )
  assert queue.outcome(repeats[0].workdir) == {
    'value': None,
    'failure': takeovers.REASON,
  }


def test_what_nobody_has_claimed_is_not_taken_over(
  config, domains, tmp_path, caplog
):
  """A finalist that is new, a trial whose process died as it had asked."""
  space = Space(domains, config)
  settings = small_sweeps.settings(search='random')
  study = sweep._study(config, space, tmp_path, settings)
  study.ask()
  trial = queue.Trials(study, space, tmp_path, 1).head()
  repeat = queue.Repeat(0, 7, config, tmp_path / 'new', '')
  finalist = queue.Repeats([repeat], tmp_path).head()
  for run in (trial, finalist):
    assert journal.read(run.workdir) == []
    run.claim.close()
  assert not caplog.records


def test_who_lets_a_trial_go_or_is_asked_to_leave_is_not_counted(
  config, domains, tmp_path
):
  settings = small_sweeps.settings(search='random', trials=1)
  space = Space(domains, config)
  study = sweep._study(config, space, tmp_path, settings)
  for _ in range(takeovers.MOST + 1):
    trials = queue.Trials(study, space, tmp_path, 1)
    run = trials.head()
    assert not run.alone
    takeovers.mark(run.workdir)
    trials.release(run)

  notice = preemption.Notice()
  bench = seats.Bench('', _Shared(config), None)
  turn = seats.Seats(trials, bench, seats.Manner(notice=notice), None)
  run = queue.Trials(study, space, tmp_path, 1).head()
  with turn:
    turn._runs[0] = run
    takeovers.mark(run.workdir)
    notice.parting()  # as it ends at once, compiling
    assert takeovers.lost(run.workdir).processes == 0


class _Shared:
  """Of a bench that trains nothing."""

  def __init__(self, config):
    self.config = config
