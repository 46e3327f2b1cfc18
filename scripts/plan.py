"""Say what a run will take before it starts.

python -m scripts.plan --depth 38 --gpus 8xH100-80GB --compare
python -m scripts.plan --gpus 8xH100-80GB --usd 500
python -m scripts.plan --depth 52 --usd_per_gpu_hour 2.20 --json
"""

from nanochat.common.cli import command
from nanochat.plan.command import plan
from nanochat.plan.settings import PlanSettings

if __name__ == "__main__":
    command(PlanSettings, plan, __doc__)
