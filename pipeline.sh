# Sourced by run3b.sh and run7b.sh, which set the sizes: the stages of a run in their order. What is done is skipped, what was cut
# off goes on. What may be set in the environment (the README has the whole table):
#   DATA                      text: climbmix, fineweb-edu, or path:DIR for files of your own
#   PRECISION                 bf16, or fp8 on GPUs that have it
#   TARGET_PARAM_DATA_RATIO   tokens for each parameter, 8: how long base training is
#   CONVERSATIONS, PERSONA    your own conversations (JSON lines) for fine-tuning; who the model says that it is (TOML)
#   WANDB_RUN, CHECKPOINT_MIRROR, NPROC_PER_NODE, NNODES, NODE_RANK, MASTER_ADDR, NUM_SHARDS, NANOCHAT_BASE_DIR, …

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

GPUS=$(timeout 60 nvidia-smi -L 2>/dev/null | grep -c '^GPU') || GPUS=0
if [ "$REHEARSE$PLAN" = falsefalse ] && [ "$GPUS" = 0 ] && [ -z "${NPROC_PER_NODE:-}" ]; then
  echo "error: this machine has no NVIDIA GPU, and a model of depth $DEPTH needs some, at best eight; to see the whole pipeline in miniature: bash ${0##*/} --rehearse" >&2
  exit 2
fi

for name in NPROC_PER_NODE NNODES NODE_RANK NUM_SHARDS MAX_RESTARTS; do
  [[ "${!name:-0}" =~ ^[0-9]+$ ]] || { echo "error: $name=${!name}: must be a whole number" >&2; exit 2; }
done

[ -n "${NANOCHAT_BASE_DIR:-${HOME:-}}" ] || { echo "error: there is no HOME: set NANOCHAT_BASE_DIR to the directory where everything is to be kept" >&2; exit 2; }

DATA=${DATA:-climbmix}
SIZE=(--depth="$DEPTH" --device_batch_size="$DEVICE_BATCH_SIZE" ${PRECISION:+--precision="$PRECISION"})
LENGTH=(${TARGET_PARAM_DATA_RATIO:+--target_param_data_ratio="$TARGET_PARAM_DATA_RATIO"})
for name in CONVERSATIONS PERSONA; do
  [ -z "${!name:-}" ] || [ -f "${!name}" ] || { echo "error: $name=${!name}: there is no such file" >&2; exit 2; }
done

# First of all the packages, in .venv; then, where that was asked for, the plan, and nothing else.
source ./setup.sh
if [ "$PLAN" = true ]; then
  setup base >&2
  exec python -m scripts.plan "${SIZE[@]}" --total_batch_size="$TOTAL_BATCH_SIZE" ${LENGTH[@]+"${LENGTH[@]}"} --nodes="${NNODES:-1}" \
    ${NPROC_PER_NODE:+--nproc_per_node="$NPROC_PER_NODE"} --data="$DATA" ${PLAN_FLAGS[@]+"${PLAN_FLAGS[@]}"}
fi
setup base
SECONDS=0

# What each stage is asked for. The rehearsal asks the same of a model of 4 layers and 5 million parameters.
VOCAB_SIZE=65536
TOKENIZER_SHARDS=8 # 2 billion characters, all that the tokenizer is trained on
case $DATA in
  climbmix | fineweb-edu) ;;
  *) TOKENIZER_SHARDS=-1 NUM_SHARDS=-1 ;; # all of a text of your own
