"""Serve a chat model over HTTP, with a page to talk to it: `python -m scripts.chat_web`."""

from nanochat.common.cli import command
from nanochat.serve.server import WebSettings, serve

if __name__ == "__main__":
    command(WebSettings, serve)
