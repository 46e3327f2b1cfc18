#!/usr/bin/env bash
# A run on a Slurm cluster. Before its time is up it saves and queues again, until it is done; so it does when a node fails or is taken.
#   sbatch slurm.sh                          the 3B on one node of eight GPUs
#   sbatch --nodes=2 slurm.sh run7b.sh       the 7B on two
#   sbatch --gres=none slurm.sh --rehearse   the 3B's pipeline in miniature, without GPUs
# Submit it in the checkout. All nodes must see that, and NANOCHAT_BASE_DIR. Flags of sbatch (--time, --partition, …) overrule these:
#SBATCH --job-name=nanochat
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --gres=gpu:8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
set -euo pipefail

NOTICE=false # whether the time is nearly up
STEP=        # srun
# shellcheck disable=SC2317 # a trap calls it
hear_notice() {
  NOTICE=true
  [ -z "$STEP" ] || kill -USR1 "$STEP" 2>/dev/null || true # which hands it on to every node
}
trap hear_notice USR1
trap : TERM # cancelled or preempted, which the nodes hear too: what comes of it is seen below

SCRIPT=run3b.sh
if [[ ${1:-} = *.sh ]]; then
  SCRIPT=$1
  shift
fi
[ -n "${SLURM_JOB_ID:-}" ] || { echo "error: Slurm has to start this: sbatch slurm.sh; on a machine of your own: bash $SCRIPT" >&2; exit 2; }
cd "$SLURM_SUBMIT_DIR"
[ -f pipeline.sh ] || { echo "error: $PWD is not the checkout: cd there, then sbatch slurm.sh" >&2; exit 2; }
[ -f "$SCRIPT" ] || { echo "error: there is no $SCRIPT in $PWD; the run scripts are run3b.sh and run7b.sh" >&2; exit 2; }

# Here, once: the nodes share the checkout, and two that make its .venv at a time spoil it.
source ./setup.sh
setup base

export NNODES="$SLURM_JOB_NUM_NODES"
read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
MASTER_PORT=${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # jobs that share a node do not meet
export MASTER_ADDR MASTER_PORT
[ -z "${SLURM_GPUS_ON_NODE:-}" ] || export NPROC_PER_NODE="${NPROC_PER_NODE:-$SLURM_GPUS_ON_NODE}"

# A node that has ended leaves the others alone, which may still be saving.
SRUN=(srun --ntasks-per-node=1 --cpu-bind=none --kill-on-bad-exit=0 --wait=0)
[ "$NNODES" = 1 ] || SRUN+=(--label)
status=75
if [ "$NOTICE" = false ]; then # which may have come during the set-up
  # shellcheck disable=SC2016 # each node puts its own number in
  "${SRUN[@]}" bash -c 'NODE_RANK=$SLURM_NODEID exec bash "$0" "$@"' "$SCRIPT" "$@" &
  STEP=$!
  [ "$NOTICE" = false ] || hear_notice
  while kill -0 "$STEP" 2>/dev/null; do wait "$STEP" || true; done # a signal ends a wait
  status=0
  wait "$STEP" || status=$?
fi
case $status in
  75 | 138 | 143) ;; # saved and stopped; or asked to stop before it listened
  *) exit "$status" ;;
esac

# A job that somebody has cancelled is no longer running for Slurm, and would come back to life.
until state=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T); do sleep 10; done
[ "$state" = RUNNING ] || exit 75
if [ "$NOTICE" = true ] && [ "$SECONDS" -lt "${MIN_RUN_S:-600}" ]; then
  echo "warning: the notice came after $SECONDS s, too soon to get anywhere; the job is held. More time (scontrol update JobId=$SLURM_JOB_ID TimeLimit=…), then: scontrol release $SLURM_JOB_ID" >&2
  scontrol requeuehold "$SLURM_JOB_ID" || true
elif scontrol requeue "$SLURM_JOB_ID"; then
  echo "job $SLURM_JOB_ID queues again and goes on from here"
else
  echo "warning: Slurm does not queue it again; the same sbatch goes on from here" >&2
fi
exit 75
