"""Continue a text with a base model: `python -m scripts.chat_cli --base -p "Once upon a time"`."""

from nanochat.common.cli import command
from nanochat.engine.complete_command import CompleteSettings, complete_command

if __name__ == "__main__":
    command(CompleteSettings, complete_command)
