"""Notices that ask a run to leave, or end it, at a moment that a test names."""

from fer_jax.training import preemption


class AskedAfter(preemption.Notice):
  """Is asked after so many polls: of one run, a poll a block."""

  def __init__(self, polls: int):
    super().__init__()
    self._left = polls

  def agreed(self) -> bool:
    self._left -= 1
    self.asked = self._left < 0
    return self.asked


class Killed(BaseException):
  """Nothing is saved after it."""


class KilledAfter(AskedAfter):
  """Is ended as by SIGKILL after so many polls."""

  def agreed(self) -> bool:
    if super().agreed():
      raise Killed
    return False
