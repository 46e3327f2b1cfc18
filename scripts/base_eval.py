"""CORE of a base model, on one process or through torchrun on several GPUs.

python -m scripts.base_eval --bundle=small          # a look, in minutes
python -m scripts.base_eval --model_tag=d38
torchrun --standalone --nproc_per_node=8 -m scripts.base_eval
"""

from nanochat.common.cli import command
from nanochat.evals.base_eval_settings import BaseEvalSettings


def main(settings: BaseEvalSettings) -> None:
    """Check what can be checked at once, then evaluate."""
    settings.check()
    from nanochat.evals.base_eval import base_eval

    base_eval(settings)


if __name__ == "__main__":
    command(BaseEvalSettings, main, __doc__)
