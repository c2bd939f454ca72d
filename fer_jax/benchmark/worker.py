"""A contender in a process of its own, run by one line of JSON at a time.

Frameworks that share a process share thread pools, allocators and (Keras) the
one back end they were imported with. So each contender lives in its own
process, waits on its standard input between turns, and costs the others
nothing while it waits.

The child runs `python -m fer_jax.benchmark.worker MODULE`, where the module
is as `fer_jax.benchmark.contenders` describes; the parent has a `Worker`.
"""

import contextlib
import importlib
import json
import math
import os
import subprocess
import sys
import tempfile
import traceback

from fer_jax import provenance
from fer_jax.benchmark import machine
from fer_jax.benchmark.contenders import AbsentError

TAIL_LINES = 12
"""How much of a failed worker's stderr is shown."""


class WorkerError(RuntimeError):
  """A contender's process failed; the message ends with its last words."""


class Worker:
  """A contender's process.

  Attributes:
    info: what the contender said of itself when it was prepared.
    steps: optimiser steps in one turn, once `calibrate` has chosen them.
  """

  def __init__(
    self, contender: str, *, environment: dict[str, str] | None = None
  ):
    """Starts the process.

    Args:
      contender: module of the contender, with its package.
      environment: added to this process' own.
    """
    self.contender = contender
    self.info: dict = {}
    self.steps = 1
    self._errors = tempfile.TemporaryFile('w+', errors='replace')  # noqa: SIM115
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'fer_jax.benchmark.worker', contender],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._errors,
      text=True,
      env={
        **os.environ,
        **machine.thread_environment(provenance.cores()),
        # Several processes share one accelerator: none may take all of it.
        'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
        'TF_FORCE_GPU_ALLOW_GROWTH': 'true',
        'TF_CPP_MIN_LOG_LEVEL': '2',
        **(environment or {}),
      },
    )

  def _ask(self, **message) -> dict:
    assert self._process.stdin
    assert self._process.stdout
    line = ''
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(json.dumps(message) + '\n')
      self._process.stdin.flush()
      line = self._process.stdout.readline()
    if not line:
      self._process.wait()
      words = self._last_words()
      raise WorkerError(
        f'{self.contender}: its process ended with status '
        f'{self._process.returncode}: {words.rpartition(chr(10))[2]}\n{words}'
      )
    answer = json.loads(line)
    if 'error' in answer:
      raise WorkerError(f'{self.contender}: {answer["error"]}')
    return answer

  def _last_words(self) -> str:
    self._errors.seek(0)
    return ''.join(self._errors.readlines()[-TAIL_LINES:]).rstrip()

  def prepare(self, case: dict) -> dict:
    """Builds what `case` describes; its first run will compile.

    Returns:
      What the contender says of itself, or {'absent': reason} where its
      framework is not installed or it is `AbsentError`.

    Raises:
      WorkerError: it failed for another reason.
    """
    self.info = self._ask(do='prepare', case=case)
    return self.info

  def run(self, steps: int) -> float:
    """Runs `steps` steps, back to back; returns the seconds they took."""
    return self._ask(do='run', steps=steps)['seconds']

  def calibrate(self, *, warm_up: int, turn_seconds: float) -> None:
    """Warms up, then chooses how many steps make a turn.

    Args:
      warm_up: steps that are run and forgotten.
      turn_seconds: what a turn lasts at least, in whole dispatches.
    """
    dispatch = self.info['steps_per_dispatch']
    self.run(math.ceil(warm_up / dispatch) * dispatch)
    seconds = self.run(dispatch)
    self.steps = dispatch * max(1, math.ceil(turn_seconds / seconds))

  def turn(self) -> float:
    """Runs one turn; returns seconds per step."""
    return self.run(self.steps) / self.steps

  def peak_memory(self) -> int | None:
    """See `provenance.peak_memory`, of its process so far."""
    return self._ask(do='peak_memory')['bytes']

  def close(self) -> None:
    """Ends the process."""
    if self._process.stdin:
      with contextlib.suppress(BrokenPipeError):
        self._process.stdin.close()
    try:
      self._process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    if self._process.stdout:
      self._process.stdout.close()
    self._errors.close()

  def __enter__(self) -> 'Worker':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def serve(contender: str) -> None:
  """The child's loop: answers each line of standard input with one line."""
  # Libraries print as they like, so the answers keep the real stdout for
  # themselves and everything else goes to stderr.
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  run = None
  for line in sys.stdin:
    message = json.loads(line)
    try:
      if message['do'] == 'prepare':
        module = importlib.import_module(contender)
        run, answer = module.prepare(message['case'])
      elif message['do'] == 'peak_memory':
        answer = {'bytes': provenance.peak_memory()}
      else:
        assert run is not None, 'run before prepare'
        answer = {'seconds': run(message['steps'])}
    except ModuleNotFoundError as error:
      answer = {'absent': f'{error.name} is not installed'}
    except AbsentError as error:
      answer = {'absent': str(error)}
    except Exception as error:  # The parent says what any of them says.
      traceback.print_exc()
      message = ' '.join(str(error).split())
      answer = {'error': f'{type(error).__name__}: {message}'}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == '__main__':
  serve(sys.argv[1])
