#!/usr/bin/env bash
# Times train steps of all models beside their peers, one record a model and
# batch size. About an hour and a half on two cores if nothing is left out.
#
#   launch/benchmark_models.sh [FOLDER]     (default: docs/records/models)
#
#   MODELS, BATCHES   lists, such as MODELS="cnn_model1 vgg16_gru" BATCHES="4 64"
#   WHAT              of the benchmark (default: train_step,compilation)
#   STEPS             of an epoch of Keras, and at least to warm up (default: 8; 1 or 2
#                     where a step takes seconds)
#   ROUNDS            in which every contender takes its turn (default: 5)
#   PEERS             such as torch,keras_tensorflow (default: all)
#   PYTHON            interpreter of an environment with the extra `bench`
#
# Records that are there already are left as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
folder="${1:-docs/records/models}"
python="${PYTHON:-python}"
mkdir -p "$folder"
all='residual_lstm residual_gru residual_bilstm cnn_model1 cnn_lstm_model2
cnn_lstm_model3 basic_cnn improved_cnn densenet121_gru vgg16_gru xception_gru'

for batch in ${BATCHES:-64 4 32 256}; do
  for model in ${MODELS:-$all}; do
    record="$folder/${model}_$batch.json"
    [ ! -e "$record" ] || continue
    "$python" -m fer_jax benchmark --what="${WHAT:-train_step,compilation}" \
      --model="$model" --batch_size="$batch" --rounds="${ROUNDS:-5}" --turn_seconds=0.5 \
      --warm_up="${STEPS:-8}" --steps_per_epoch="${STEPS:-8}" \
      --peers="${PEERS:-flax,torch,keras_tensorflow,keras_jax}" \
      --json="$record"
  done
done
