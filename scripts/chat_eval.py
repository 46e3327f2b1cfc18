"""Evaluate a chat model: `python -m scripts.chat_eval -i sft -a SpellingBee`, or through torchrun on several GPUs."""

from nanochat.common.cli import command
from nanochat.evals.chat_eval_settings import ChatEvalSettings


def main(settings: ChatEvalSettings) -> None:
    """Check what can be checked at once, then evaluate."""
    settings.check()
    from nanochat.evals.chat_eval import chat_eval

    chat_eval(settings)


if __name__ == "__main__":
    command(ChatEvalSettings, main)
