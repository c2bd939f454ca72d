#!/usr/bin/env bash
# From a fresh clone to a trained model and its report, in a few minutes on two
# CPU cores, with no data to download: synthetic faces.
#
#   launch/demo.sh [WORKDIR]     (default: runs/quickstart)
#
#   FER_JAX_VENV, PYTHON   see environment.sh
set -euo pipefail
. "$(dirname "$0")/environment.sh"
workdir="$(absolute "${1:-}")"
cd "$(dirname "$0")/.."

workdir="${workdir:-runs/quickstart}"
prepare_environment ''
"$python" -m fer_jax train --config=configs/quickstart.py --workdir="$workdir"
"$python" -m fer_jax evaluate --workdir="$workdir" --split=validation
"$python" -m fer_jax evaluate --workdir="$workdir" --split=test
"$python" -m fer_jax report --workdir="$workdir"

"$python" - "$workdir" <<'END'
import json, pathlib, sys

workdir = pathlib.Path(sys.argv[1])
for split in 'validation', 'test':
  metrics = json.loads((workdir / f'metrics_{split}.json').read_text())
  print(f'{split:>10}: accuracy {metrics["accuracy"]:.4f}')
print(f'    report: {(workdir / "report.html").resolve()}')
END