esac
TRAIN_FLAGS=("${SIZE[@]}" --total_batch_size="$TOTAL_BATCH_SIZE" ${LENGTH[@]+"${LENGTH[@]}"})
TUNE_FLAGS=("${SIZE[@]}" --total_batch_size=$((TOTAL_BATCH_SIZE / ${NNODES:-1}))) # a node's
PREFLIGHT_FLAGS=("${TRAIN_FLAGS[@]}")
LOSS_FLAGS=(--device_batch_size="$DEVICE_BATCH_SIZE")
CORE_FLAGS=() CHAT_FLAGS=() RL_FLAGS=()
MID_FLAGS=(${PERSONA:+--persona="$PERSONA"})
SFT_FLAGS=(${PERSONA:+--persona="$PERSONA"} ${CONVERSATIONS:+--conversations="$CONVERSATIONS"})
MADE_HERE=SpellingBee,Arithmetic,WordProblems,Instructions,Identity
if [ "$REHEARSE" = true ]; then
  DEPTH=4 DATA=python VOCAB_SIZE=4096 TOKENIZER_SHARDS=3 NUM_SHARDS=3
  TRAIN_FLAGS=(--depth=4 --max_seq_len=512 --device_batch_size=8 --total_batch_size=4096 --num_iterations=100
    --matrix_lr=0.04 --warmdown_ratio=0.5 --eval_every=50 --eval_tokens=65536 --sample_every=100 --save_every=25)
  TUNE_FLAGS=(--depth=4 --vocab_size=4096 --max_seq_len=512 --device_batch_size=8 --total_batch_size=4096 --quick)
  PREFLIGHT_FLAGS=(--depth=4 --vocab_size=4096 --max_seq_len=512 --device_batch_size=8 --total_batch_size=4096 --num_iterations=100 --save_every=25)
  LOSS_FLAGS=(--device_batch_size=8 --train_tokens=65536)
  CORE_FLAGS=(--bundle=small)
  CHAT_FLAGS=(-a "$MADE_HERE" -x 384)
  SHORT=(--device_batch_size=4 --total_batch_size=2048 --matrix_lr=0.04 --eval_tokens=32768)
  MID_FLAGS=("${SHORT[@]}" --tasks="$MADE_HERE" --weights=SpellingBee=0.04,Arithmetic=0.04,WordProblems=0.04,Instructions=0.14,Identity=0.15
    --num_iterations=250 --warmdown_ratio=0.5 --eval_every=125 --sample_every=250 --save_every=50)
  SFT_FLAGS=("${SHORT[@]}" --tasks="$MADE_HERE" --weights=SpellingBee=0.02,Arithmetic=0.02,WordProblems=0.02,Instructions=0.1,Identity=0.1
    --num_iterations=80 --init_lr_frac=0.5 --eval_every=80 --sample_every=80 --save_every=40)
  RL_FLAGS=(--tasks=Instructions,SpellingBee --num_iterations=8 --examples_per_step=32 --num_samples=16 --max_new_tokens=64 --max_seq_len=128
    --device_batch_size=32 --init_lr_frac=0.07 --eval_every=-1 --sample_every=8 --save_every=4)
fi
TAG=d$DEPTH
TOKENIZER=$DATA-$VOCAB_SIZE
export NANOCHAT_BASE_DIR="${NANOCHAT_BASE_DIR:-$HOME/.cache/nanochat}"
RUN=$NANOCHAT_BASE_DIR/runs/$TAG

NPROC_PER_NODE=${NPROC_PER_NODE:-$((GPUS > 0 ? GPUS : 1))}
# The rehearsal's small batches split over 1, 2 or 4 ranks only, those of all nodes together.
while [ "$REHEARSE" = true ] && [ "$NPROC_PER_NODE" -gt 1 ] && [ $((4 % (NPROC_PER_NODE * ${NNODES:-1}))) != 0 ]; do
  NPROC_PER_NODE=$((NPROC_PER_NODE - 1))
done
if [ "$REHEARSE" = false ] && [ $((TOTAL_BATCH_SIZE % (2048 * NPROC_PER_NODE * ${NNODES:-1}))) != 0 ]; then
  echo "error: $TOTAL_BATCH_SIZE tokens a step do not split into sequences of 2,048 over $NPROC_PER_NODE GPUs × ${NNODES:-1} nodes; set NPROC_PER_NODE to a number that divides, such as 4" >&2
  exit 2
