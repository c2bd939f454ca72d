"""Progress of a run on the terminal."""

import sys
import time
from typing import TextIO

QUIET_SECONDS = 15.0
"""How often a line is added where the output is no terminal."""


def duration(seconds: float) -> str:
  """h:mm:ss."""
  minutes, seconds = divmod(int(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02d}:{seconds:02d}'


class Display:
  """Shows epoch, step, loss, images/s and the time to go.

  On a terminal the running line is written over; elsewhere it is added every
  `QUIET_SECONDS`.
  """

  def __init__(self, total_steps: int, epochs: int, out: TextIO | None = None):
    self._total_steps = total_steps
    self._epochs = epochs
    self._out = out or sys.stdout
    self._terminal = self._out.isatty()
    self._last = time.monotonic()

  def running(
    self,
    epoch: int,
    step: int,
    loss: float,
    images_per_second: float,
    eta: float,
  ) -> None:
    """Shows where the run is within an epoch."""
    now = time.monotonic()
    if not self._terminal and now - self._last < QUIET_SECONDS:
      return
    self._last = now
    line = (
      f'epoch {epoch}/{self._epochs}  step {step}/{self._total_steps}  '
      f'loss {loss:.4f}  {images_per_second:.0f} images/s  '
      f'ETA {duration(eta)}'
    )
    end = '' if self._terminal else '\n'
    start = '\r\x1b[K' if self._terminal else ''
    print(f'{start}{line}', end=end, file=self._out, flush=True)

  def line(self, text: str) -> None:
    """Adds a line that stays."""
    start = '\r\x1b[K' if self._terminal else ''
    print(f'{start}{text}', file=self._out, flush=True)
    self._last = time.monotonic()
