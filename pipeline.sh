# Sourced by run3b.sh and run7b.sh, which set the sizes: the stages in order. What is done is skipped, what was cut off goes on.

REHEARSE=false
PLAN=false
PLAN_FLAGS=()
for argument in "$@"; do
  case $PLAN$argument in
    false--rehearse) REHEARSE=true ;;
    false--plan) PLAN=true ;;
    true*) PLAN_FLAGS+=("$argument") ;;
    *) echo "error: $argument: the flags are --rehearse and --plan (what follows it goes to scripts.plan); sizes are set at the top of ${0##*/}" >&2; exit 2 ;;
  esac
done

GPUS=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || GPUS=0
if [ "$REHEARSE$PLAN" = falsefalse ] && [ "$GPUS" = 0 ] && [ -z "${NPROC_PER_NODE:-}" ]; then
  echo "error: this machine has no NVIDIA GPU, and a model of depth $DEPTH needs eight; to see the whole pipeline in miniature: bash ${0##*/} --rehearse" >&2
  exit 2
fi

for name in NPROC_PER_NODE NNODES NODE_RANK NUM_SHARDS; do
  [[ "${!name:-0}" =~ ^[0-9]+$ ]] || { echo "error: $name=${!name}: must be a whole number" >&2; exit 2; }
done

DATA=climbmix
source ./setup.sh
if [ "$PLAN" = true ]; then
  setup base >&2
  exec python -m scripts.plan --depth="$DEPTH" --device_batch_size="$DEVICE_BATCH_SIZE" --total_batch_size="$TOTAL_BATCH_SIZE" \
    --nodes="${NNODES:-1}" ${NPROC_PER_NODE:+--nproc_per_node="$NPROC_PER_NODE"} --data="$DATA" ${PLAN_FLAGS[@]+"${PLAN_FLAGS[@]}"}
fi
setup base
SECONDS=0

VOCAB_SIZE=65536
TOKENIZER_SHARDS=8 # 2 billion characters, all that the tokenizer is trained on
TRAIN_FLAGS=(--depth="$DEPTH" --device_batch_size="$DEVICE_BATCH_SIZE" --total_batch_size="$TOTAL_BATCH_SIZE")
LOSS_FLAGS=(--device_batch_size="$DEVICE_BATCH_SIZE")
if [ "$REHEARSE" = true ]; then
  DEPTH=4 DATA=python VOCAB_SIZE=4096 TOKENIZER_SHARDS=3 NUM_SHARDS=3
  TRAIN_FLAGS=(--depth=4 --max_seq_len=512 --device_batch_size=8 --total_batch_size=4096 --num_iterations=120
    --matrix_lr=0.04 --warmdown_ratio=0.5 --eval_every=60 --eval_tokens=65536 --sample_every=120 --save_every=30)
  LOSS_FLAGS=(--device_batch_size=8 --train_tokens=65536)
fi
TAG=d$DEPTH
TOKENIZER=$DATA-$VOCAB_SIZE
export NANOCHAT_BASE_DIR="${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat}"
RUN=$NANOCHAT_BASE_DIR/runs/$TAG

if [ -z "${NPROC_PER_NODE:-}" ]; then
  NPROC_PER_NODE=$((GPUS > 0 ? GPUS : 1))
  # The rehearsal's small batch splits over 1, 2, 4 or 8 ranks only.
  while [ "$REHEARSE" = true ] && [ $((8 % NPROC_PER_NODE)) != 0 ]; do NPROC_PER_NODE=$((NPROC_PER_NODE - 1)); done
fi
if [ "$REHEARSE" = false ] && [ $((TOTAL_BATCH_SIZE % (2048 * NPROC_PER_NODE * ${NNODES:-1}))) != 0 ]; then
  echo "error: $TOTAL_BATCH_SIZE tokens a step do not split into sequences of 2,048 over $NPROC_PER_NODE GPUs × ${NNODES:-1} nodes; set NPROC_PER_NODE to a number that divides, such as 4" >&2
  exit 2
