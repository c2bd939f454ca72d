"""Runs that processes divide, on one machine or several.

Each process begins with a share of its own, which the costs of the runs and the
number of the process decide, so that nobody has to ask. It trains them by
itself: no process waits for another amid a run, and one that is lost takes no
other along. A run belongs to whoever holds the lock of its workdir, which the
kernel frees when that process ends. Who has nothing left to train looks for
runs that nobody holds and that have not ended: those of a process that is lost,
was asked to leave, or has not come yet.

How a run ended is noted in its workdir before it is let go.
"""

import contextlib
import pathlib
from collections.abc import Sequence

from fer_jax import config as config_lib
from fer_jax import files
from fer_jax.training.workdir import TakenError, claimed

TRAINED = 'trained'
DIVERGED = 'diverged'

_NOTE = '.ended'


def divide(costs: Sequence[int], parts: int) -> list[list[int]]:
  """Divides runs so that the parts cost nearly the same.

  The dearest run first, each to the part that has least; ties to the first.

  Returns:
    Numbers of the runs of each part, rising.
  """
  shares: list[list[int]] = [[] for _ in range(parts)]
  loads = [0] * parts
  for run in sorted(range(len(costs)), key=lambda run: -costs[run]):
    part = loads.index(min(loads))
    loads[part] += costs[run]
    shares[part].append(run)
  return [sorted(share) for share in shares]


class Shares:
  """The runs that this process holds, and how all of them ended; a context."""

  def __init__(
    self,
    runs: Sequence[tuple[pathlib.Path, config_lib.Config]],
    costs: Sequence[int],
    part: tuple[int, int],
  ) -> None:
    """Holds none.

    Args:
      runs: workdir and config of each.
      costs: of each, in any unit.
      part: number of this process, and of all.

    Raises:
      UserError: as `files.allow_open`.
    """
    files.allow_open(len(runs))  # a lock each
    self._runs = runs
    self._number, self._parts = part
    self._own = divide(costs, self._parts)[self._number]
    self._held: dict[int, contextlib.ExitStack] = {}
    self._endings: dict[int, str] = {}

  def __enter__(self) -> 'Shares':
    return self

  def __exit__(self, *exception: object) -> None:
    """Lets all go."""
    for run in list(self._held):
      self._let_go(run)

  def own(self) -> list[int]:
    """Takes this process's share, but for what another one was faster to take.

    What has ended before is taken as well: its workdir is the one to tell.

    Raises:
      UserError: as `workdir.claimed`.
    """
    taken = list(filter(self._take, self._own))
    for run in taken:
      self._note(run).unlink(missing_ok=True)
    return taken

  def more(self, least: int) -> list[int]:
    """Takes of what nobody holds and has not ended.

    Args:
      least: how many keep this process busy; where there are more, it leaves
        the others their part.

    Raises:
      UserError: as `workdir.claimed`.
    """
    free = []
    for run in range(len(self._runs)):
      if run in self._held or run in self._endings or not self._take(run):
        continue
      if self._note(run).exists():
        self._endings[run] = self._note(run).read_text()
        self._let_go(run)
      else:
        free.append(run)
    fair = max(least, -(-len(free) // self._parts))
    for run in free[fair:]:
      self._let_go(run)
    return free[:fair]

  def end(self, run: int, how: str) -> None:
    """Notes how a run ended, `TRAINED` or `DIVERGED`, and lets it go."""
    with files.writing(str(self._note(run))):
      files.write_text(self._note(run), how)
    self._endings[run] = how
    self._let_go(run)

  @property
  def ended(self) -> bool:
    """Whether all have, as far as this process has seen."""
    return len(self._endings) == len(self._runs)

  @property
  def diverged(self) -> list[int]:
    """Those that did, as far as this process has seen."""
    return [r for r, how in sorted(self._endings.items()) if how == DIVERGED]

  def _note(self, run: int) -> pathlib.Path:
    return self._runs[run][0] / _NOTE

  def _take(self, run: int) -> bool:
    """Claims a run; False where another process of several holds it."""
    claim = contextlib.ExitStack()
    try:
      claim.enter_context(claimed(*self._runs[run]))
    except TakenError:
      if self._parts == 1:
        raise
      return False
    self._held[run] = claim
    return True

  def _let_go(self, run: int) -> None:
    self._held.pop(run).close()