fi
if [ "${NNODES:-1}" -gt 1 ]; then
  LAUNCH=(python -m scripts.launch --nnodes="$NNODES" --node_rank="${NODE_RANK:?with NNODES=$NNODES set NODE_RANK: 0 on the first node, 1 on the next, …}"
    --master_addr="${MASTER_ADDR:?with NNODES=$NNODES set MASTER_ADDR: the address of the first node}" --master_port="${MASTER_PORT:-29500}")
else
  LAUNCH=(python -m scripts.launch --standalone)
fi
LAUNCH+=(--nproc_per_node="$NPROC_PER_NODE")

source ./stages.sh

# Is the machine in order? Before anything is fetched: what is red stops the run; a rehearsal, which costs nothing, only hears of it.
if [ -z "${SKIP_PREFLIGHT:-}" ] && [ ! -d "$RUN/rl/model" ]; then
  PREFLIGHT=(python -m scripts.preflight)
  [ "${NNODES:-1}" = 1 ] || PREFLIGHT=("${LAUNCH[@]}" -m scripts.preflight --)
  found=0
  stage "preflight" "${PREFLIGHT[@]}" "${PREFLIGHT_FLAGS[@]}" --nodes="${NNODES:-1}" --nproc_per_node="$NPROC_PER_NODE" --data="$DATA" || found=$?
  if [ "$REHEARSE" = false ] && { [ "$found" = 2 ] || { [ "$found" != 0 ] && [ "${NNODES:-1}" != 1 ]; }; }; then
    echo "nothing was begun; mend what is red, or go on with it: SKIP_PREFLIGHT=1 $AGAIN"
    exit "$found"
  fi
  [ "$found" = 0 ] || echo "warning: the preflight ended with $found; the run goes on" >&2
fi
# A new node has nothing: what the old one has copied away is brought back first, and what it had finished is not done again.
if [ -n "${CHECKPOINT_MIRROR:-}" ] && [ ! -d "$RUN/base/model" ] && [ "${NODE_RANK:-0}" = 0 ]; then
  stage "what the mirror has" python -m scripts.mirror --fetch --model_tag="$TAG" || [ -e "$RUN/base/checkpoints/latest" ]
fi
if [ "$REHEARSE" = false ] && [ ! -d "$RUN/base/model" ]; then
  # One line and the end, before anything is fetched, where the GPUs or the disk are too small.
  NEEDED_SHARDS=$(python -m scripts.plan "${TRAIN_FLAGS[@]}" --nodes="${NNODES:-1}" --nproc_per_node="$NPROC_PER_NODE" --data="$DATA" \
    --check --field=text_shards)
  NUM_SHARDS=${NUM_SHARDS:-$NEEDED_SHARDS}
fi
NUM_SHARDS=${NUM_SHARDS:-$TOKENIZER_SHARDS} # after base training no more text is wanted

# Whether a stage's result is there, made of the very weights that its model has.
is_there() {
  local weights
  weights=$(sed -n 's/^ *"weights": "\([0-9a-f]*\)".*/\1/p' "${RUN:?}/${1%/*}/model/checksums.json" 2>/dev/null)
  [ -n "$weights" ] && grep -qs "\"weights\": \"$weights\"" "$RUN/$1"
}

# Text first: a few shards are enough to begin with, the rest arrives while the GPUs are tuned and the tokenizer is trained.
stage "text, enough for the tokenizer" python -m scripts.dataset --data "$DATA" --num_shards "$TOKENIZER_SHARDS"
if [ "$NUM_SHARDS" -gt "$TOKENIZER_SHARDS" ]; then
  stage "the rest of the text, in the background" true
  TERM=dumb begin python -m scripts.dataset --data "$DATA" --num_shards "$NUM_SHARDS"
  DOWNLOAD=$!
fi
# Once a machine and version of torch; while the text is on its way nothing else wants the GPUs.
if [ ! -d "$RUN/base/model" ]; then
  stage "kernels and step, tuned for this machine" python -m scripts.tune --once --world_size="$NPROC_PER_NODE" "${TUNE_FLAGS[@]}" || {
    echo "warning: this machine could not be tuned; the run goes on with defaults, perhaps more slowly" >&2
  }
