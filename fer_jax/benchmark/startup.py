"""Seconds from process start to the first training step."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from fer_jax.benchmark.rounds import spread
from fer_jax.benchmark.worker import TAIL_LINES, WorkerError

POLL_SECONDS = 0.02
LONGEST_SECONDS = 600
LEAVING_SECONDS = 60


def measure(config: pathlib.Path, *, starts: int) -> dict:
  """Starts `train` in fresh workdirs and stops it after its first step.

  The first start is not counted: it fills the compilation cache and builds
  the data set where they are not there yet.

  Args:
    config: configuration file of the run.
    starts: starts that are counted.

  Returns:
    `seconds_to_first_step`, a spread of what the run itself wrote into
    run.json (from the start of its process), `cold`, the same of the first
    start, and `rounds`.

  Raises:
    WorkerError: training ended, or ten minutes passed, before a first step.
  """
  cold = _one_start(config)
  seconds = [_one_start(config) for _ in range(starts)]
  return {
    'config': config.name,
    'seconds_to_first_step': spread(seconds),
    'cold': cold,
    'rounds': seconds,
  }


def _one_start(config: pathlib.Path) -> float:
  with (
    tempfile.TemporaryDirectory(prefix='fer_jax_startup_') as folder,
    tempfile.TemporaryFile('w+', errors='replace') as output,
  ):
    workdir = pathlib.Path(folder) / 'run'
    process = subprocess.Popen(
      [
        *[sys.executable, '-m', 'fer_jax', 'train'],
        *[f'--config={config}', f'--workdir={workdir}'],
      ],
      stdout=output,
      stderr=subprocess.STDOUT,
      env=os.environ,
    )
    try:
      deadline = time.monotonic() + LONGEST_SECONDS
      while time.monotonic() < deadline:
        seconds = seconds_in(workdir / 'run.json')
        if seconds is not None:
          return seconds
        if process.poll() is not None:
          output.seek(0)
          words = ''.join(output.readlines()[-TAIL_LINES:]).rstrip()
          raise WorkerError(f'train ended before its first step\n{words}')
        time.sleep(POLL_SECONDS)
      raise WorkerError(f'no first step within {LONGEST_SECONDS} s')
    finally:
      # Not killed at once: it may be writing the cache of compiled programs.
      process.terminate()
      try:
        process.wait(LEAVING_SECONDS)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def seconds_in(run_json: pathlib.Path) -> float | None:
  """`seconds_to_first_step` of a run.json; None while it is not there."""
  try:
    return json.loads(run_json.read_text()).get('seconds_to_first_step')
  except (FileNotFoundError, json.JSONDecodeError):
    return None
