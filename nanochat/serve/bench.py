"""How fast a model answers, on random weights or on those of a model directory."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from nanochat.common.errors import UserError
from nanochat.common.paths import named_path
from nanochat.plan.hardware import gpu_named
from nanochat.plan.sizes import reading_flops_per_token
from nanochat.tokenizer.special import MAX_VOCAB_SIZE, MIN_VOCAB_SIZE

if TYPE_CHECKING:
    import torch

    from nanochat.model.gpt import GPT
    from nanochat.tokenizer.tokenizer import Tokenizer

ROUNDS = 3


@dataclass(frozen=True)
class BenchInferSettings:
    """Measure reading prompts and writing answers, as ratios of the memory's speed and of transformers in the same run."""

    GROUPS: ClassVar[dict[str, str]] = {
        "Model": "model depth vocab_size max_seq_len",
        "Speed": "precision int8 compile",
        "What is answered": "rows prompt_tokens new_tokens",
        "Beside it": "baseline one_by_one",
        "Output": "json",
    }

    model: str = ""
    """Directory of a finished model to measure. Default: random weights of --depth."""
    depth: int = 4
    """Layers of the random model."""
    vocab_size: int = 65_536
    """Entries of the random model's vocabulary."""
    max_seq_len: int = 2048
    """Tokens of the random model's context."""
    precision: str = "auto"
    """Number format of the weights: fp32, bf16, or auto for what suits this machine."""
    int8: bool = False
    """Keep the weights in eight bits: less memory to read, slightly other answers."""
    compile: bool = True
    """Compile the pass that writes answers."""
    rows: int = 1
    """Answers made at once, side by side."""
    prompt_tokens: int = 64
    """Tokens of each prompt that is read."""
    new_tokens: int = 64
    """Tokens of each answer that is written."""
    baseline: bool = False
    """Time `transformers` on the same weights too, in turn with ours."""
    one_by_one: bool = False
    """Time the same answers one after the other too."""
    json: bool = False
    """Print one JSON object."""

    def check(self) -> None:
        """Raises UserError for sizes that cannot be."""
        if not MIN_VOCAB_SIZE <= self.vocab_size <= MAX_VOCAB_SIZE:
            raise UserError(f"--vocab_size={self.vocab_size}: must be between {MIN_VOCAB_SIZE} and {MAX_VOCAB_SIZE:,}")
        for name in ("rows", "prompt_tokens", "new_tokens", "max_seq_len"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: must be 1 or more")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise UserError(f"--precision={self.precision}: one of auto, fp32, bf16")


def bench_infer(s: BenchInferSettings) -> None:
    """Measure and print. Raises UserError for a wrong request."""
    import torch

    from nanochat.engine.engine import Answer, Engine
    from nanochat.engine.linear import for_decoding
    from nanochat.engine.sample import Sampling

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = _model(s, device)
    if s.prompt_tokens + s.new_tokens > model.config.max_seq_len:
        raise UserError(f"--prompt_tokens + --new_tokens come to more than the model's context of {model.config.max_seq_len:,}")
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, min(model.config.vocab_size, 50_000), (s.rows, s.prompt_tokens), generator=generator).tolist()

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    engine = Engine(model, tokenizer, max_rows=s.rows, compiled=s.compile)

    def answers(some: list[list[int]]) -> tuple[float, float]:
        """Seconds to the first tokens, and from there to the last."""
        made: list[Answer] = [engine.add(one, s.new_tokens, Sampling(temperature=0), stops=frozenset(), tools=False) for one in some]
        started = time.perf_counter()
        engine.read()
        wait()
        first = time.perf_counter()
        engine.run()
        wait()
        assert all(len(one.ids) == s.new_tokens for one in made)
        return first - started, time.perf_counter() - first

    rounds: list[Callable[[], Any]] = [lambda: answers(prompts)]
    if s.one_by_one:
        rounds.append(lambda: sum(sum(answers([one])) for one in prompts))
    dtype = model.lm_head.weight.dtype
    if s.baseline:
        rounds.append(_transformers(model, tokenizer, prompts, s.new_tokens, wait))
    for_decoding(model, s.int8)
    started = time.perf_counter()
    engine.warm_up()
    warm_up_s = time.perf_counter() - started
    found: list[list[Any]] = [[] for _ in rounds]
    for each in rounds:
        each()  # once for what is made only once
    for _ in range(ROUNDS):
        for times, each in zip(found, rounds, strict=True):
            times.append(each())
    prefill_s, decode_s = (statistics.median(times) for times in zip(*found[0], strict=True))
    decoded = s.rows * (s.new_tokens - 1)
    weights = sum(weight.nbytes for name, weight in model.state_dict().items() if "embed_tokens" not in name)
    result: dict[str, Any] = {
        "prefill_tok_per_s": s.rows * s.prompt_tokens / prefill_s,
        "decode_tok_per_s": decoded / decode_s if decoded else None,
        "first_token_ms": 1000 * prefill_s,
        "bandwidth_fraction": (weights * (s.new_tokens - 1) / decode_s) / _bandwidth(device, wait) if decoded else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU ({torch.get_num_threads()} threads)",
        "dtype": str(dtype).removeprefix("torch."),
        "warm_up_s": warm_up_s,
        "torch": torch.__version__,
        "settings": asdict(s),
    }
    gpu = gpu_named(result["device"])
    if gpu and not s.model:  # which have the house's shapes, the only ones whose FLOPs are counted
        result["prefill_mfu"] = (
            result["prefill_tok_per_s"] * reading_flops_per_token(s.depth, s.vocab_size, s.prompt_tokens) / gpu.peak_bf16_flops
        )
    whole = s.rows * s.new_tokens / (prefill_s + decode_s)
    if s.one_by_one:
        result["times_one_by_one"] = whole * statistics.median(found[1]) / (s.rows * s.new_tokens)
    if s.baseline:
        result["transformers_tok_per_s"] = s.rows * s.new_tokens / statistics.median(found[-1])
        result["times_transformers"] = whole / result["transformers_tok_per_s"]
    if s.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if name != "settings":
            print(f"{name:>24}  {value:,.3f}" if isinstance(value, float) else f"{name:>24}  {value}")


