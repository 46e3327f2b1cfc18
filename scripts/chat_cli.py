"""Talk to a chat model: `python -m scripts.chat_cli`; `-p "How many r are in strawberry?"` asks once."""

from nanochat.common.cli import command
from nanochat.serve.terminal import ChatSettings, chat

if __name__ == "__main__":
    command(ChatSettings, chat)
