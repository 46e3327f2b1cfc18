"""Serve a chat model over HTTP, with a page to talk to it.

python -m scripts.chat_web
python -m scripts.chat_web --model_tag=d38 --source=sft --port=8080
# for others, from eight copies of the model
python -m scripts.chat_web --host=0.0.0.0 --api_key=SECRET --num_gpus=8
"""

from nanochat.common.cli import command
from nanochat.serve.server import WebSettings, serve

if __name__ == "__main__":
    command(WebSettings, serve, __doc__)
