"""After a loss that is not finite: back to the last good epoch, more slowly.

A rollback is an entry of run.json's 'rollbacks' that names the step gone back
to. It takes effect whenever the state of that step is restored, so a run that
is killed at any moment of this goes on as if it had not been.

Of runs side by side, run.json also has what an epoch that came to nothing took
of the device: in its rollback, or under 'diverged' where the run ends with it.
"""

import datetime
import pathlib
from typing import Any

from fer_jax import files, hosts
from fer_jax.errors import UserError
from fer_jax.training import checkpoint, journal
from fer_jax.training import workdir as workdir_lib
from fer_jax.training.state import TrainState
from fer_jax.training.workdir import read_run

FACTOR = 0.5
"""What a rollback multiplies the learning rate by."""

LIMIT = 3
"""How many a run is given."""

KEY = 'rollbacks'

END = 'diverged'
"""Of run.json: what came of an epoch that nothing came after."""


class DivergenceError(UserError):
  """A loss or a parameter is not finite.

  Attributes:
    epoch: the one under way, from 1.
    step: of the run.
  """

  def __init__(self, message: str, *, epoch: int, step: int):
    super().__init__(message)
    self.epoch = epoch
    self.step = step

  def note(self, workdir: pathlib.Path) -> None:
    """Adds it to the events of the run."""
    journal.note(workdir, 'diverged', epoch=self.epoch, step=self.step)


def noted(workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """The rollbacks of a run up to a step; later ones are forgotten.

  They are of a future that the run gave up, and will happen again; so will what
  it ended with.
  """
  return hosts.on_first(lambda: _noted(workdir, step))


def _noted(workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
  path = workdir / 'run.json'
  if not path.exists():
    return []
  run = read_run(workdir)
  there = run.get(KEY, [])
  kept = [entry for entry in there if entry['to_step'] <= step]
  if kept != there or END in run:
    run.pop(END, None)
    files.write_json(path, {**run, KEY: kept})
  return kept


def slowed(state: TrainState, entries: list[dict[str, Any]]) -> TrainState:
  """A restored state with the rollbacks to its step in its learning rate."""
  here = sum(entry['to_step'] == int(state.step) for entry in entries)
  if not here:
    return state
  progress = state.progress
  factor = progress.lr_factor * FACTOR**here
  return state._replace(progress=progress._replace(lr_factor=factor))


def undone(workdir: pathlib.Path) -> list[float]:
  """Device seconds of each epoch that a loss that was not finite undid."""
  path = workdir / 'run.json'
  run = read_run(workdir) if path.exists() else {}
  entries = [*run.get(KEY, []), run.get(END, {})]
  return [e['device_seconds'] for e in entries if 'device_seconds' in e]


def note_end(workdir: pathlib.Path, device_seconds: float) -> None:
  """Notes of a run that ends here what its last epoch took of a device."""
  workdir_lib.note(workdir, {END: {'device_seconds': device_seconds}})


def note(
  workdir: pathlib.Path,
  diverged: DivergenceError,
  device_seconds: float | None = None,
) -> str:
  """Goes back to the last intact checkpoint at an epoch's end.

  Args:
    workdir: of the run.
    diverged: where.
    device_seconds: that the epoch took, of one of several runs.

  Returns:
    One line that says so.

  Raises:
    UserError: the run has had `LIMIT` of them.
  """
  sealed = checkpoint.latest_intact(workdir, whole=True, noted=True)
  step = sealed.step if sealed else 0
  entries = noted(workdir, step)
  if len(entries) >= LIMIT:
    raise UserError(f'{diverged}; rolled back {LIMIT} times already')
  entry = {
    'epoch': diverged.epoch,
    'step': diverged.step,
    'to_step': step,
    'factor': FACTOR,
    'time': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
  }
  if device_seconds is not None:
    entry['device_seconds'] = device_seconds

  def write():
    # In this order: killed in between, the run diverges and rolls back again.
    checkpoint.remove_after(workdir, step)
    path = workdir / 'run.json'
    files.write_json(path, {**read_run(workdir), KEY: [*entries, entry]})

  hosts.on_first(write)
  journal.note(workdir, 'rolled_back', step=diverged.step, to_step=step)
  return (
    f'the loss is not finite at step {diverged.step} (epoch {diverged.epoch}): '
    f'rolled back to step {step}, learning rate times {FACTOR:g} '
    f'({len(entries) + 1} of {LIMIT} times)'
  )
