#!/usr/bin/env bash
# The 7B model: 52 layers, 7.35 billion parameters, from raw text to a model that talks, on one node of eight GPUs.
#   bash run7b.sh --plan         what it will take: memory, hours, dollars, disk; for another node: --plan --gpus 8xA100-80GB
#   bash run7b.sh --rehearse     the same pipeline in miniature, in minutes, on any machine
#   bash run7b.sh                the whole run; the same command again goes on where it stopped
set -euo pipefail
cd "$(dirname "$0")"

# Width, heads and parameters follow from the depth. A step takes TOTAL_BATCH_SIZE tokens, always; DEVICE_BATCH_SIZE is the most
# sequences of 2,048 that a GPU may hold at once: how many it does hold is chosen to fit.
DEPTH=52
DEVICE_BATCH_SIZE=24
TOTAL_BATCH_SIZE=393216

# From here on both sizes are the same: pipeline.sh has the stages in their order.
source ./pipeline.sh
