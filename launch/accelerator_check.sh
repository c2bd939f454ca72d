#!/usr/bin/env bash
# On a machine with an accelerator: the benchmark, a training that is killed and
# goes on, the tests, and the reference training with its evaluation and report;
# if asked, the train steps of all models. Results as JSON under OUT_DIR, and all
# of them in OUT_DIR/results.tar.gz.
#
#   launch/accelerator_check.sh OUT_DIR
#
#   PARTS="steps recurrent" PART_SECONDS=120 launch/accelerator_check.sh OUT_DIR
#
# The data of the reference training, one of the following; with neither, the
# quickstart is trained on faces that it renders:
#   FER2013_CSV    the challenge's fer2013.csv; the data set is built from it
#   FER_JAX_DATA   a data directory where fer2013 has been built already
# Where packages come from:
#   EXTRAS         extras to install (default: cuda,test; on a TPU: tpu,test; add
#                  bench for the peers PyTorch and Keras). Empty: nothing is
#                  installed, the environment is used as it is
#   WHEELS         folder of wheels of what that environment lacks, for a machine
#                  without a network; EXTRAS is empty then
#   FER_JAX_VENV, PYTHON   see environment.sh
# How much is done:
#   PARTS            in this order, of: steps (train step, input, start-up),
#                    recurrent (layers by each backend), populations (by each
#                    mapping), torture (three lives, bits compared), tests,
#                    training, models (default: all but the last)
#   PART_SECONDS     each part is interrupted after so many (default: no limit);
#                    what it has measured by then is kept
#   ROUNDS           of each measurement (default: 5)
#   PEERS            of the measurements (default: flax,torch)
#   MODELS, BATCHES  of models and populations; see benchmark_models.sh and
#                    benchmark_populations.sh
#   TESTS            what pytest runs (default: the layers, the models and a step
#                    of training; all else has been run on a CPU)
#   TEST_WORKERS     processes that share the tests and the device (default: 8)
#   TRAIN_SECONDS    the training ends after the epoch that passes so many
#                    seconds (default: 3600), and what it reached is evaluated
#   TRAIN_FLAGS      further flags of the training, e.g. --config.train.epochs=50
#   REHEARSE         not empty: goes on without an accelerator
#
# Each part goes on when another fails. summary.json says how each ended, and
# the exit status is 1 when one of them failed.
set -uo pipefail
[ $# -eq 1 ] || { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2; exit 2; }
mkdir -p "$1" || exit 1
out="$(cd "$1" && pwd)"
. "$(dirname "$0")/environment.sh"
[ -z "${WHEELS:-}" ] || WHEELS="$(absolute "$WHEELS")"
cd "$(dirname "$0")/.." || exit 1

PARTS="${PARTS:-steps recurrent populations torture tests training}"
[ -z "${WHEELS:-}" ] || EXTRAS=''
EXTRAS="${EXTRAS-cuda,test}"
TESTS="${TESTS:-tests/nn tests/models tests/training/test_golden_steps.py \
tests/training/test_step.py tests/training/test_optim.py}"
for name in $PARTS; do
  case "$name" in
    steps | recurrent | populations | torture | tests | training | models) ;;
    *) fail "PARTS: $name is not one of steps, recurrent, populations," \
      'torture, tests, training, models' ;;
  esac
done

# What is large and stays here: data, workdirs, packages.
work="$out/work"
mkdir -p "$work" || exit 1
if [ -n "$EXTRAS" ]; then
  prepare_environment "[$EXTRAS]"
else
  python="${FER_JAX_VENV:-${VIRTUAL_ENV:-.venv}}/bin/python"
  [ -x "$python" ] || python="$(interpreter)" || exit 1
