"""Bits per byte of a finished base model on the text it was trained on and on held-out text, beside what xz needs."""

from dataclasses import dataclass
from typing import Literal

from nanochat.common.errors import UserError

XZ_MAX_BYTES = 8_000_000


@dataclass(frozen=True)
class BaseLossSettings:
    """Bits per byte of a finished base model, on training text and on held-out text."""

    model_tag: str = ""
    """Run whose base model to take. Default: the newest."""
    data: str | None = None
    """Text to evaluate on. Default: climbmix, or the only one that is there."""
    eval_tokens: int = 20 * 524_288
    """Tokens of each split, or as many as there are."""
    train_tokens: int = -1
    """Tokens of the training split; -1 for as many as --eval_tokens."""
    device_batch_size: int = 32
    """Sequences in a forward pass."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Number format of the computation; auto for bf16 where the hardware has it, else fp32."""

    def check(self) -> None:
        """Raises UserError for a value that is wrong."""
        for name in ("eval_tokens", "device_batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more")


def base_loss(settings: BaseLossSettings) -> None:
    """Evaluate, print, and write `base_loss.json` beside the model directory."""
    import numpy as np

    from nanochat.common.console import say
    from nanochat.common.files import write_json
    from nanochat.common.paths import tokens_dir
    from nanochat.data.defaults import resolve_data
    from nanochat.data.samples import Manifest, Samples
    from nanochat.data.token_shards import read_index, verify_shards
    from nanochat.evals.bits_per_byte import bits_per_byte, xz_bits_per_byte
    from nanochat.model.checksums import digest_of_finished
    from nanochat.model.directory import load_model
    from nanochat.model.find import find_model
    from nanochat.parallel.precision import resolve_precision
    from nanochat.parallel.ranks import ranks

    directory = find_model(("base",), settings.model_tag)
    with ranks() as r:
        weights = r.from_first(lambda: digest_of_finished(directory))
        model, tokenizer = load_model(directory, r.device, resolve_precision(settings.precision, r.device))
        index = read_index(tokens_dir(resolve_data(settings.data), tokenizer.hash))
        r.from_first(lambda: verify_shards(index))
        seq_len = model.config.max_seq_len
        figures: dict[str, float] = {}
        for split, tokens in (("train", settings.train_tokens), ("val", settings.eval_tokens)):
            samples = Samples(Manifest.of(index, split, seq_len, seed=0), index.directory, shuffle=split == "train")
            rows = max(1, min(samples.per_epoch, (tokens if tokens > 0 else settings.eval_tokens) // seq_len))
            figures[f"{split}_tokens"] = rows * seq_len
            figures[f"{split}_bpb"] = bits_per_byte(model, samples, rows, tokenizer.token_bytes(), settings.device_batch_size, r)
            say(f"{split}: {figures[f'{split}_bpb']:.4f} bits per byte, over {rows * seq_len:,} tokens of {index.data}")
        if r.is_first:
            held_out = samples[np.arange(rows)][:, 1:].reshape(-1)
            text = tokenizer.decode_bytes(held_out[held_out < tokenizer.bos_id].tolist())[:XZ_MAX_BYTES]
            figures["xz_bpb"] = xz_bits_per_byte(text)
            which = "the same" if len(text) < XZ_MAX_BYTES else "the first"
            say(f"xz -9e: {figures['xz_bpb']:.4f} bits per byte, over {which} {len(text):,} held-out bytes")
            write_json(directory.parent / "base_loss.json", {"weights": weights, **figures})
