"""The one exception that stands for a user's mistake; words of messages."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
  """What the user gave cannot be used.

  The message is one line that names the file, row, field or value and says
  what was expected. The command line prints it without a traceback.

  Attributes:
    status: what the command line exits with, as docs/faults.md lists them.
  """

  status = 2


def nearest(name: object, known: Iterable[str]) -> str:
  """ "; did you mean 'X'?" for the known name most like `name`, or ''.

  Capitals do not matter.
  """
  names = {other.lower(): other for other in known}
  written = str(name).lower()
  match = difflib.get_close_matches(written, names, n=1, cutoff=0.5)
  return f'; did you mean {names[match[0]]!r}?' if match else ''


def exhaustion(error: RuntimeError, helps: str) -> str | None:
  """What is said of a device whose memory is full; None of another error.

  Args:
    error: of JAX, perhaps.
    helps: what takes less.
  """
  said = str(error).strip()
  if 'RESOURCE_EXHAUSTED' not in said:
    return None
  return f'the device has too little memory ({said.splitlines()[0]}); {helps}'
