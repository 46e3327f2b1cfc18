#!/usr/bin/env bash
# The 7B model: 52 layers, 7.35 billion parameters, from raw text to a trained model on one node of eight GPUs.
#   bash run7b.sh                the whole run; the same command again goes on where it stopped
#   bash run7b.sh --plan         what it will take: memory, hours, dollars, disk; for another node: --plan --gpus 8xA100-80GB
#   bash run7b.sh --rehearse     the same pipeline in miniature, in minutes, on any machine
set -euo pipefail
cd "$(dirname "$0")"

DEPTH=52
DEVICE_BATCH_SIZE=24
TOTAL_BATCH_SIZE=393216

source ./pipeline.sh
