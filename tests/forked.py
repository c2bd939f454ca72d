"""Command lines in processes that are forked, not started.

A start imports for seconds. A server that has imported what the verbs use, and
has not used JAX, forks a process for each command line instead. All else is as
if it had been started with the environment of the tests.
"""

import concurrent.futures
import multiprocessing
import os
import resource
import signal
import sys

_CONTEXT = multiprocessing.get_context('forkserver')
_CONTEXT.set_forkserver_preload(
  [
    'fer_jax.__main__',
    'fer_jax.commands.evaluate',
    'fer_jax.commands.train',
    'fer_jax.datasets.synthetic_faces',
    'fer_jax.evaluation.evaluate',
    'fer_jax.training.loop',
  ]
)


class Command:
  """A command line under way.

  Attributes:
    stdout: what it prints, a text file.
    stderr: the same of its complaints.
  """

  def __init__(self, *arguments, environ=None, options=None, largest_file=None):
    """Begins it.

    Args:
      *arguments: the verb and its flags.
      environ: variables beside those of the tests; of no use are those that
        JAX reads as it is imported.
      options: of JAX, by name, in the place of those.
      largest_file: bytes that it may write to a file, as `ulimit` has it.
    """
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(2)]
    ends = [write for _, write in pipes]
    self._process = _CONTEXT.Process(
      target=_run,
      args=(arguments, ends, environ or {}, options or {}, largest_file),
      daemon=True,  # is not waited for where a test has failed
    )
    self._process.start()
    self.stdout, self.stderr = (
      os.fdopen(os.dup(read.fileno()), errors='replace') for read, _ in pipes
    )
    for end in (end for pipe in pipes for end in pipe):
      end.close()

  @property
  def status(self) -> int | None:
    """With which it has ended; None as long as it runs."""
    return self._process.exitcode

  def send_signal(self, number: signal.Signals) -> None:
    """Does nothing where it has ended."""
    if self.status is None:
      os.kill(self._process.pid, number)

  def until(self, text: str) -> None:
    """Reads what it prints up to a line with some text."""
    for line in self.stdout:
      if text in line:
        return
    raise AssertionError(self.result())

  def result(self) -> tuple[int, str, str]:
    """Waits for its end: (status, what stdout got, what stderr got)."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
      reads = [pool.submit(f.read) for f in (self.stdout, self.stderr)]
      try:
        out, err = (read.result(timeout=600) for read in reads)
      except TimeoutError:
        self.send_signal(signal.SIGKILL)
        raise
    self.stdout.close()
    self.stderr.close()
    self._process.join()
    return self.status, out, err


def _run(arguments, ends, environ, options, largest_file):
  for number, end in enumerate(ends, 1):
    os.dup2(end.fileno(), number)
  # The one there was may be of a file, and ask a pipe where it is in it.
  sys.stdout = os.fdopen(1, 'w', closefd=False)
  os.environ.update(environ)
  if largest_file is not None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
  import jax

  from fer_jax import __main__ as program

  for name, value in options.items():
    jax.config.update(name, value)
  sys.argv = ['fer_jax', *arguments]
  program.run()
