"""Evaluate a chat model, on one process or through torchrun on several GPUs.

python -m scripts.chat_eval -i sft -a SpellingBee
python -m scripts.chat_eval -a "GSM8K,Arithmetic" -n 8 -t 0.8 -x 100
torchrun --standalone --nproc_per_node=8 -m scripts.chat_eval -- -i rl
"""

from nanochat.common.cli import command
from nanochat.evals.chat_eval_settings import ChatEvalSettings


def main(settings: ChatEvalSettings) -> None:
    """Check what can be checked at once, then evaluate."""
    settings.check()
    from nanochat.evals.chat_eval import chat_eval

    chat_eval(settings)


if __name__ == "__main__":
    command(ChatEvalSettings, main, __doc__)
