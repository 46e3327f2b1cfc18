"""Say what a run will take before it starts: `python -m scripts.plan --depth 38 --gpus 8xH100-80GB`."""

from nanochat.common.cli import command
from nanochat.plan.command import plan
from nanochat.plan.settings import PlanSettings

if __name__ == "__main__":
    command(PlanSettings, plan)
