#!/usr/bin/env bash
# Line coverage of the tests, those in processes of their own included.
#
#   launch/coverage.sh [RECORD]     (default: docs/records/coverage.json)
#
# Lines of a process that is killed are not counted, nor those that run on an
# accelerator alone. Tests that leave a process no room on the disk fail here: it
# cannot write what it has counted.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/environment.sh

prepare_environment '[test]'
"$python" -m pip install --quiet --disable-pip-version-check 'pytest-cov>=7'
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
export COVERAGE_FILE="$scratch/coverage"
launch/test.sh --cov --cov-report="json:$scratch/coverage.json" ||
  echo 'some tests failed: what they would have covered is missing'
"$python" - "$scratch/coverage.json" "${1:-docs/records/coverage.json}" <<'END'
import json, pathlib, sys

measured = json.loads(pathlib.Path(sys.argv[1]).read_text())

def of(summary):
  return {
    'lines': summary['num_statements'],
    'missing': summary['missing_lines'],
    'percent': round(summary['percent_covered'], 1),
  }

record = {
  'command': 'launch/coverage.sh',
  'python': '.'.join(map(str, sys.version_info[:3])),
  'total': of(measured['totals']),
  'files': {
    name: of(file['summary'])
    for name, file in sorted(measured['files'].items())
  },
}
pathlib.Path(sys.argv[2]).write_text(json.dumps(record, indent=2) + '\n')
print(f'{record["total"]["percent"]} % of {record["total"]["lines"]:,} lines')
END
