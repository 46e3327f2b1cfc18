"""CORE of a base model: `python -m scripts.base_eval`, or through torchrun on several GPUs."""

from nanochat.common.cli import command
from nanochat.evals.base_eval_settings import BaseEvalSettings


def main(settings: BaseEvalSettings) -> None:
    """Check what can be checked at once, then evaluate."""
    settings.check()
    from nanochat.evals.base_eval import base_eval

    base_eval(settings)


if __name__ == "__main__":
    command(BaseEvalSettings, main)
