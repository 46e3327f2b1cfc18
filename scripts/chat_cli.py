"""Ask a chat model: `python -m scripts.chat_cli -p "How many r are in strawberry?"`; with --base a base model continues a text."""

from nanochat.common.cli import command
from nanochat.engine.complete_command import CompleteSettings, complete_command

if __name__ == "__main__":
    command(CompleteSettings, complete_command)