fi
# Text becomes numbers: byte pairs are learned once, then every shard of text becomes a shard of tokens.
stage "tokenizer" python -m scripts.tok_train --data "$DATA" --vocab_size "$VOCAB_SIZE"
stage "tokenizer, evaluated" python -m scripts.tok_eval --data "$DATA" --tokenizer "$TOKENIZER"
[ -z "$DOWNLOAD" ] || await "$DOWNLOAD"
DOWNLOAD=
stage "token shards" python -m scripts.tok_encode --data "$DATA" --tokenizer "$TOKENIZER"

# Nearly all of the hours and dollars: the model reads, and learns to guess the next token. Then, what it knows: bits per byte on text
# that it has not seen, CORE's questions, and what it makes of a question when nobody has taught it to answer.
TRAINING=true
training base "base training" scripts.base_train --data="$DATA" --tokenizer="$TOKENIZER" "${TRAIN_FLAGS[@]}"
is_there base/base_loss.json || evaluation "bits per byte" "${LAUNCH[@]}" -m scripts.base_loss -- \
  --data="$DATA" --model_tag="$TAG" "${LOSS_FLAGS[@]}"
is_there base/core.json || evaluation "CORE" "${LAUNCH[@]}" -m scripts.base_eval -- --model_tag="$TAG" ${CORE_FLAGS[@]+"${CORE_FLAGS[@]}"}
is_there base/chat_eval.json || evaluation "the base model, asked" "${LAUNCH[@]}" -m scripts.chat_eval -- \
  -i base --model_tag="$TAG" -a "$MADE_HERE" -x 192

# It learns what a conversation looks like, what a tool call is, and who it is.
training mid "midtraining" scripts.mid_train --model_tag="$TAG" ${MID_FLAGS[@]+"${MID_FLAGS[@]}"}
is_there mid/chat_eval.json || evaluation "midtraining, evaluated" "${LAUNCH[@]}" -m scripts.chat_eval -- \
  -i mid --model_tag="$TAG" ${CHAT_FLAGS[@]+"${CHAT_FLAGS[@]}"}

# It learns to answer well, from fewer and better conversations, and from your own.
training sft "supervised fine-tuning" scripts.chat_sft --model_tag="$TAG" ${SFT_FLAGS[@]+"${SFT_FLAGS[@]}"}
is_there sft/chat_eval.json || evaluation "fine-tuning, evaluated" "${LAUNCH[@]}" -m scripts.chat_eval -- \
  -i sft --model_tag="$TAG" ${CHAT_FLAGS[@]+"${CHAT_FLAGS[@]}"}

# It answers, is told which answers were right, and makes those likelier.
training rl "reinforcement learning" scripts.chat_rl --model_tag="$TAG" ${RL_FLAGS[@]+"${RL_FLAGS[@]}"}
is_there rl/chat_eval.json || evaluation "reinforcement learning, evaluated" "${LAUNCH[@]}" -m scripts.chat_eval -- \
  -i rl --model_tag="$TAG" ${CHAT_FLAGS[@]+"${CHAT_FLAGS[@]}"}
TRAINING=false

# What it took, what came of it, and what was predicted.
stage "report" python -m scripts.report --model_tag="$TAG"
if [ -n "${CHECKPOINT_MIRROR:-}" ] && [ "${NODE_RANK:-0}" = 0 ]; then
  stage "the last models and figures, to the mirror" python -m scripts.mirror --model_tag="$TAG" ||
    echo "warning: the mirror has not taken everything; python -m scripts.mirror --model_tag=$TAG tries it again" >&2
fi

echo
echo "done in $((SECONDS / 60)) min $((SECONDS % 60)) s. The models: $RUN/{base,mid,sft,rl}/model (transformers opens them); how it went: cat report.md"
echo "next: source .venv/bin/activate && python -m scripts.chat_web, or python -m scripts.chat_cli"
