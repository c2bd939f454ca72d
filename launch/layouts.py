#!/usr/bin/env python
"""Runs that change devices or processes each epoch, beside one that does not.

  python launch/layouts.py --json=docs/records/layouts.json

Each life goes on from the checkpoint of the one before, on CPU, over loopback.
The record has the largest differences to the run on one device in one life: of
the state at the end, as a share of each array's largest element, and of the
figures of all epochs, as a share of themselves. Exits with status 1 where one
is above 1e-4, what the design allows 20 float32 steps.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / part) for part in ('', 'tests', 'tests/training')]

EPOCHS = 3
REFERENCE = ((1, 1),)
# (processes, devices of each) of every life.
LAYOUTS = (
  ((1, 1), (1, 4), (1, 2)),
  ((1, 4), (1, 1), (1, 2)),
  ((2, 1), (1, 1)),
  ((1, 1), (2, 1)),
  ((2, 2), (1, 4), (1, 1)),
)


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--json', help='file for the record')
  given = parser.parse_args()

  import equal_runs

  from fer_jax import files, provenance
  from fer_jax.errors import UserError

  try:
    files.require_writable(given.json)
  except UserError as error:
    parser.error(str(error))
  found = []
  with tempfile.TemporaryDirectory() as scratch:
    root = pathlib.Path(scratch)
    config = equal_runs.write_config(root)
    reference = root / 'reference'
    train(config, reference, REFERENCE)
    for number, layout in enumerate(LAYOUTS):
      workdir = root / f'run{number}'
      train(config, workdir, layout)
      found.append(
        {
          'lives': [
            {'processes': processes, 'devices': processes * devices}
            for processes, devices in layout
          ],
          **equal_runs.differences(workdir, reference),
        }
      )
      print(found[-1], flush=True)
  record = {
    'command': ' '.join(['python', 'launch/layouts.py', *sys.argv[1:]]),
    'epochs': EPOCHS,
    'allowed': equal_runs.TOLERANCE,
    'layouts': found,
    'environment': provenance.environment(),
  }
  files.write_result(given.json, record)
  largest = max(max(one['state'], one['figures']) for one in found)
  print(f'largest difference {largest:.1e}, allowed {equal_runs.TOLERANCE:.0e}')
  return int(largest > equal_runs.TOLERANCE)


def train(config: pathlib.Path, workdir: pathlib.Path, layout) -> None:
  """All lives of a run, an epoch each, the last one to the end."""
  import equal_runs

  for life, (processes, devices) in enumerate(layout, 1):
    command = [sys.executable, '-m', 'fer_jax', 'train']
    command += [f'--config={config}', f'--workdir={workdir}']
    command += [f'--config.train.epochs={EPOCHS}']
    command += [] if life == len(layout) else ['--max_seconds=0.001']
    started = [
      subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={
          **os.environ,
          'JAX_PLATFORMS': 'cpu',
          'JAX_NUM_CPU_DEVICES': str(devices),
          **(environ if processes > 1 else {}),
        },
      )
      for environ in equal_runs.environments(processes)
    ]
    statuses = [process.wait() for process in started]
    if any(statuses):
      raise SystemExit(f'life {life} of {layout} failed')


if __name__ == '__main__':
  sys.exit(main())
