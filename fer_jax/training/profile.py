"""A trace of a few steps, which TensorBoard and Perfetto open."""

import pathlib

import jax

FOLDER = 'profile'

STEPS = 10
"""How many steps are traced where the user gives no number."""


class Profile:
  """Traces one block of steps, the first that compiles nothing.

  Attributes:
    steps: how long the next block is to be; 0 where it is no matter.
  """

  def __init__(self, workdir: pathlib.Path, steps: int):
    """Begins nothing yet.

    Args:
      workdir: under which the trace is written.
      steps: how many are traced, 0 for none.
    """
    self.steps = steps
    self._folder = pathlib.Path(workdir) / FOLDER
    self._first: int | None = None
    self._last = 0

  def after_block(self, step: int) -> None:
    """Begins the trace after one block, ends it after the next.

    Args:
      step: of the run, at which the block ended; it is done.
    """
    self._last = step
    if self._first is not None:
      self.close()
      return
    self._first = step
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # megabytes that say nothing of steps
    jax.profiler.start_trace(
      str(self._folder), create_perfetto_trace=True, profiler_options=options
    )

  def close(self) -> None:
    """Ends the trace that is open and says where it is."""
    if self._first is None:
      return
    jax.profiler.stop_trace()
    taken = self._last - self._first
    self.steps, self._first = 0, None
    trace = max(self._folder.rglob('perfetto_trace.json.gz'))
    print(
      f'profile of {taken} steps: open {trace} at https://ui.perfetto.dev, or '
      f'`tensorboard --logdir={self._folder}` with the package xprof'
    )
