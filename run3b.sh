#!/usr/bin/env bash
# The 3B model: 38 layers, 3.02 billion parameters, from raw text to a model that talks, on one node of eight GPUs.
#   bash run3b.sh --plan         what it will take: memory, hours, dollars, disk; for another node: --plan --gpus 8xA100-80GB
#   bash run3b.sh --rehearse     the same pipeline in miniature, in minutes, on any machine
#   bash run3b.sh                the whole run; the same command again goes on where it stopped
set -euo pipefail
cd "$(dirname "$0")"

# Width, heads and parameters follow from the depth. A step takes TOTAL_BATCH_SIZE tokens, always; DEVICE_BATCH_SIZE is the most
# sequences of 2,048 that a GPU may hold at once: how many it does hold is chosen to fit.
DEPTH=38
DEVICE_BATCH_SIZE=48
TOTAL_BATCH_SIZE=786432

# From here on both sizes are the same: pipeline.sh has the stages in their order.
source ./pipeline.sh
