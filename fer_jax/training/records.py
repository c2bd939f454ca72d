"""What a run writes beside its checkpoints: metrics.jsonl and event files."""

import contextlib
import json
import logging
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from fer_jax import files, forms, hosts


@contextlib.contextmanager
def _as_if_missing(package: str) -> Iterator[None]:
  """Who imports a package that nobody has imported yet does without it; in any
  thread."""
  if package in sys.modules:
    yield
    return
  sys.modules[package] = None  # type: ignore[assignment]
  try:
    yield
  finally:
    sys.modules.pop(package, None)


# It imports PyTorch where that is installed, for tensors that nobody gives it
# here: half of the time until a run starts.
with _as_if_missing('torch'):
  from tensorboardX import summary
  from tensorboardX.proto import event_pb2
  from tensorboardX.record_writer import RecordWriter

METRICS = 'metrics.jsonl'
EVENTS = 'tensorboard'

_RECORD = {'epoch': forms.count, 'step': forms.count}

log = logging.getLogger(__name__)

_proto: Any = event_pb2  # makes its messages when it is imported


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The epochs' records of a workdir, oldest first; lines that are torn or
  damaged are left out."""
  return files.read_json_lines(pathlib.Path(workdir) / METRICS, _RECORD)


def cut_back(workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """Drops the records after a step, which the resumed run writes again.

  Returns:
    Those that are left.
  """
  path = pathlib.Path(workdir) / METRICS
  if not path.exists():
    return []
  kept = [r for r in read_metrics(workdir) if r['step'] <= step]
  files.write_text(path, ''.join(json.dumps(r) + '\n' for r in kept))
  return kept


class Recorder:
  """Appends one record an epoch to metrics.jsonl and to TensorBoard events; on
  the first host alone."""

  def __init__(
    self, workdir: pathlib.Path, *, resumed_step: int, epochs: int = 0
  ):
    """Goes on with the records of a workdir.

    Args:
      workdir: of the run.
      resumed_step: the records after it are dropped.
      epochs: completed by then; one without a record is named in a warning.
    """
    self._path = pathlib.Path(workdir) / METRICS
    hosts.on_first(lambda: self._open(resumed_step, epochs))

  def _open(self, resumed_step: int, epochs: int) -> None:
    workdir = self._path.parent
    there = {r['epoch'] for r in cut_back(workdir, resumed_step)}
    lost = [e for e in range(1, epochs + 1) if e not in there]
    if lost:
      log.warning(
        '%s has no record of epoch %s: that line is missing or damaged, the '
        'checkpoint is not',
        self._path,
        ', '.join(map(str, lost)),
      )
    self._file = self._path.open('a')
    self._events: _Events | None = _Events(
      self._path.with_name(EVENTS), resumed_step + 1
    )

  def write(self, record: dict[str, Any]) -> None:
    """Writes a record that is on disk when this returns.

    Args:
      record: has 'step'; numbers and dictionaries of numbers become scalars
        of the event files.
    """
    hosts.on_first(lambda: self._write(record))

  def _write(self, record: dict[str, Any]) -> None:
    with files.writing(str(self._path)):
      self._file.write(json.dumps(record) + '\n')
      self._file.flush()
      os.fsync(self._file.fileno())
    try:
      if self._events:
        self._events.write(record)
    except OSError as error:  # nothing is in them that is not above
      log.warning('no more event files: %s', error.strerror)
      self._events = None

  def close(self) -> None:
    """Closes both files."""
    if not hosts.first():
      return
    with contextlib.suppress(OSError):  # what `write` returned from is on disk
      self._file.close()
    if self._events:
      self._events.close()


class _Events:
  """Event files of TensorBoard, written where it is asked for.

  `SummaryWriter` writes in a thread, which a full disk ends, and then waits
  for it for ever.
  """

  def __init__(self, folder: pathlib.Path, purge_step: int):
    folder.mkdir(exist_ok=True)
    # TensorBoard reads a folder's files in the order of their names.
    name = f'events.out.tfevents.{time.time():.6f}.{socket.gethostname()}'
    self._writer = RecordWriter(str(folder / name))
    self._add(0, file_version='brain.Event:2')
    start = _proto.SessionLog(status=_proto.SessionLog.START)
    self._add(purge_step, session_log=start)

  def write(self, record: dict[str, Any]) -> None:
    for name, value in _scalars(record):
      self._add(record['step'], summary=summary.scalar(name, value))
    self._writer.flush()

  def _add(self, step: int, **what: Any) -> None:
    event = _proto.Event(step=step, wall_time=time.time(), **what)
    self._writer.write(event.SerializeToString())

  def close(self) -> None:
    with contextlib.suppress(OSError):
      self._writer.close()


def _scalars(record: dict[str, Any], prefix: str = ''):
  """(name, value) of the numbers of a record, nested with a slash."""
  for name, value in record.items():
    if isinstance(value, dict):
      yield from _scalars(value, f'{prefix}{name}/')
    elif name != 'step' and isinstance(value, int | float):
      yield f'{prefix}{name}', value
