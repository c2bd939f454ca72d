"""heartbeat.json: where a run is and when that was seen last.

    {"step": 4120, "epoch": 9, "time": "2026-01-31T12:00:00+00:00",
     "pid": 4711, "host": "node3", "running": true}

`step` is the last one known to be done, `epoch` the one under way, counted
from 1. Of runs side by side both are those of the run that is furthest on, and
`members` counts those that train. A run that hangs or was killed leaves an old
time behind `running`. A thread writes the file, so that no disk or network
slows training, and a file that cannot be written stops nothing. Of several
hosts the first writes it.
"""

import datetime
import logging
import os
import pathlib
import socket
import threading
from typing import Any

from fer_jax import files, hosts

FILE = 'heartbeat.json'

SECONDS = 5.0
"""Between two writings."""

log = logging.getLogger(__name__)


class Heartbeat:
  """Writes heartbeat.json every few seconds while steps are done."""

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    step: int,
    epoch: int,
    members: int | None = None,
    every: float = SECONDS,
  ):
    """Writes at once.

    Args:
      workdir: of the run, or the folder of runs side by side.
      step: done so far.
      epoch: the one under way, from 1.
      members: of runs side by side, those that train; None for one run.
      every: seconds between two writings.
    """
    self._path = pathlib.Path(workdir) / FILE
    self._every = every
    self._written: dict[str, Any] | None = None
    self._warned = False
    self._closing = threading.Event()
    self.beat(step=step, epoch=epoch, members=members)
    self._thread = threading.Thread(
      target=self._run, name='heartbeat', daemon=True
    )
    if hosts.first():
      self._thread.start()

  def beat(self, *, step: int, epoch: int, members: int | None = None) -> None:
    """Notes where the run is; costs no more than that."""
    self._latest = {
      'step': step,
      'epoch': epoch,
      **({} if members is None else {'members': members}),
      'time': datetime.datetime.now(datetime.UTC).isoformat('T', 'seconds'),
      'pid': os.getpid(),
      'host': socket.gethostname(),
      'running': True,
    }

  def close(self) -> None:
    """Writes that the run was left; a disk that hangs is not waited for."""
    self._closing.set()
    if hosts.first():
      self._thread.join(timeout=1.0)

  def _run(self) -> None:
    while not self._closing.is_set():
      self._write(self._latest)
      self._closing.wait(self._every)
    self._write({**self._latest, 'running': False})

  def _write(self, value: dict[str, Any]) -> None:
    if value is self._written:
      return
    try:
      files.write_json(self._path, value)
      self._written = value
    except OSError as error:
      if not self._warned:
        log.warning('cannot write %s: %s', self._path, error.strerror)
      self._warned = True
