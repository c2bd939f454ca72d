"""What a run writes beside its checkpoints: metrics.jsonl and event files."""

import json
import os
import pathlib
from typing import Any

from tensorboardX import SummaryWriter

from fer_jax import files

METRICS = 'metrics.jsonl'
EVENTS = 'tensorboard'


def read_metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The epochs' records of a workdir, oldest first; a torn last line is left
  out."""
  path = pathlib.Path(workdir) / METRICS
  if not path.exists():
    return []
  records = []
  for line in path.read_text().splitlines():
    try:
      records.append(json.loads(line))
    except ValueError:
      break
  return records


def cut_back(workdir: pathlib.Path, step: int) -> None:
  """Drops the records after a step, which the resumed run writes again."""
  path = pathlib.Path(workdir) / METRICS
  if path.exists():
    kept = [r for r in read_metrics(workdir) if r['step'] <= step]
    files.write_text(path, ''.join(json.dumps(r) + '\n' for r in kept))


class Recorder:
  """Appends one record an epoch to metrics.jsonl and to TensorBoard events."""

  def __init__(self, workdir: pathlib.Path, *, resumed_step: int):
    cut_back(workdir, resumed_step)
    self._file = (pathlib.Path(workdir) / METRICS).open('a')
    self._events = SummaryWriter(
      str(pathlib.Path(workdir) / EVENTS),
      purge_step=resumed_step + 1,
    )

  def write(self, record: dict[str, Any]) -> None:
    """Writes a record that is on disk when this returns.

    Args:
      record: has 'step'; numbers and dictionaries of numbers become scalars
        of the event files.
    """
    self._file.write(json.dumps(record) + '\n')
    self._file.flush()
    os.fsync(self._file.fileno())
    for name, value in _scalars(record):
      self._events.add_scalar(name, value, record['step'])
    self._events.flush()

  def close(self) -> None:
    """Closes both files."""
    self._file.close()
    self._events.close()


def _scalars(record: dict[str, Any], prefix: str = ''):
  """(name, value) of the numbers of a record, nested with a slash."""
  for name, value in record.items():
    if isinstance(value, dict):
      yield from _scalars(value, f'{prefix}{name}/')
    elif name != 'step' and isinstance(value, int | float):
      yield f'{prefix}{name}', value
