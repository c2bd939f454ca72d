"""A few hundred bad inputs to the readers, the same ones every time.

The long form is `python launch/fuzz.py --cases=100000`. What it has found is
tested by name in test_fuzz_findings.py.
"""

import json
import os
import pathlib
import subprocess
import sys

COMMAND = pathlib.Path(__file__).resolve().parents[2] / 'launch' / 'fuzz.py'


def _run(*arguments):
  return subprocess.run(
    [sys.executable, str(COMMAND), *arguments],
    capture_output=True,
    text=True,
    check=False,
    # Keeping programs would be writing elsewhere.
    env={**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'},
  )


def test_every_reader_ends_in_a_result_or_one_line(tmp_path):
  """Within 5 s and 1 GiB, writing nowhere else and executing nothing."""
  path = tmp_path / 'record.json'
  done = _run('--cases=300', '--seed=1', f'--json={path}')
  assert done.returncode == 0, done.stderr[-4000:]
  record = json.loads(path.read_text())
  assert record['cases'] == 300
  assert record['findings'] == []
  assert len(record['readers']) > 20
  # The watch itself: a reader that does any of these is found out.
  for misdeed, said in {
    'writes elsewhere': 'writes ',
    'executes': 'executes <string>',
    'unpickles': 'pickle.find_class',
    'starts a process': 'subprocess.Popen',
    'crashes': 'the process died of SIGABRT',
    'raises': 'KeyError',
    'takes memory': 'MemoryError',
    'has a child take it': 'bytes of memory',
    'waits': 'took 1.',
    'says nothing': 'no line for a user',
  }.items():
    assert said in record['misdeeds'][misdeed], misdeed
  # Neither all good nor all refused at the door: the bad input gets far.
  for outcome in ('result', 'refused'):
    counts = [counts[outcome] for counts in record['readers'].values()]
    assert sum(counts) > 60, (outcome, record['readers'])
