"""Runs that the processes that train them do not survive.

Before a process trains a run it marks the run's workdir; it takes the mark away
when it lets the run go, and where it is asked to leave. A mark that is found by
who takes the run over tells that a process ended with the run under way. Some
runs are to blame for that, such as one that the kernel ends for its memory, and
would be taken over for ever.
"""

import contextlib
import pathlib
from typing import NamedTuple

from fer_jax import files, forms
from fer_jax.errors import UserError
from fer_jax.training import checkpoint, records

MOST = 3
"""Processes that a run may cost without getting on. The last of them trains
it alone, so that those that were beside it are not blamed."""

REASON = (
  f'{MOST} processes ended one after another while they trained it, the last '
  'one it alone, before anything of it was kept or an epoch was over; that is '
  'what the kernel does where memory is short'
)

_MARK = '.under_way'
_NOTE = '.lost.json'
_FORM = {'processes': forms.count, 'step': forms.count}


class Lost(NamedTuple):
  """What a run has cost, as its workdir keeps it.

  Attributes:
    processes: that ended in a row since it got on.
    step: that it was then gone on from.
  """

  processes: int = 0
  step: int = 0

  @property
  def fails(self) -> bool:
    """Whether the run is not to be taken over again."""
    return self.processes >= MOST

  @property
  def alone(self) -> bool:
    """Whether no run is to train beside it."""
    return self.processes == MOST - 1


def mark(workdir: pathlib.Path) -> None:
  """Notes that this process begins to train a run."""
  with files.writing(f'to {workdir}'):
    (workdir / _MARK).touch()


def unmark(workdir: pathlib.Path) -> None:
  """Notes that whatever becomes of this process is not the run's fault."""
  with contextlib.suppress(OSError):
    (workdir / _MARK).unlink(missing_ok=True)


def lost(workdir: pathlib.Path) -> Lost:
  """What a run that nobody holds has cost so far."""
  before = _noted(workdir)
  sealed = [kept.step for kept in checkpoint.checkpoints(workdir)]
  recorded = [record['step'] for record in records.read_metrics(workdir)]
  got_on = max([*sealed, *recorded], default=0) > before.step
  marked = (workdir / _MARK).exists()
  return Lost(
    (0 if got_on else before.processes) + marked, max(sealed, default=0)
  )


def settle(workdir: pathlib.Path, cost: Lost) -> None:
  """Takes a run over: notes what `lost` gave in the place of the mark."""
  # In this order: who is killed in between has not begun to train it.
  unmark(workdir)
  if cost.processes:
    with files.writing(f'to {workdir}'):
      files.write_json(workdir / _NOTE, cost._asdict())


def _noted(workdir: pathlib.Path) -> Lost:
  """What was noted last; nothing where that is damaged."""
  with contextlib.suppress(UserError):
    content = files.read_json(workdir / _NOTE)
    if not forms.misfit(content, _FORM):
      return Lost(content['processes'], content['step'])
  return Lost()
