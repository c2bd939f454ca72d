"""Every look at a test split, kept beside the data set.

One JSON object a line in `ledger.jsonl`, in the folder that holds the builds
of a data set. Lines are only ever appended, each by one write, so that runs
on one machine may look at the same time. A score that was chosen among many
looks is not the score of one look: here is how many there were.
"""

import datetime
import json
import pathlib
import sys
from typing import Any

from fer_jax import files, hosts
from fer_jax.datasets.dataset import Dataset
from fer_jax.errors import UserError

# A test split's ids were handed out; and what was then read off.
OPENED = 'opened'
LOOK = 'look'
# An audit counted what is in it, and how a nearest neighbour does.
AUDITED = 'audited'


def path(dataset: Dataset) -> pathlib.Path:
  """The ledger of a data set."""
  return pathlib.Path(dataset.root).parent / 'ledger.jsonl'


def record(
  dataset: Dataset,
  *,
  run: str,
  protocol: str,
  split: str,
  figures: dict[str, Any],
  digest: str = '',
  test_digest: str = '',
  event: str = LOOK,
) -> dict[str, Any]:
  """Appends one line.

  Args:
    dataset: whose ledger.
    run: name of the workdir that looks.
    protocol: name of the protocol.
    split: name of the split.
    figures: what was read off, JSON-able.
    digest: of the protocol's id lists.
    test_digest: of the test ids alone, where looks at them are to be counted.
    event: LOOK, OPENED or AUDITED.

  Returns:
    The entry, with the time (UTC, ISO 8601) and the build's checksum.

  Raises:
    UserError: the ledger cannot be written.
  """
  entry = {
    'time': datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds'),
    'event': event,
    'run': run,
    'dataset': dataset.name,
    'version': dataset.version,
    'checksum': dataset.checksum,
    'protocol': protocol,
    'digest': digest,
    'test_digest': test_digest,
    'split': split,
    'figures': figures,
  }
  if not hosts.first():  # one look, however many look together
    return entry
  file = path(dataset)
  try:
    files.append_line(file, json.dumps(entry, allow_nan=True))
  except OSError as error:
    raise UserError(
      f'cannot write the ledger of test looks {file}: {error.strerror}'
    ) from error
  return entry


def read(dataset: Dataset, event: str = LOOK) -> list[dict[str, Any]]:
  """All entries of one kind, oldest first.

  A damaged line is named on stderr and stays in the file.
  """
  file = path(dataset)
  try:
    lines = file.read_text(encoding='utf-8', errors='replace').splitlines()
  except FileNotFoundError:
    return []
  except OSError as error:
    raise UserError(f'cannot read {file}: {error.strerror}') from error
  entries = []
  for number, line in enumerate(lines, 1):
    if not line.strip():
      continue
    entry = _parsed(line)
    if entry is None:
      print(f'{file}, line {number}: damaged, not counted', file=sys.stderr)
    elif entry['event'] == event:
      entries.append(entry)
  return entries


def _parsed(line: str) -> dict[str, Any] | None:
  try:
    entry = json.loads(line)
  except (ValueError, RecursionError):
    return None
  needed = {'time', 'event', 'run', 'protocol', 'split', 'figures'}
  return entry if isinstance(entry, dict) and needed <= entry.keys() else None
