#!/usr/bin/env python
"""Gives every reader of files and settings bad input, many thousand times.

  python launch/fuzz.py --cases=100000 --json=docs/records/fuzz.json
  python launch/fuzz.py --case=4711        one case again, with its traceback
  python launch/fuzz.py --cases=500 --only=hdf5,keras

Exits with status 1 where a case ended in anything but a result or one line
for the user; tests/fuzz says what is asked of a case.
"""

import argparse
import json
import pathlib
import signal
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests' / 'fuzz')]


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--cases', type=int, default=1000, help='how many')
  parser.add_argument('--seed', type=int, default=0, help='of all cases')
  parser.add_argument('--case', type=int, help='run this one alone')
  parser.add_argument('--only', help='names of readers, with commas')
  parser.add_argument('--json', help='file for the record')
  given = parser.parse_args()
  # Leaves as Ctrl-C does, its folder removed.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

  import fuzz_running
  import fuzz_targets

  from fer_jax import files, provenance
  from fer_jax.errors import UserError, nearest

  try:
    files.require_writable(given.json)
  except UserError as error:
    parser.error(str(error))
  table = fuzz_targets.targets()
  wanted = given.only.split(',') if given.only else list(table)
  for name in wanted:
    if name not in table:
      parser.error(f'--only: no reader {name!r}{nearest(name, table)}')
  table = {name: table[name] for name in wanted}
  misdeeds = fuzz_running.misdeeds_found()
  unseen = [name for name, said in misdeeds.items() if not said]
  if unseen:
    raise SystemExit(f'the watch does not see what {", ".join(unseen)}')
  first = 0 if given.case is None else given.case
  cases = range(first, given.cases if given.case is None else first + 1)
  began = time.monotonic()
  record = fuzz_running.summarise(
    shown(fuzz_running.outcomes(given.seed, cases, table), given.case)
  )
  record = {
    'command': ' '.join(['python', 'launch/fuzz.py', *sys.argv[1:]]),
    'seed': given.seed,
    **record,
    'misdeeds': {n: said.splitlines()[-1] for n, said in misdeeds.items()},
    'seconds': round(time.monotonic() - began, 1),
    'environment': provenance.environment(),
  }
  print(json.dumps({k: record[k] for k in ('cases', 'readers', 'slowest')}))
  print(f'{record["cases"]:,} cases, {len(record["findings"])} findings')
  files.write_result(given.json, record)
  return 1 if record['findings'] else 0


def shown(found, case):
  """The outcomes as they pass, findings and progress told on stderr."""
  for outcome in found:
    if outcome.kind == 'finding' or case is not None:
      print(
        f'case {outcome.case}, {outcome.target}, {outcome.seconds:.2f} s: '
        f'{outcome.kind}\n{outcome.said}\n',
        file=sys.stderr,
        flush=True,
      )
    elif outcome.case % 5000 == 4999:
      print(f'{outcome.case + 1:,} cases', file=sys.stderr, flush=True)
    yield outcome


if __name__ == '__main__':
  sys.exit(main())
