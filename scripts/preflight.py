"""Look this machine over before a run: `python -m scripts.preflight`."""

from nanochat.common.cli import command
from nanochat.preflight.command import preflight
from nanochat.preflight.settings import PreflightSettings

if __name__ == "__main__":
    command(PreflightSettings, preflight)
