"""What runs side by side show of themselves while they train: a heartbeat, a
trace, and what happened to all of them together.

The folder is a cross-validation's workdir, or a sweep worker's own.
"""

import pathlib

from fer_jax import files, hosts
from fer_jax.training import journal, memory, population
from fer_jax.training.heartbeat import Heartbeat
from fer_jax.training.profile import Profile

WORKERS = 'workers'
"""In a workdir: a folder for each of several processes at work."""


def worker_folder(workdir: pathlib.Path, number: int) -> pathlib.Path:
  """Where the heartbeat and the trace of one of several processes are."""
  return workdir / WORKERS / str(number)


class Observer:
  """Tells where a population is; closed, that it was left."""

  def __init__(
    self,
    folder: pathlib.Path,
    workdir: pathlib.Path,
    profile_steps: int = 0,
    **facts: int,
  ):
    """Writes at once that nothing trains yet.

    Args:
      folder: of the heartbeat and the trace.
      workdir: of the events.
      profile_steps: how many steps are traced, 0 for none.
      **facts: of each event.

    Raises:
      UserError: the folder cannot be made.
    """
    if hosts.first():
      with files.writing(str(folder)):
        folder.mkdir(parents=True, exist_ok=True)
    self._workdir = workdir
    self._facts = facts
    self._at = {'step': 0, 'epoch': 1}
    self._heartbeat = Heartbeat(folder, **self._at, members=0)
    # Of several hosts' traces in one folder none could be told apart.
    self._profile = Profile(folder, profile_steps if hosts.first() else 0)
    self._steps = 0

  def block_steps(self, most: int) -> int:
    """Of the next block, which is to have so many at most."""
    return self._profile.steps or most

  def after_block(self, together: population.Population, steps: int) -> None:
    """A block of so many steps is done."""
    self.look(together)
    self._steps += steps
    if self._profile.steps:
      self._profile.after_block(self._steps)

  def look(self, together: population.Population) -> None:
    """Notes where the population is; asks no device."""
    step, epoch = together.furthest
    self._at = {'step': step, 'epoch': epoch}
    self._heartbeat.beat(**self._at, members=int(together.training.sum()))

  def idle(self) -> None:
    """Notes that nothing trains, and that this is no fault."""
    self._heartbeat.beat(**self._at, members=0)

  def exhausted(
    self, runs: int, fewer: int, error: memory.ExhaustedError
  ) -> None:
    """Notes that so many runs were too many, and how many are tried next."""
    journal.note(
      self._workdir,
      'exhausted',
      **self._facts,
      runs=runs,
      fewer=fewer,
      why=str(error),
    )

  def close(self) -> None:
    """Ends what is open."""
    self._profile.close()
    self._heartbeat.close()