fi
if [ -n "${WHEELS:-}" ]; then
  "$python" -m pip install --quiet --disable-pip-version-check --no-index \
    --no-deps --upgrade --target "$work/packages" "$WHEELS"/*.whl ||
    fail "pip could not install the wheels of WHEELS=$WHEELS"
fi
export PYTHONPATH="$work/packages:$PWD${PYTHONPATH:+:$PYTHONPATH}"
platform="$("$python" -c '
import jax
import fer_jax.datasets.synthetic_faces, fer_jax.training.loop
from fer_jax import provenance
print(provenance.environment(), provenance.versions(
  ("tensorflow-datasets", "grain", "ml-collections", "pytest", "torch", "keras")
))
print(jax.default_backend())
' | tee "$out/environment.log" | tail -n 1)" ||
  fail "the packages of $python do not do; what they lack is said above"
head -n 1 "$out/environment.log"
[ "$platform" != cpu ] || [ -n "${REHEARSE:-}" ] ||
  fail 'JAX finds no accelerator here'

limit=()
[ -z "${PART_SECONDS:-}" ] ||
  limit=(timeout --signal=INT --kill-after=30 "$PART_SECONDS")
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
  return "$status"
}

# Equal bits want the same order of sums in each run. `highest` is float32 where
# the default is TF32, which no tolerance of the tests allows for.
exactly() {
  local flags="${XLA_FLAGS:-}"
  [ "$platform" != gpu ] || flags+=' --xla_gpu_deterministic_ops=true'
  env XLA_FLAGS="$flags" CUBLAS_WORKSPACE_CONFIG=:4096:8 \
    JAX_DEFAULT_MATMUL_PRECISION=highest XLA_PYTHON_CLIENT_PREALLOCATE=false \
    "$@"
}

benchmark() {
  "${limit[@]}" "$python" -m fer_jax benchmark --rounds="${ROUNDS:-5}" \
    --turn_seconds=0.5 --peers="${PEERS:-flax,torch}" --json="$out/$1.json" \
    "${@:2}"
}

run_models() {
  PYTHON="$python" BATCHES="${BATCHES:-64}" PEERS="${PEERS:-flax,torch}" \
    "${limit[@]}" launch/benchmark_models.sh "$out/models"
}

run_populations() {
  PYTHON="$python" BATCHES="${BATCHES:-4 64}" ROUNDS="${ROUNDS:-5}" \
    MODELS="${MODELS:-residual_bilstm}" MAPPINGS=vmap,in_turn \
    "${limit[@]}" launch/benchmark_populations.sh "$out/populations"
}

run_torture() {
  exactly "${limit[@]}" "$python" -m fer_jax torture --kills=2 --terms=1 \
    --workdir="$work/torture" --json="$out/torture.json"
}

run_tests() {
  # Several processes share the device, so none may take its memory beforehand.
  # shellcheck disable=SC2086  # TESTS is a list
  exactly "${limit[@]}" "$python" -m pytest -q -n "${TEST_WORKERS:-8}" \
    --continue-on-collection-errors --junitxml="$out/tests.xml" $TESTS
}

run_build() {
  "$python" -m fer_jax data build --dataset=fer2013 --source="$FER2013_CSV"
}

run_training() {
  # It leaves after the epoch that passes the limit; the checkpoint is whole.
  # shellcheck disable=SC2086  # TRAIN_FLAGS is a list of flags
  "${limit[@]}" "$python" -m fer_jax train --config="configs/$config.py" \
    --workdir="$work/$config" --max_seconds="${TRAIN_SECONDS:-3600}" \
    ${TRAIN_FLAGS:-}
}

run_evaluation() {
  local split status=0
  for split in validation test; do
    "$python" -m fer_jax evaluate --workdir="$work/$config" --split="$split" \
      --json="$out/metrics_$split.json" || status=1
  done
  "$python" -m fer_jax report --workdir="$work/$config" || status=1
  # The report holds faces and stays where it is; its numbers are copied.
  cp "$work/$config/config.json" "$work/$config/run.json" \
    "$work/$config/metrics.jsonl" "$out/" || status=1
  return "$status"
}

for name in $PARTS; do
  case "$name" in
    steps) part steps benchmark steps --what=train_step,input,startup ;;
    recurrent)
      part recurrent benchmark recurrent --what=recurrent --backends=auto,fused
      ;;
    populations) part populations run_populations ;;
    torture) part torture run_torture ;;
    tests) part tests run_tests ;;
    models) part models run_models ;;
    training)
      config=quickstart
      if [ -n "${FER2013_CSV:-}${FER_JAX_DATA:-}" ]; then
        config=fer2013_residual_bilstm
      fi
      export FER_JAX_DATA="${FER_JAX_DATA:-$work/data}"
      [ -z "${FER2013_CSV:-}" ] || part data run_build
      if part training run_training; then
        part evaluation run_evaluation
      fi
      ;;
  esac
done
cat "$out/summary.json"
tar -C "$out" --exclude=./work --exclude=./results.tar.gz \
  -czf "$out/results.tar.gz" .
[ "$failures" -eq 0 ]
