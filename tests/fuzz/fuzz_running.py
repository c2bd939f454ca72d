"""Runs cases one after another in a process that is watched.

A case must end in a result or in a `UserError` of one line, within five
seconds and a gigabyte, without writing outside its own folder and without
executing anything. The last two are seen by an audit hook (PEP 578), which
CPython calls on every opening of a file, `exec`, unpickling and new process.
A worker that dies or hangs is replaced; its case is a finding.

Seconds are of the clock, less those in which the case could have gone on and
the processor did other work: five on an idle machine are five on a busy one.
Those of the processor, of all threads and children, are counted besides. The
gigabyte is for each process.
"""

import collections
import dataclasses
import gc
import json
import os
import pathlib
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import fuzz_targets
from fuzz_targets import Target

from fer_jax import __main__ as command_line
from fer_jax.errors import UserError

MOST_SECONDS = 5.0
# They wait for a little longer than this.
_MOST_SECONDS_OF_MISDEEDS = 1.0
# A worker is ended then that says nothing. Of the clock, since only a process
# itself knows what it waited for: twelve such cases may be under way.
_MOST_PATIENCE = 12 * MOST_SECONDS
MOST_BYTES = 1 << 30
# Beyond this the kernel refuses memory, for the sake of the machine.
_MOST_NEW_ADDRESSES = 2 << 30

_CLASS_MAKERS = (collections.__file__, dataclasses.__file__)

