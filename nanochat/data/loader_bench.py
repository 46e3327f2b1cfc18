"""How many tokens a second the loader delivers."""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from nanochat.common.console import say
from nanochat.common.errors import UserError


@dataclass(frozen=True)
class LoaderBenchSettings:
    """Time the loader on token shards of random ids, made for this and removed."""

    max_seq_len: int = 512
    """Tokens of a sequence."""
    device_batch_size: int = 8
    """Sequences of a micro-batch, which the loader delivers together."""
    shard_tokens: int = 50_000_000
    """Tokens of the shard that is made, two bytes each."""
    seconds: float = 3.0
    """Seconds to measure."""


def bench_loader(settings: LoaderBenchSettings) -> None:
    """Print tokens a second, from a random order over a memory-mapped shard, on one core. Raises UserError for sizes that cannot be."""
    s = settings
    if min(s.max_seq_len, s.device_batch_size, s.seconds) <= 0 or s.shard_tokens < s.max_seq_len + 1:
        raise UserError("--max_seq_len, --device_batch_size and --seconds must be positive, --shard_tokens more than --max_seq_len")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import numpy as np
    import torch

    from nanochat.common.files import write_json
    from nanochat.data.loader import Split, micro_batches
    from nanochat.data.samples import Manifest, Samples
    from nanochat.data.token_shards import read_index

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        np.random.default_rng(0).integers(0, 65_536, s.shard_tokens, dtype="<u2").tofile(directory / "shard.bin")
        shard = {"name": "shard.bin", "split": "train", "documents": 1, "tokens": s.shard_tokens, "bytes": 0, "sha256": "", "source": ""}
        write_json(directory / "index.json", {"data": "", "tokenizer": "", "tokenizer_hash": "", "vocab_size": 65_536, "shards": [shard]})
        started = time.perf_counter()
        samples = Samples(Manifest.of(read_index(directory), "train", s.max_seq_len, seed=0), directory)
        batches = micro_batches(samples, Split(0, 1, s.device_batch_size, 1), 1_000_000 * s.device_batch_size, torch.device("cpu"))
        next(batches)
        say(f"opened at step 1,000,000 in {time.perf_counter() - started:.3f} s")
        count, started = 0, time.perf_counter()
        while time.perf_counter() - started < s.seconds:
            ids = next(batches).ids
            count += ids.numel()
        say(f"{count / (time.perf_counter() - started) / 1e6:.1f} M tokens a second on one core")
        batches.close()  # type: ignore[attr-defined]
