"""events.jsonl: what happened to a run, a JSON object a line.

    {"time": "2026-01-31T12:00:00+00:00", "event": "resumed", "step": 4120, ...}

Every line has `time` and `event`, and what is listed here. A run is one of
`train`, a fold or a trial; a group is a cross-validation or a sweep, whose
lines name the `worker`, of a cross-validation where several processes divide
it. `epoch` and `step` count what is done, but for those of a loss that was not
finite.

    started      run: epoch, step, both 0; group: runs. `environment` as in
                 run.json, which has that of the last process alone
    resumed      the same, where something was there to be gone on with
    passed_over  run: checkpoint, why; it is missing or damaged
    diverged     run: epoch, step, at which the loss was not finite
    rolled_back  run: step, to_step; run.json has more, and may forget it
    taken_over   trial: step, processes that ended since it got on
    exhausted    group: runs that were too many side by side, fewer that are
                 tried next (0: it is given up), why
    pruned       trial: epoch
    finished     run: epoch, step; group: nothing else
    left         run of `train`: epoch, step; both: why, 'asked' or 'time limit'
    failed       why, in a line; of a trial, that it is not taken over again,
                 or was ended in the study

A process that was killed leaves no last word: `resumed` then follows on
`started` or `resumed`. Lines are only appended, what was undone by a kill
included. A line that cannot be written stops nothing. Of several hosts the
first writes.
"""

import contextlib
import datetime
import json
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from fer_jax import files, forms, hosts, provenance
from fer_jax.errors import UserError

FILE = 'events.jsonl'

LONGEST_REASON = 1000

_EVENT = {'time': forms.text, 'event': forms.text}

log = logging.getLogger(__name__)


def read(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The events of a workdir, oldest first; lines that are torn or damaged are
  left out."""
  return files.read_json_lines(pathlib.Path(workdir) / FILE, _EVENT)


def note(workdir: pathlib.Path, event: str, **facts: Any) -> None:
  """Adds an event.

  Args:
    workdir: of the run or group, which this process alone trains in, or as one
      of its workers.
    event: one of those above.
    **facts: that JSON holds.
  """
  if not hosts.first():
    return
  now = datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds')
  path = pathlib.Path(workdir) / FILE
  try:
    line = json.dumps({'time': now, 'event': event, **facts})
    files.append_line(path, line)
  except OSError as error:
    log.warning('cannot write %s: %s', path, error.strerror)


def begun(
  workdir: pathlib.Path,
  resumed: bool,
  devices: Sequence[Any] | None = None,
  **facts: Any,
) -> None:
  """Adds `started` or `resumed`, with versions and devices.

  Args:
    workdir: as for `note`.
    resumed: whether something was there to be gone on with.
    devices: that it is trained on; None for all.
    **facts: as for `note`.
  """
  event = 'resumed' if resumed else 'started'
  environment = provenance.environment(devices)
  note(workdir, event, **facts, environment=environment)


def ended(
  workdir: pathlib.Path, finished: bool, asked: bool, **facts: Any
) -> None:
  """Adds `finished` or `left`.

  Args:
    workdir: as for `note`.
    finished: whether nothing is left to do.
    asked: whether it was left since it was asked to be.
    **facts: as for `note`.
  """
  if finished:
    note(workdir, 'finished', **facts)
  else:
    note(workdir, 'left', **facts, why='asked' if asked else 'time limit')


@contextlib.contextmanager
def failures(workdir: pathlib.Path, **facts: Any) -> Iterator[None]:
  """Adds `failed` where an exception ends what is done meanwhile."""
  try:
    yield
  except Exception as error:
    said = ' '.join(str(error).split())
    if not isinstance(error, UserError):
      said = f'{type(error).__name__}: {said}'
    note(workdir, 'failed', **facts, why=said[:LONGEST_REASON])
    raise
