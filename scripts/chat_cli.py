"""Talk to a chat model in the terminal.

python -m scripts.chat_cli
python -m scripts.chat_cli -p "How many r are in strawberry?"
python -m scripts.chat_cli -i base -p "The function returns"
echo "What is 12*12?" | python -m scripts.chat_cli -t 0
"""

from nanochat.common.cli import command
from nanochat.serve.terminal import ChatSettings, chat

if __name__ == "__main__":
    command(ChatSettings, chat, __doc__)