def _model(s: BenchInferSettings, device: "torch.device") -> "tuple[GPT, Tokenizer]":

    from nanochat.model.config import GPTConfig
    from nanochat.model.gpt import GPT
    from nanochat.model.init import init_weights, initial_std
    from nanochat.parallel.precision import evaluation_dtype
    from nanochat.serve.load import DTYPES
    from nanochat.tokenizer.special import SPECIAL_TOKENS
    from nanochat.tokenizer.tokenizer import Tokenizer

    dtype = DTYPES.get(s.precision) or evaluation_dtype(device)
    if s.model:
        from nanochat.model.directory import load_model

        return load_model(named_path(s.model), device, dtype)
    ranks = {bytes([byte]): byte for byte in range(256)}
    for number in range(256, s.vocab_size - len(SPECIAL_TOKENS)):  # entries that nothing merges into: what matters is their number
        ranks[b"\xff" + number.to_bytes(3, "big")] = number
    tokenizer = Tokenizer.from_ranks(ranks)
    model = GPT(GPTConfig.from_depth(s.depth, s.vocab_size, s.max_seq_len))
    init_weights(model, 0, std_of=lambda name, parameter: initial_std(name, parameter) or 0.02)  # no zeros, which are faster
    return model.to(device, dtype).eval().requires_grad_(False), tokenizer


def _transformers(
    model: "GPT", tokenizer: "Tokenizer", prompts: list[list[int]], new_tokens: int, wait: Callable[[], None]
) -> Callable[[], float]:
    """What makes the same answers by `transformers` and returns the seconds that it took."""
    import torch

    try:
        from transformers import NanoChatConfig, NanoChatForCausalLM
    except ImportError:
        raise UserError("--baseline needs transformers: pip install transformers") from None
    from nanochat.model.directory import hf_config

    dtype, device = model.lm_head.weight.dtype, model.lm_head.weight.device
    fields = hf_config(model.config, tokenizer, dtype)
    theirs: Any = NanoChatForCausalLM(
        NanoChatConfig(**{name: fields[name] for name in fields if name not in ("architectures", "model_type")})
    )
    theirs.load_state_dict(model.state_dict(), strict=False)
    theirs.to(device, dtype).eval()
    ids = torch.tensor(prompts, device=device)

    def run() -> float:
        started = time.perf_counter()
        with torch.no_grad():
            theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False)
        wait()
        return time.perf_counter() - started

    return run


def _bandwidth(device: "torch.device", wait: Callable[[], None]) -> float:
    """Bytes a second at which memory is read and written by a copy, the best of several."""
    import torch

    size = (1 << 30) if device.type == "cuda" else (1 << 28)
    source, target = torch.ones(size, dtype=torch.uint8, device=device), torch.empty(size, dtype=torch.uint8, device=device)
    times = []
    for _ in range(8):
        wait()
        started = time.perf_counter()
        target.copy_(source)
        wait()
        times.append(time.perf_counter() - started)
    return 2 * size / min(times)
