#!/usr/bin/env bash
# Runs the tests from a fresh clone: an environment, the package, pytest.
#
#   launch/test.sh [pytest arguments]
#
#   FER2013_CSV   the challenge's fer2013.csv, for the tests on real rows
#   TEST_WORKERS  processes that share the tests (default: one more than cores, 4
#                 at most)
#   FER_JAX_VENV, PYTHON   see environment.sh
set -euo pipefail
. "$(dirname "$0")/environment.sh"
cd "$(dirname "$0")/.."

prepare_environment '[test]'
cores="$("$python" -c 'import os; print(len(os.sched_getaffinity(0)))' \
  2>/dev/null || echo 2)"
workers="${TEST_WORKERS:-$((cores < 4 ? cores + 1 : 4))}"
# Compilation is most of the tests' time and runs on one core; a fifth is waiting,
# for processes and servers. --dist=worksteal keeps neighbours, which share
# fixtures, in one process until another one has nothing left to do.
exec "$python" -m pytest -q -n "$workers" --dist=worksteal "$@"
