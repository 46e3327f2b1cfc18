"""Serving a model over HTTP."""

import json
import os
import socket
import threading
import time
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import tyro

from nanochat.common.console import say, warn
from nanochat.common.errors import UserError
from nanochat.common.files import append_line
from nanochat.common.paths import named_path
from nanochat.serve.settings import TalkSettings

GRACE_S = 10


@dataclass(frozen=True)
class WebSettings(TalkSettings):
    """Serve a chat model: the page, and an API in OpenAI's shape."""

    GROUPS: ClassVar[dict[str, str]] = {
        "Address": "host port allowed_hosts api_key",
        "Capacity and limits": "num_gpus max_rows max_queue max_per_client max_body_mib",
        "Records": "log_conversations",
        **TalkSettings.GROUPS,
    }

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every one, which others can then reach."""
    port: Annotated[int, tyro.conf.arg(aliases=["-p"])] = 8000
    """Port to listen on; 0 for any that is free."""
    allowed_hosts: str = ""
    """Further names by which it is reached, through a proxy say, with commas between, whatever the port; *.NAME for all below one, * for
    any. A server for this machine alone refuses others. Default: none."""
    api_key: str = ""
    """Key that requests must bring. Default: the environment's NANOCHAT_API_KEY, else none."""
    num_gpus: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1
    """GPUs to serve from, a copy of the model on each."""
    max_rows: int = 64
    """Answers that a copy of the model makes at once."""
    max_queue: int = 256
    """Answers that are being made or wait, at most; more are refused with 503."""
    max_per_client: int = 64
    """The same for one address that asks; more are refused with 429."""
    max_body_mib: float = 4.0
    """Size of a request in MiB, at most; larger ones are refused with 413."""
    log_conversations: str = ""
    """File to keep conversations in, as .jsonl that training reads. Default: none is kept."""

    def check(self) -> None:
        """Raises UserError for a value that means nothing."""
        super().check()
        for name in ("num_gpus", "max_rows", "max_queue", "max_per_client"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more")
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port={self.port}: must be between 0 and 65535")
        if not 0 < self.max_body_mib <= 1024:
            raise UserError(f"--max_body_mib={self.max_body_mib}: must be more than 0 and at most 1024")


def serve(settings: WebSettings) -> None:
    """Serve until a signal asks to stop. Raises UserError for a wrong request."""
    settings.check()
    from nanochat.serve.hosts import Hosts, is_loopback
    from nanochat.serve.load import find_directory

    find_directory(settings)  # at once, where there is none
    listening = _listen(settings.host, settings.port)
    address, port = listening.getsockname()[:2]
    hosts = Hosts(address, settings.allowed_hosts, settings.host)
    import torch
    import uvicorn

    from nanochat.engine.engine import Engine
    from nanochat.model.gpt import GPT
    from nanochat.serve.app import make_app
    from nanochat.serve.load import can_compile, open_model
    from nanochat.serve.serving import Limits, Model, Server
    from nanochat.serve.worker import Worker
    from nanochat.tokenizer.tokenizer import Tokenizer

    found = torch.cuda.device_count()
    if settings.num_gpus > max(1, found):
        raise UserError(f"--num_gpus={settings.num_gpus}: this machine has {found}")
    workers: list[Worker] = []
    compiled = settings.compile and can_compile(torch.device("cuda" if found else "cpu"))
    for number in range(settings.num_gpus):
        model, tokenizer, name = open_model(settings, torch.device("cuda", number) if found else torch.device("cpu"))

        def make(model: GPT = model, tokenizer: Tokenizer = tokenizer) -> Engine:
            engine = Engine(model, tokenizer, max_rows=settings.max_rows, guesses=settings.guesses, compiled=compiled)
            engine.warm_up()
            return engine

        workers.append(Worker(make))
    served = Model(name, tokenizer, model.config.max_seq_len, workers, settings.sampling(), settings.max_tokens, int(time.time()))
    limits = Limits(int(settings.max_body_mib * 2**20), settings.max_queue, settings.max_per_client)
    key = settings.api_key or os.environ.get("NANOCHAT_API_KEY", "")  # both of a name that keeps them out of what is printed
    server = Server(served, limits, hosts, key, _log(settings.log_conversations) if settings.log_conversations else None)
    if not is_loopback(address) and not key:
        warn(f"{settings.host} can be reached by others, and no --api_key keeps them out")

    class Uvicorn(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            server.draining = True
            super().handle_exit(sig, frame)

    config = uvicorn.Config(make_app(server), log_level="warning", timeout_graceful_shutdown=GRACE_S, server_header=False)
    say(f"{name} is served at http://{settings.host}:{port}/ (API: /v1); Ctrl-C stops it")
    Uvicorn(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError where the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise UserError(f"port {port} of {host} cannot be had ({error.strerror}): choose another by --port") from None
    listening.listen(2048)
    return listening


def _log(file: str) -> Any:
    path, lock, is_kept = named_path(file), threading.Lock(), True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"--log_conversations={file}: cannot be written ({error.strerror})") from None

    def keep(messages: list[dict[str, Any]]) -> None:
        nonlocal is_kept
        try:
            with lock:
                append_line(path, json.dumps({"messages": messages}))
            is_kept = True
        except OSError as error:  # who asked gets the answer all the same
            if is_kept:
                warn(f"{path} cannot be written ({error.strerror}): conversations are not kept until it can")
            is_kept = False

    return keep
