#!/usr/bin/env bash
# Times ten runs of a model side by side against ten in a row, ours and
# PyTorch's, one record a model and batch size. About 25 minutes on two cores.
#
#   launch/benchmark_populations.sh [FOLDER]  (default: docs/records/populations)
#
#   MODELS, BATCHES   lists, such as MODELS="cnn_lstm_model3" BATCHES="4 64"
#   MAPPINGS, ROUNDS  of the benchmark (default: auto, 5)
#   PYTHON            interpreter of an environment with the extra `bench`
#
# Records that are there already are left as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${1:-docs/records/populations}"
python="${PYTHON:-python}"
mkdir -p "$folder"

for batch in ${BATCHES:-4 32 64}; do
  for model in ${MODELS:-cnn_lstm_model3 residual_bilstm}; do
    record="$folder/${model}_$batch.json"
    [ ! -e "$record" ] || continue
    "$python" -m fer_jax benchmark --what=population --members=10 \
      --model="$model" --batch_size="$batch" --peers=torch \
      --mappings="${MAPPINGS:-auto}" \
      --rounds="${ROUNDS:-5}" --warm_up=1 --turn_seconds=1 --json="$record"
  done
done