fi
if [ "${NNODES:-1}" -gt 1 ]; then
  LAUNCH=(--nnodes="$NNODES" --node_rank="${NODE_RANK:?with NNODES=$NNODES set NODE_RANK: 0 on the first node, 1 on the next, …}"
    --master_addr="${MASTER_ADDR:?with NNODES=$NNODES set MASTER_ADDR: the address of the first node}" --master_port="${MASTER_PORT:-29500}")
else
  LAUNCH=(--standalone)
fi
LAUNCH+=(--nproc_per_node="$NPROC_PER_NODE")

if [ "$REHEARSE" = false ] && [ ! -d "$RUN/base/model" ]; then
  # One line and the end, before anything is fetched, where the GPUs or the disk are too small.
  NEEDED_SHARDS=$(python -m scripts.plan "${TRAIN_FLAGS[@]}" --nodes="${NNODES:-1}" --nproc_per_node="$NPROC_PER_NODE" --data="$DATA" \
    --check --field=text_shards)
  NUM_SHARDS=${NUM_SHARDS:-$NEEDED_SHARDS}
fi

# Show a stage's command, then run it.
stage() {
  echo
  echo "== $1 ($((SECONDS / 60)) min $((SECONDS % 60)) s)"
  shift
  echo "\$ $*"
  "$@"
}

stage "text, enough for the tokenizer" python -m scripts.dataset --data "$DATA" --num_shards "$TOKENIZER_SHARDS"
DOWNLOAD=
if [ "$NUM_SHARDS" -gt "$TOKENIZER_SHARDS" ]; then
  stage "the rest of the text, in the background" true
  TERM=dumb python -m scripts.dataset --data "$DATA" --num_shards "$NUM_SHARDS" &
  DOWNLOAD=$!
  trap 'kill "$DOWNLOAD" 2>/dev/null || true' EXIT
fi
stage "tokenizer" python -m scripts.tok_train --data "$DATA" --vocab_size "$VOCAB_SIZE"
stage "tokenizer, evaluated" python -m scripts.tok_eval --data "$DATA" --tokenizer "$TOKENIZER"
[ -z "$DOWNLOAD" ] || wait "$DOWNLOAD"
stage "token shards" python -m scripts.tok_encode --data "$DATA" --tokenizer "$TOKENIZER"
# A rank that runs out of memory stops all of them, halves the micro-batch, and leaves a message for whoever starts them again.
STARTS=1 BEFORE=$(stat -c "%i %.9Y" "$RUN/base/again" 2>/dev/null || true)
until stage "base training" torchrun "${LAUNCH[@]}" -m scripts.base_train -- \
  --data="$DATA" --tokenizer="$TOKENIZER" "${TRAIN_FLAGS[@]}"; do
  AFTER=$(stat -c "%i %.9Y" "$RUN/base/again" 2>/dev/null || true)
  [ "$AFTER" != "$BEFORE" ] && [ -s "$RUN/base/again" ] && [ "$((STARTS += 1))" -le 8 ] || exit 1
  BEFORE=$AFTER
  echo "starting again: $(cat "$RUN/base/again")"
done
[ "$RUN/base/base_loss.json" -nt "$RUN/base/model" ] || stage "bits per byte" torchrun "${LAUNCH[@]}" -m scripts.base_loss -- \
  --data="$DATA" --model_tag="$TAG" "${LOSS_FLAGS[@]}"
stage "a sample" python -m scripts.chat_cli --base --model_tag "$TAG" -p "The function returns" --max_tokens 48

echo
echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s. The model: $RUN/base/model (transformers opens it); its metrics: $RUN/base/metrics.jsonl"
echo "next: source .venv/bin/activate && python -m scripts.chat_cli --base -p \"Once upon a time\""
