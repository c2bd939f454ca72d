"""Being asked to leave: SIGTERM of a scheduler, Ctrl-C of a person.

    with preemption.watched() as notice:
      while training:
        ...  # a block of steps
        if notice.agreed():
          save and leave with notice.status

Who is asked finishes the block under way, saves and leaves. Python runs its
signal handlers between two of its own instructions, and the main thread may
wait for a device much longer than that; so a thread of its own hears the
signal, and ends the process when the time for leaving is over: the last good
checkpoint is then the one that is gone on from.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from fer_jax.errors import UserError

REQUEUE_STATUS = 75
"""Exit status after SIGTERM: EX_TEMPFAIL, 'start the same command again'."""

INTERRUPTED_STATUS = 130
"""Exit status after Ctrl-C, as shells have it: nothing to requeue."""

GRACE_SECONDS = 8.0
"""From the signal to the end of the process, whatever is under way; a busy
machine may need some more to hear it and to end."""

BLOCK_SECONDS = 2.0
"""What a block of steps may take, so that it, the one already sent after it
and a checkpoint fit into `GRACE_SECONDS`."""

_GOES_ON = (
  'the same command goes on from the last good checkpoint, if there is one'
)
_HEARD = (signal.SIGTERM, signal.SIGINT)


class Notice:
  """Whether this process was asked to leave, and how it should end.

  Attributes:
    asked: set by the signal.
    status: the exit status that goes with it.
    starting: set by who has nothing to save yet, such as while programs
      compile: the process then leaves at once.
    parting: called, by another thread, before the process leaves at once.
  """

  def __init__(self):
    self.asked = False
    self.status = REQUEUE_STATUS
    self.starting = False
    self.parting: Callable[[], None] = lambda: None

  def agreed(self) -> bool:
    """Whether any of a run's processes was asked.

    All of them must leave after the same block, so where there are several,
    each has to call this as often as the others.
    """
    from fer_jax import hosts  # imports JAX, and signals are heard before

    return hosts.any_host(self.asked)


class Pace:
  """How long blocks may be for who is asked to leave to do so soon.

  Attributes:
    steps: of the next block; one until the time of a step is known.
    long: whether a step takes so long that there should be none behind it.
  """

  def __init__(self, most: int):
    """Takes the most steps that a block may have."""
    self.steps = 1
    self.long = False
    self._most = most
    self._seen: tuple[float, int] | None = None

  def begin(self) -> None:
    """An epoch begins: what was before it tells nothing of its blocks."""
    self._seen = None

  def done(self, steps: int) -> None:
    """Notes that so many steps of the epoch are known to be done."""
    now = time.monotonic()
    if self._seen:
      rate = (steps - self._seen[1]) / (now - self._seen[0])
      self.steps = max(1, min(self._most, int(rate * BLOCK_SECONDS)))
      self.long = rate * BLOCK_SECONDS < 2
    self._seen = now, steps


@contextlib.contextmanager
def watched(grace: float = GRACE_SECONDS) -> Iterator[Notice]:
  """Hears SIGTERM and SIGINT while it is open; in the main thread only.

  A second Ctrl-C leaves at once; a first one after SIGTERM does not. What fails
  after the signal was heard, such as reading from worker processes that the
  scheduler ended as well, is said in one line and leaves with the status of the
  signal.

  Args:
    grace: seconds from the first signal to the end of the process.
  """
  notice = Notice()
  reader, writer = os.pipe()
  os.set_blocking(writer, False)  # as `set_wakeup_fd` wants it
  watcher = threading.Thread(
    target=_watch, args=(reader, notice, grace), name='preemption', daemon=True
  )
  watcher.start()
  waking = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  earlier = {number: signal.signal(number, _heard) for number in _HEARD}
  try:
    yield notice
  except UserError:
    raise
  except Exception as error:
    if not notice.asked:
      raise
    from fer_jax import hosts

    why = f'{type(error).__name__} while leaving: {error}'
    if hosts.count() > 1:
      _leave(notice, why)  # what others wait for is not coming
    _say(f'{why}; {_GOES_ON}')
    raise SystemExit(notice.status) from error
  finally:
    for number, handler in earlier.items():
      signal.signal(number, handler)
    signal.set_wakeup_fd(waking)
    os.close(writer)
    watcher.join()
    os.close(reader)


def _heard(number, frame) -> None:
  """Does nothing: the signal's number is already in the watcher's pipe."""


def _watch(reader: int, notice: Notice, grace: float) -> None:
  """Waits for signals, then for the end of the time for leaving."""
  deadline = None
  # A Ctrl-C may come with a SIGTERM of the parent, which it reached as well.
  interrupts = 0
  while True:
    left = None if deadline is None else max(0.0, deadline - time.monotonic())
    if not select.select([reader], [], [], left)[0]:
      _leave(notice, f'not done within {grace:g} s')
    heard = os.read(reader, 1)
    if not heard:  # closed: nobody listens any more
      return
    number = heard[0]
    if number not in _HEARD:
      continue
    if number == signal.SIGINT:
      interrupts += 1
      notice.status = INTERRUPTED_STATUS
    if interrupts > 1:
      _leave(notice, 'interrupted again')
    first = not notice.asked
    if first:
      notice.asked = True
      deadline = time.monotonic() + grace
      if notice.starting:
        _leave(notice, f'{signal.Signals(number).name}: nothing to save')
    if first or number == signal.SIGINT:
      _say(
        f'{signal.Signals(number).name}: finishing the block under way, then '
        f'saving and leaving with status {notice.status}'
      )


def _leave(notice: Notice, why: str) -> None:
  """Ends the process: any moment is as good as any other to a workdir."""
  _say(f'{why}, left; {_GOES_ON}')
  with contextlib.suppress(Exception):
    notice.parting()
  with contextlib.suppress(OSError, ValueError):
    sys.stdout.flush()
  os._exit(notice.status)


def _say(text: str) -> None:
  text = ' '.join(text.split())
  with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
    print(f'fer_jax: {text}', file=sys.stderr, flush=True)