RESULT, REFUSED, FINDING = 'result', 'refused', 'finding'


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of a case.

  Attributes:
    case: its number.
    target: name of the reader.
    kind: RESULT, REFUSED or FINDING.
    said: of a refusal its line, of a finding what is wrong.
    seconds: that it took, see above.
  """

  case: int
  target: str
  kind: str
  said: str
  seconds: float


class _Violation(BaseException):
  """Something that reading must not do."""


class _Guard:
  """The audit hook; does nothing until a case is under way."""

  def __init__(self, trusted: tuple[str, ...]):
    self._trusted = trusted
    self.folder = ''
    self.seen: list[str] = []

  def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
    if not self.folder:
      return
    wrong = self._wrong(event, arguments)
    if wrong:
      self.seen.append(wrong)
      raise _Violation(wrong)

  def _wrong(self, event: str, arguments: tuple[Any, ...]) -> str | None:
    match event:
      case 'open':
        path, mode, flags = arguments
        for_writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if isinstance(mode, str) and not set(mode) & set('wax+'):
          return None
        if not for_writing or self._inside(path):
          return None
        return f'writes {path!r}'
      case 'os.mkdir' | 'os.remove' | 'os.rmdir' | 'os.truncate' | 'os.chmod':
        # Of a file in a folder that is open, there is its last argument.
        folder = arguments[-1] if isinstance(arguments[-1], int) else -1
        inside = self._inside(arguments[0]) or (
          event in ('os.remove', 'os.rmdir')
          and folder >= 0
          and self._inside(os.readlink(f'/proc/self/fd/{folder}'))
        )
        return None if inside else f'{event} {arguments[0]!r}'
      case 'os.rename' | 'os.link' | 'os.symlink':
        inside = self._inside(arguments[1])
        return None if inside else f'{event} {arguments[1]!r}'
      case 'pickle.find_class' | 'os.system' | 'os.exec':
        return f'{event} {arguments}'
      case 'subprocess.Popen' | 'os.posix_spawn':
        # One reader works in a process of its own. From Python 3.13 on the
        # first of these may do the second.
        reader = arguments[0] == sys.executable and any(
          str(a).startswith(self._trusted) for a in arguments[1][1:]
        )
        return None if reader else f'{event} {arguments[:2]}'
      case 'exec':
        name = getattr(arguments[0], 'co_filename', '?')
        # Named tuples and data classes are made of text, of no file's.
        maker = sys._getframe(2).f_code.co_filename
        trusted = name.startswith(self._trusted) or (
          name.startswith('<') and maker in _CLASS_MAKERS
        )
        return None if trusted else f'executes {name} for {maker}'
      case 'socket.connect' | 'ctypes.dlopen':
        return f'{event} {arguments[1:]}'
    return None

  def _inside(self, path: Any) -> bool:
    if isinstance(path, int):
      return True
    whole = os.path.realpath(os.path.dirname(os.fsdecode(path)) or '.')
    return (
      os.fsdecode(path) == os.devnull
      or os.fsdecode(path).startswith(self.folder)
      or f'{whole}/'.startswith(f'{self.folder}/')
    )


def drawn(seed: int, case: int, table: Mapping[str, Target]) -> tuple[str, Any]:
  """The target of a case, and the generator that makes its input."""
  rng = random.Random(f'{seed}/{case}')
  names = list(table)
  (name,) = rng.choices(names, [table[n].share for n in names])
  return name, rng


def run_case(
  seed: int,
  case: int,
  table: Mapping[str, Target],
  folder: pathlib.Path,
  guard: _Guard | None = None,
  most_seconds: float = MOST_SECONDS,
) -> Outcome:
  """Runs one case in an empty folder."""
  name, rng = drawn(seed, case, table)
  folder.mkdir()
  began = _clocks()
  # Of temporary files, this is their place.
  tempfile.tempdir = str(folder)
  if guard is not None:
    guard.folder = str(folder)
    guard.seen.clear()
  try:
    table[name].run(rng, folder)
    kind, said = RESULT, ''
  except UserError as error:
    kind, said = REFUSED, command_line.one_line(error)
  except (Exception, _Violation):
    kind, said = FINDING, traceback.format_exc(limit=-8)
  finally:
    tempfile.tempdir = None
    if guard is not None:
      guard.folder = ''
  seconds = max(now - then for now, then in zip(_clocks(), began, strict=True))
  if guard is not None and guard.seen:
    kind, said = FINDING, '; '.join(guard.seen)
  elif kind == REFUSED and not (said.strip() and said.isprintable()):
    kind, said = FINDING, f'no line for a user: {said!r}'
  elif _peak_bytes() > MOST_BYTES:
    kind, said = FINDING, f'{_peak_bytes():,} bytes of memory; {said}'
  elif seconds > most_seconds:
    kind, said = FINDING, f'took {seconds:.1f} s; {said}'
  for path in (folder.parent, fuzz_targets.TESTS.parent):
    said = said.replace(str(path), 'FOLDER')
  shutil.rmtree(folder, ignore_errors=True)
  return Outcome(case, name, kind, said, seconds)


def _clocks() -> tuple[float, float]:
  """Seconds of the processor, and those of the clock that count."""
  spent = map(
    resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  # Of the main thread, in nanoseconds: how long it ran, and was ready to run.
  ready = int(pathlib.Path('/proc/self/schedstat').read_text().split()[1])
  return (
    sum(one.ru_utime + one.ru_stime for one in spent),
    time.monotonic() - ready / 1e9,
  )


def _peak_bytes() -> int:
  """Of this process, or of a child that it has waited for."""
  # A child's begins with its parent's, so the two do not add up.
  whose = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
  return max(resource.getrusage(one).ru_maxrss for one in whose) * 1024


def _address_space() -> int:
  pages = pathlib.Path('/proc/self/statm').read_text().split()[0]
  return int(pages) * resource.getpagesize()


def misdeeds_found() -> dict[str, str]:
  """What is said of each misdeed, '' of one that passes unseen."""
  said = {}
  for name, target in fuzz_targets.misdeeds().items():
    with tempfile.TemporaryDirectory(prefix='fuzz-') as scratch:
      found = list(
        _worker(
          0,
          range(1),
          {name: target},
          scratch,
          warm=False,
          most_seconds=_MOST_SECONDS_OF_MISDEEDS,
        )
      )
    said[name] = found[0].said if found[0].kind == FINDING else ''
  return said


def outcomes(
  seed: int, cases: range, table: Mapping[str, Target]
) -> Iterator[Outcome]:
  """Outcomes of all cases in order, whatever becomes of the workers."""
  # What no worker will free need not be looked at, and so copied, by each.
  gc.collect()
  gc.freeze()
  at = cases.start
  while at < cases.stop:
    with tempfile.TemporaryDirectory(prefix='fuzz-') as scratch:
      for outcome in _worker(seed, range(at, cases.stop), table, scratch):
        at = outcome.case + 1
        yield outcome


def _worker(
  seed: int,
  cases: range,
  table: Mapping[str, Target],
  scratch: str,
  warm: bool = True,
  most_seconds: float = MOST_SECONDS,
) -> Iterator[Outcome]:
  """Outcomes until the worker ends; its last may be a finding of its end."""
  reading, writing = os.pipe()
  with warnings.catch_warnings():
    # JAX warns of forks; nothing of it has been used yet.
    warnings.simplefilter('ignore')
    child = os.fork()
  if not child:
    os.close(reading)
    folder = pathlib.Path(scratch)
    _work(seed, cases, table, folder, writing, warm, most_seconds)
  os.close(writing)
  expected = cases.start
  status = None
  try:
    # Unbuffered: `select` does not see what a buffer holds.
    with open(reading, 'rb', buffering=0) as stream:
      while True:
        ready, _, _ = select.select([stream], [], [], _MOST_PATIENCE)
        line = stream.readline() if ready else b''
        if not ready:
          os.kill(child, signal.SIGKILL)
        if not line:
          break
        outcome = Outcome(**json.loads(line))
        expected = outcome.case + 1
        yield outcome
    _, status = os.waitpid(child, 0)
  finally:
    if status is None:  # left amid its cases, whose folder is to be removed
      os.kill(child, signal.SIGKILL)
      os.waitpid(child, 0)
  code = os.waitstatus_to_exitcode(status)
  if code and expected < cases.stop:
    name, _ = drawn(seed, expected, table)
    said = (
      f'no end after {_MOST_PATIENCE:.0f} s'
      if not ready
      else (
        f'the process died of {signal.Signals(-code).name}'
        if code < 0
        else f'the process ended in status {code}'
      )
    )
    yield Outcome(expected, name, FINDING, said, 0.0)


def _work(
  seed: int,
  cases: range,
  table: Mapping[str, Target],
  scratch: pathlib.Path,
  writing: int,
  warm: bool,
  most_seconds: float,
) -> None:
  """A worker's life; does not return."""
  status = 1
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  try:
    limit = _address_space() + _MOST_NEW_ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    guard = _Guard(
      (
        sys.prefix,
        sys.base_prefix,
        '<frozen',
        str(pathlib.Path(fuzz_targets.TESTS.parent, 'fer_jax')),
        str(fuzz_targets.CONFIG_FILE),
      )
    )
    if warm:
      (scratch / 'first').mkdir()
      fuzz_targets.warm_up(scratch / 'first')
    sys.addaudithook(guard)
    # What readers tell on the way is not looked at.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with open(writing, 'wb', buffering=0) as stream:
      for case in cases:
        outcome = run_case(
          seed, case, table, scratch / 'case', guard, most_seconds
        )
        stream.write(json.dumps(vars(outcome)).encode() + b'\n')
        if _peak_bytes() > MOST_BYTES:
          break
    status = 0
  finally:
    os._exit(status)


def summarise(found: Iterator[Outcome]) -> dict[str, Any]:
  """Counts by reader, findings and the slowest case."""
  counts: dict[str, collections.Counter] = {}
  seconds: collections.Counter = collections.Counter()
  findings, slowest = [], None
  for outcome in found:
    seconds[outcome.target] += outcome.seconds
    counts.setdefault(outcome.target, collections.Counter())[outcome.kind] += 1
    if outcome.kind == FINDING:
      findings.append(vars(outcome))
    if slowest is None or outcome.seconds > slowest.seconds:
      slowest = outcome
  return {
    'cases': sum(sum(c.values()) for c in counts.values()),
    'readers': {
      name: {
        **{kind: counts[name][kind] for kind in (RESULT, REFUSED, FINDING)},
        'seconds': round(seconds[name], 1),
      }
      for name in sorted(counts)
    },
    'findings': findings,
    'slowest': None
    if slowest is None
    else {
      'case': slowest.case,
      'target': slowest.target,
      'seconds': round(slowest.seconds, 2),
    },
  }
