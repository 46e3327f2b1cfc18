"""How long training waits for a checkpoint, and how long it takes to stand on disk."""

import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nanochat.common.console import say
from nanochat.common.paths import base_dir
from nanochat.plan import sizes


@dataclass(frozen=True)
class CheckpointBenchSettings:
    """Time saving on this machine's device and the base directory's disk: a model of random weights, whole, on one rank."""

    depth: int = 14
    """Layers; weights and what the optimizers keep of a model of depth 14 are 2.9 GiB, about a rank's share of the 3B over eight."""
    vocab_size: int = 65_536
    """Entries of the vocabulary."""
    saves: int = 3
    """Checkpoints to write, one after the other; the first one also allocates."""
    json: bool = False
    """Print one JSON object."""


def bench_checkpoint(settings: CheckpointBenchSettings) -> None:
    """Print the size, the seconds that each save holds training up, and the seconds until it stands."""
    import torch

    from nanochat.model.config import GPTConfig
    from nanochat.model.gpt import GPT
    from nanochat.optim.build import Optimizers
    from nanochat.parallel.ranks import ranks
    from nanochat.parallel.sharding import shard
    from nanochat.train.checkpoint import Checkpoints, RunState, named_tensors
    from nanochat.train.settings import BaseTrainSettings

    sizes.check_depth(settings.depth)
    with ranks() as r, tempfile.TemporaryDirectory(dir=base_dir()) as name:
        with r.device:
            model = GPT(GPTConfig.from_depth(settings.depth, settings.vocab_size, 2048))
        shard(model, r.mesh(), torch.float32, True)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        optimizers = Optimizers(model, BaseTrainSettings(), torch.float32)
        tensors = named_tensors(model, optimizers)
        gib = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 2**30
        checkpoints, waits, stands = Checkpoints(Path(name), r), list[float](), list[float]()
        checkpoints.load(model, optimizers)
        for step in range(1, settings.saves + 1):
            started = time.perf_counter()
            checkpoints.save(RunState(step), model, optimizers)
            waits.append(time.perf_counter() - started)
            checkpoints.wait()
            stands.append(time.perf_counter() - started)
        figures = {"gib": gib, "wait_s": waits, "stands_s": stands, "wait_share": waits[-1] / stands[-1], "device": str(r.device)}
        if settings.json:
            say(json.dumps(figures))
            return
        say(f"{gib:.2f} GiB on {r.device}, to {base_dir()}")
        for wait_s, stands_s in zip(waits, stands, strict=True):
            say(f"training waits {wait_s:.2f} s, the checkpoint stands after {stands_s:.2f} s ({wait_s / stands_s:.1%})")
