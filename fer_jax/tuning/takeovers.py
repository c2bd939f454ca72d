"""Trials that the processes that train them do not survive.

Before a process trains a run it marks the run's workdir; it takes the mark away
when it lets the run go, and where it is asked to leave. A mark that is found by
who takes the run over tells that a process ended with the run under way. Some
runs are to blame for that, such as one that the kernel ends for its memory, and
would be taken over for ever.
"""

import contextlib
import pathlib
from typing import Any

from fer_jax import files
from fer_jax.training import checkpoint, records

NOTE = 'lost'
"""Of a trial: how many processes ended in a row, and the step that it was then
gone on from."""

MOST = 3
"""Processes that a trial may cost without getting on. The last of them trains
it alone, so that those that were beside it are not blamed."""

REASON = (
  f'{MOST} processes ended one after another while they trained it, the last '
  'one it alone, before anything of it was kept or an epoch was over; that is '
  'what the kernel does where memory is short'
)

_MARK = '.under_way'


def mark(workdir: pathlib.Path) -> None:
  """Notes that this process begins to train a run."""
  with files.writing(f'to {workdir}'):
    (workdir / _MARK).touch()


def unmark(workdir: pathlib.Path) -> None:
  """Notes that whatever becomes of this process is not the run's fault."""
  with contextlib.suppress(OSError):
    (workdir / _MARK).unlink(missing_ok=True)


def lost(workdir: pathlib.Path, note: dict[str, Any] | None) -> dict[str, Any]:
  """The next note of a run that nobody holds.

  Args:
    workdir: of the run.
    note: the last one.

  Returns:
    'processes', those that ended since the run got on; 'step', which it is
    gone on from.
  """
  before = note or {'processes': 0, 'step': 0}
  sealed = [kept.step for kept in checkpoint.checkpoints(workdir)]
  recorded = [record['step'] for record in records.read_metrics(workdir)]
  got_on = max([*sealed, *recorded], default=0) > before['step']
  marked = (workdir / _MARK).exists()
  return {
    'processes': (0 if got_on else before['processes']) + marked,
    'step': max(sealed, default=0),
  }
