"""Look this machine over before a run.

python -m scripts.preflight
python -m scripts.preflight --depth=52 --json
"""

from nanochat.common.cli import command
from nanochat.preflight.command import preflight
from nanochat.preflight.settings import PreflightSettings

if __name__ == "__main__":
    command(PreflightSettings, preflight, __doc__)
