#!/usr/bin/env bash
# On a machine with an accelerator: the tests, the benchmark, and the reference
# training with its evaluation and report; if asked, the train steps of all
# models, and ten runs side by side against ten in a row. Results as JSON under
# OUT_DIR.
#
#   launch/accelerator_check.sh OUT_DIR
#
# The data of the reference training, one of:
#   FER2013_CSV    the challenge's fer2013.csv; the data set is built from it
#   FER_JAX_DATA   a data directory where fer2013 has been built already
# How much is done:
#   PARTS            of: tests benchmark training models populations (default:
#                    the first three)
#   MODELS, BATCHES  of the last two; see benchmark_models.sh and
#                    benchmark_populations.sh
#   EXTRAS           extras to install (default: cuda,test; on a TPU: tpu,test;
#                    add bench for the peers PyTorch and Keras). Empty: nothing
#                    is installed, the environment is used as it is
#   BENCHMARK_ROUNDS rounds of the benchmark (default: 10)
#   TRAIN_SECONDS    the training ends after the epoch that passes so many
#                    seconds (default: 3600), and what it reached is evaluated
#   TRAIN_FLAGS      further flags of the training, e.g. --config.train.epochs=50
#   FER_JAX_VENV, PYTHON   see environment.sh
#
# Each part goes on when another fails. summary.json says how each ended, and
# the exit status is 1 when one of them failed.
set -uo pipefail
[ $# -eq 1 ] || { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
mkdir -p "$1" || exit 1
out="$(cd "$1" && pwd)"
. "$(dirname "$0")/environment.sh"
cd "$(dirname "$0")/.." || exit 1

PARTS="${PARTS:-tests benchmark training}"
EXTRAS="${EXTRAS-cuda,test}"
train_seconds="${TRAIN_SECONDS:-3600}"
for name in $PARTS; do
  case "$name" in
    tests | benchmark | training | models | populations) ;;
    *) fail "PARTS: $name is not one of tests, benchmark, training, models," \
      'populations' ;;
  esac
done

if [ -n "$EXTRAS" ]; then
  prepare_environment "[$EXTRAS]"
else
  python="${FER_JAX_VENV:-${VIRTUAL_ENV:-.venv}}/bin/python"
  [ -x "$python" ] || python="$(interpreter)" || exit 1
fi
"$python" -c '
import jax
print("devices:", *jax.devices())
raise SystemExit(jax.default_backend() == "cpu")
' || fail 'JAX finds no accelerator here'

parts_json=''
failures=0
part() {
  local name="$1" start="$SECONDS" status
  shift
  echo "== $name"
  "$@" 2>&1 | tee "$out/$name.log"
  status="${PIPESTATUS[0]}"
  echo "== $name: exit status $status, $((SECONDS - start)) s"
  parts_json+="${parts_json:+, }\"$name\": {\"exit_status\": $status,"
  parts_json+=" \"seconds\": $((SECONDS - start))}"
  [ "$status" -eq 0 ] || failures=$((failures + 1))
  echo "{$parts_json}" >"$out/summary.json"
}

run_tests() {
  # One process: several would each want the accelerator's memory.
  "$python" -m pytest -q --junitxml="$out/tests.xml"
}

run_benchmark() {
  "$python" -m fer_jax benchmark --rounds="${BENCHMARK_ROUNDS:-10}" \
    --what=train_step,input,startup,recurrent --json="$out/benchmark.json"
}

run_models() {
  PYTHON="$python" BATCHES="${BATCHES:-64}" launch/benchmark_models.sh \
    "$out/models"
}

run_populations() {
  PYTHON="$python" launch/benchmark_populations.sh "$out/populations"
}

run_build() {
  "$python" -m fer_jax data build --dataset=fer2013 --source="$FER2013_CSV"
}

run_training() {
  # It leaves after the epoch that passes the limit; the checkpoint is whole.
  # shellcheck disable=SC2086  # TRAIN_FLAGS is a list of flags
  "$python" -m fer_jax train --config=configs/fer2013_residual_bilstm.py \
    --workdir="$workdir" --max_seconds="$train_seconds" ${TRAIN_FLAGS:-}
}

run_evaluation() {
  local split status=0
  for split in validation test; do
    "$python" -m fer_jax evaluate --workdir="$workdir" --split="$split" \
      --json="$out/metrics_$split.json" || status=1
  done
  "$python" -m fer_jax report --workdir="$workdir" || status=1
  # The report holds faces and stays where it is; its numbers are copied.
  cp "$workdir/config.json" "$workdir/run.json" "$workdir/metrics.jsonl" \
    "$out/" || status=1
  return "$status"
}

for name in $PARTS; do
  case "$name" in
    tests) part tests run_tests ;;
    benchmark) part benchmark run_benchmark ;;
    models) part models run_models ;;
    populations) part populations run_populations ;;
    training)
      workdir="$out/fer2013_residual_bilstm"
      if [ -n "${FER2013_CSV:-}" ]; then
        export FER_JAX_DATA="${FER_JAX_DATA:-$out/data}"
        part data run_build
      fi
      part training run_training
      part evaluation run_evaluation
      ;;
  esac
done
cat "$out/summary.json"
[ "$failures" -eq 0 ]
