#!/usr/bin/env bash
# Set up, then every test: lint, types, tests.   --slow: soaks and long runs too; anything else goes to pytest.
set -euo pipefail
cd "$(dirname "$0")"
source ./setup.sh
setup dev

ARGUMENTS=(-m "not slow")
if [ "${1:-}" = --slow ]; then
  ARGUMENTS=()
  shift
fi
if [ $# = 0 ]; then # every test: two at a time, a thread each
  export OMP_NUM_THREADS=1
  ARGUMENTS+=(-n 2 --dist loadfile)
fi
ruff check .
ruff format --check .
mypy
exec python -m pytest ${ARGUMENTS[@]+"${ARGUMENTS[@]}"} "$@"
