# Sourced by pipeline.sh: how a stage is run, what is done when it fails, and what when somebody asks the run to stop.

STOPPED= # the first signal that came
CHILD=   # the command that is waited for
DOWNLOAD= TRAINING=false
AGAIN="bash ${0##*/}${*:+ $*}"
export NANOCHAT_DIES_WITH=$$ # what this script starts ends with it, even when it is killed

# Hand a signal on to the command that runs; the second one ends it at once.
ask_to_stop() {
  STOPPED=${STOPPED:-$1}
  [ -z "$CHILD" ] || kill -"$1" -- "-$CHILD" 2>/dev/null || true
}
for name in TERM INT HUP USR1; do trap "ask_to_stop $name" "$name"; done

# Wait for a command in the background to end, through signals; where it, or this script, was asked to stop, the run ends with 75.
await() {
  local status
  CHILD=$1
  while :; do
    status=0
    wait "$CHILD" || status=$?
    kill -0 "$CHILD" 2>/dev/null || break
  done
  CHILD=
  [ -z "$STOPPED" ] || [ "$status" = 2 ] || status=75 # whatever the command has made of it
  case $status in
    75 | 129 | 130 | 138 | 143)
      echo "stopped: $AGAIN goes on from here" || true
      exit 75
      ;;
    2) [ -z "$STOPPED" ] || exit 2 ;; # it could not be saved, which it has said
  esac
  return "$status"
}

# Start a command in the background, in a process group of its own: a Ctrl-C reaches this script alone, which hands it on once.
begin() {
  set -m
  "$@" &
  set +m
}

# Show a stage's command, then run it.
stage() {
  echo
  echo "== $1 ($((SECONDS / 60)) min $((SECONDS % 60)) s)"
  shift
  echo "\$ $*" | sed -E "s|(://)[^/@ ]+@|\1***@|g" # passwords in addresses
  begin "$@"
  await $!
}

# A stage that measures: what fails in it is said, in the report too, and the run goes on.
evaluation() {
  stage "$@" || echo "warning: the evaluation failed; the run goes on, and the report says what is missing" >&2
}

# A stage that trains, by its name. A rank that dies, hangs or loses the others ends all of them; they start again from the last
# checkpoint, at most MAX_RESTARTS times in a row without a new one. One that runs out of memory halves the micro-batch first.
training() {
  local name=$1 title=$2 module=$3 memory=0 failures=0 again=$RUN/$1/again latest=$RUN/$1/checkpoints/latest asked stood status
  shift 3
  while :; do
    asked=$(stat -c "%i %.9Y" "$again" 2>/dev/null || true)
    stood=$(cat "$latest" 2>/dev/null || true)
    status=0
    stage "$title" "${LAUNCH[@]}" -m "$module" -- "$@" || status=$?
    [ "$status" != 0 ] || return 0
    if [ "$(stat -c "%i %.9Y" "$again" 2>/dev/null || true)" != "$asked" ] && [ -s "$again" ]; then
      [ "$((memory += 1))" -le 7 ] || exit 1
      echo "starting again: $(cat "$again")"
      continue
    fi
    [ "$status" != 2 ] || exit 2
    [ "$(cat "$latest" 2>/dev/null || true)" = "$stood" ] || failures=0
    if [ "$((failures += 1))" -gt "${MAX_RESTARTS:-3}" ]; then
      echo "error: $title failed $failures times in a row without a new checkpoint; once its cause is mended, $AGAIN goes on" >&2
      exit 1
    fi
    echo "starting again from the last checkpoint ($failures of ${MAX_RESTARTS:-3} times without a new one)"
  done
}

# However the run ends, nothing of it runs on, and its report says how far it came.
leave() {
  local status=$?
  trap - TERM INT HUP USR1
  [ -z "$DOWNLOAD" ] || { kill -- "-$DOWNLOAD" && wait "$DOWNLOAD"; } 2>/dev/null || true
  [ "$TRAINING" = false ] || [ "$status" = 0 ] || python -m scripts.report --model_tag="$TAG" || true
}
trap leave EXIT
