#!/usr/bin/env bash
# The 3B model: 38 layers, 3.02 billion parameters, from raw text to a trained model on one node of eight GPUs.
#   bash run3b.sh                the whole run; the same command again goes on where it stopped
#   bash run3b.sh --plan         what it will take: memory, hours, dollars, disk; for another node: --plan --gpus 8xA100-80GB
#   bash run3b.sh --rehearse     the same pipeline in miniature, in minutes, on any machine
set -euo pipefail
cd "$(dirname "$0")"

DEPTH=38
DEVICE_BATCH_SIZE=48
TOTAL_BATCH_SIZE=786432

source ./pipeline.sh
