#!/usr/bin/env bash
# The 7B model: 52 layers, 7.35 billion parameters, from raw text to a trained model on one node of eight GPUs.
#   bash run7b.sh                the whole run; the same command again goes on where it stopped
#   bash run7b.sh --rehearse     the same pipeline in miniature, in minutes, on any machine
set -euo pipefail
cd "$(dirname "$0")"

DEPTH=52
DEVICE_BATCH_SIZE=24
TOTAL_BATCH_SIZE=393216
NUM_SHARDS=1170 # 58.8 B tokens, 8 a parameter, at 52 M tokens a shard, and a few to spare

source ./pipeline.sh
