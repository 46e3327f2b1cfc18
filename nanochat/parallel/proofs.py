"""Fast ways to compute a step's parts, held against float64 on this very device, forward and backward.

A choice is named as a recipe spells it, `attention=flash`; what every recipe has, `head=compiled`, likewise.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.model.attention import attention_by_products, fused_attention
from nanochat.model.casts import GRADIENT, INPUT, in_eight_bits
from nanochat.model.config import GPTConfig
from nanochat.model.elementwise import rotary_table
from nanochat.model.fp8 import ROOM, Fp8Products, largest_of, quantized_together, scale_of, scale_of_norms
from nanochat.model.fp8_mlp import Fp8MLP
from nanochat.model.fused_mlp import fused_mlp
from nanochat.model.gpt import MLP, Block
from nanochat.model.loss import Head, softcap
from nanochat.optim.newton_schulz import has_copy_engine, orthogonalize, symmetric_product
from nanochat.parallel.attention import only_attention
from nanochat.plan.recipe import CHOICES

# Relative errors in the Frobenius norm that still count as right: several times what the format's own rounding gives.
TOLERANCE = {"bf16": 0.02, "fp32": 1e-4}
MUON_TOLERANCE = {"bf16": 0.06, "fp32": 1e-3}  # five iterations make roundings larger
MUON_EXCESS = 1.5  # how many times the plain way's error another way may have where singular values are small
FP8_TOLERANCE = 0.03  # against products of the rounded values, where a result near the middle of two may be rounded to the other
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TIMED, TIMED_SEQUENCES = 5, 4


@dataclass(frozen=True)
class Size:
    """What is proven is proven at these sizes, or smaller ones where float64 takes long."""

    device: torch.device
    depth: int
    seq_len: int
    vocab_size: int

    @property
    def config(self) -> GPTConfig:
        """Of the model."""
        return GPTConfig.from_depth(self.depth, self.vocab_size, self.seq_len)

    @property
    def on_gpu(self) -> bool:
        """Whether float64 is quick."""
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Proof:
    """One way, tried."""

    name: str
    """As a recipe spells it."""
    precision: str
    """bf16, fp32 or fp8."""
    error: float | None
    """Largest relative error of result and gradients in the Frobenius norm; None where it raised."""
    tolerance: float
    """What is still right."""
    passed: bool
    """Whether it may train."""
    note: str = ""
    """What it raised, in a line."""
    milliseconds: float | None = None
    """Of one forward and backward pass, where ways are compared by it."""

    def to_json(self) -> dict[str, Any]:
        """For a file."""
        return asdict(self)


def relative_error(got: Tensor, want: Tensor) -> float:
    """‖got − want‖ / ‖want‖."""
    return float((got.double() - want.double()).norm() / want.double().norm().clamp(min=1e-300))


def prove(name: str, precision: str, size: Size) -> Proof:
    """Try one way. Nothing that it raises passes through."""
    what, way = name.split("=")
    tolerance = _tolerance(what, precision)
    try:
        error, milliseconds = PROOFS[what](way, precision, size)
    except Exception as raised:  # kernels raise whatever they like
        note = " ".join(f"{type(raised).__name__}: {raised}".split())[:200]
        return Proof(name, precision, None, tolerance, False, note)
    return Proof(name, precision, error, tolerance, error <= tolerance, "", milliseconds)


def names(precision: str, device: torch.device, packages: list[str], can_compile: bool, autotunes: bool = True) -> list[str]:
    """All that a device may have in a precision. packages: later FlashAttentions that are installed."""
    if precision == "fp8":
        casts = ["fp8_casts=plain", "fp8_casts=fused"] if device.type == "cuda" and can_compile else []
        mlp = ["fp8_mlp=fused"] if has_copy_engine(device) and can_compile else []
        return [*(f"fp8_sums={way}" for way in CHOICES["fp8_sums"]), "fp8_weights=kept", "fp8_scales=kept", *casts, *mlp]
    if device.type == "cuda":
        kernels = ["fused", "efficient", "math", *(["cudnn", "flash", *packages] if precision == "bf16" else [])]
    else:
        kernels = ["fused", *(["products"] if can_compile else [])]  # which compiled alone is of use
    tuned = ["compile=tuned"] if device.type == "cuda" and autotunes else []
    fused = ["mlp=plain", "mlp=fused"] if has_copy_engine(device) and precision == "bf16" and can_compile else []
    compiled = ["head=compiled", "compile=layers", *tuned] if can_compile else []
    return [
        *(f"attention={way}" for way in kernels),
        *(f"muon={way}" for way in CHOICES["muon"]),
        *("head=plain", "compile=off"),
        *fused,
        *compiled,
    ]


def _tolerance(what: str, precision: str) -> float:
    return FP8_TOLERANCE if precision == "fp8" else (MUON_TOLERANCE if what == "muon" else TOLERANCE)[precision]


def _random(size: Size, *shape: int, seed: int = 0) -> Tensor:
    """float64 of a normal distribution, made on the device itself: a CPU takes seconds for a layer's."""
    generator = torch.Generator(size.device).manual_seed(seed + shape[-1])
    return torch.randn(*shape, generator=generator, dtype=torch.float64, device=size.device)


def _with_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], upstream: Tensor, weights: Iterable[Tensor] = ()
) -> list[Tensor]:
    """The function's value, and the gradients with respect to its inputs and to weights that it has besides."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, [*leaves, *weights], upstream.to(y.dtype))]


def _largest(got: list[Tensor], want: list[Tensor]) -> float:
    return _worst([relative_error(*pair) for pair in zip(got, want, strict=True)])


def _worst(errors: list[float]) -> float:
    """The largest; not a number where one is none, which no comparison would find."""
    return float("nan") if any(map(math.isnan, errors)) else max(errors)


def _milliseconds(work: Callable[[], object], device: torch.device) -> float:
    """Of one call, the median of a few."""
    taken = []
    for _ in range(TIMED):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return 1000 * sorted(taken)[TIMED // 2]


def _attention(way: str, precision: str, size: Size) -> tuple[float, float]:
    """Two sequences, as the model lays them out; by products compiled, as the model has it."""
    config = size.config
    shape = (2, size.seq_len, config.num_heads if size.on_gpu else min(2, config.num_heads), config.head_dim)
    q, k, v, upstream = (_random(size, *shape, seed=seed).transpose(1, 2) for seed in range(4))
    want = _with_gradients(_plain_attention, [q, k, v], upstream)
    fast = [x.to(DTYPES[precision]) for x in (q, k, v, upstream)]
    function = torch.compile(attention_by_products, dynamic=False) if way == "products" else fused_attention
    # On a GPU two sequences take no longer than the calls themselves: more are timed.
    often = TIMED_SEQUENCES if size.on_gpu else 1
    timed = [x.transpose(1, 2).repeat(often, 1, 1, 1).transpose(1, 2) for x in fast]
    with only_attention(way):
        error = _largest(_with_gradients(function, fast[:3], fast[3]), want)
        return error, _milliseconds(partial(_with_gradients, function, timed[:3], timed[3]), size.device)


def _plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As the formula says (arXiv 1706.03762), head by head, so that float64's scores fit."""
    seen = torch.ones(q.size(2), q.size(2), dtype=torch.bool, device=q.device).tril()
    scale = q.size(-1) ** -0.5
    results = []
    for head in range(q.size(1)):
        scores = (q[:, head] @ k[:, head].mT * scale).masked_fill(~seen, float("-inf"))
        results.append(torch.softmax(scores, dim=-1) @ v[:, head])
    return torch.stack(results, dim=1)


def _block(way: str, precision: str, size: Size) -> tuple[float, None]:
    """A whole layer, on a CPU at a width and a length that float64 can bear there."""
    config = size.config if size.on_gpu else GPTConfig.from_depth(min(size.depth, 4), 64, min(size.seq_len, 128))
    tokens = min(config.max_seq_len, 512)
    block = Block(config, 0).to(size.device, torch.float64)
    for number, weight in enumerate(block.parameters()):
        weight.data = _random(size, *weight.shape, seed=number) / weight.size(1) ** 0.5
    x, upstream = (_random(size, 2, tokens, config.hidden_size, seed=seed) for seed in (8, 9))
    cos, sin = (each.to(size.device) for each in rotary_table(tokens, config.head_dim, config.rope_theta))
    want = _with_gradients(lambda x: block(x, cos.double(), sin.double()), [x], upstream, block.parameters())
    fast = copy.deepcopy(block).to(DTYPES[precision])
    forward = fast.forward
    if way != "off":
        forward = torch.compile(forward, dynamic=False, mode="max-autotune-no-cudagraphs" if way == "tuned" else None)
    got = _with_gradients(lambda x: forward(x, cos, sin), [x.to(DTYPES[precision])], upstream, fast.parameters())
    return _largest(got, want), None


def _mlp(way: str, precision: str, size: Size) -> tuple[float, float]:
    """A layer's MLP alone, compiled as the model has it."""
    d, tokens = size.config.hidden_size, 2048
    mlp = MLP(size.config).to(size.device, torch.float64)
    for number, weight in enumerate(mlp.parameters()):
        weight.data = _random(size, *weight.shape, seed=number) / weight.size(1) ** 0.5
    x, upstream = (_random(size, 1, tokens, d, seed=seed) for seed in (8, 9))
    want = _with_gradients(mlp, [x], upstream, mlp.parameters())
    fast = copy.deepcopy(mlp).to(DTYPES[precision])
    fast.in_training = fused_mlp if way == "fused" else None
    once = partial(_with_gradients, torch.compile(fast, dynamic=False), [x.to(DTYPES[precision])], upstream, list(fast.parameters()))
    return _largest(once(), want), _milliseconds(once, size.device)


def _head(way: str, precision: str, size: Size) -> tuple[float, None]:
    """The sum of the losses and its gradients, against the textbook's cross-entropy."""
    config = size.config if size.on_gpu else GPTConfig.from_depth(min(size.depth, 4), min(size.vocab_size, 4096), size.seq_len)
    tokens = 512
    head = Head(config.hidden_size, config.vocab_size, config.logit_softcap).to(size.device, torch.float64)
    head.weight.data = _random(size, *head.weight.shape) / config.hidden_size**0.5
    hidden = _random(size, 1, tokens, config.hidden_size, seed=1)
    targets = torch.randint(0, config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(2)).to(size.device)
    targets[:, ::7] = -1

    def textbook(x: Tensor) -> Tensor:
        logits = softcap(F.linear(x, head.weight), config.logit_softcap)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="sum")

    one = torch.ones((), device=size.device)
    want = _with_gradients(textbook, [hidden], one, [head.weight])
    fast = copy.deepcopy(head).to(DTYPES[precision])
    if way == "compiled":
        fast.chunk_loss = torch.compile(fast.chunk_loss, dynamic=False)
    got = _with_gradients(lambda x: fast.loss_sum(x, targets), [hidden.to(DTYPES[precision])], one, [fast.weight])
    return _largest(got, want), None


@torch.no_grad()
def _muon(way: str, precision: str, size: Size) -> tuple[float, float]:
    """Square and wide matrices, of random numbers and of singular values that fall off over three decades."""
    d = size.config.hidden_size if size.on_gpu else min(size.config.hidden_size, 1024)
    dtype, errors = DTYPES[precision], []
    for rows, cols in ((d, d), (d, 4 * d), (4 * d, d)):
        x = _random(size, 2, rows, cols)
        errors.append(relative_error(orthogonalize(x, dtype, way), orthogonalize(x, torch.float64)))
        if way != "plain":  # later iterations mend what the first one does wrong
            wide = (x.mT if rows > cols else x).to(dtype).contiguous()
            errors.append(relative_error(symmetric_product(wide, wide.mT), wide.double() @ wide.double().mT))
    values = torch.logspace(0, -3, d, dtype=torch.float64, device=size.device)
    falling = (_random(size, 1, d, d) * values) @ _random(size, 1, d, 4 * d, seed=1)
    want = orthogonalize(falling, torch.float64)
    error, plain = (relative_error(orthogonalize(falling, dtype, each), want) for each in (way, "plain"))
    if not error <= MUON_EXCESS * plain + TOLERANCE[precision]:
        errors.append(error)
    matrices = [_random(size, 2, d, cols).to(dtype) for cols in (d, 4 * d)]
    return _worst(errors), _milliseconds(lambda: [orthogonalize(x, dtype, way) for x in matrices], size.device)


def _fp8(what: str, way: str, _precision: str, size: Size) -> tuple[float, float]:
    """Products of one input with three weights, and an MLP, with their gradients, against those of the rounded values."""
    d, tokens = size.config.hidden_size, 4096 if size.on_gpu else 256
    now = f"{what}={way}"
    how, finishes = (now == "fp8_sums=short", now == "fp8_casts=fused"), now == "fp8_mlp=fused"
    mlps = [(False, True, True), (True, True, True)] if finishes else [(*how, False)]  # with all kernels that it may meet
    keeps_weights, keeps_scales = now == "fp8_weights=kept", finishes or now == "fp8_scales=kept"

    def made(*shapes: tuple[int, int]) -> list[Tensor]:
        return [_random(size, *shape, seed=seed).bfloat16() for seed, shape in enumerate(shapes)]

    def scale(dtype: torch.dtype, *xs: Tensor) -> Tensor:
        return scale_of(largest_of(*xs), dtype, ROOM[dtype] if keeps_scales else 1.0)

    def eight(x: Tensor, scale: Tensor | float, dtype: torch.dtype = INPUT) -> Tensor:
        return in_eight_bits(x, scale, dtype).double() * scale

    def kept(*weights: Tensor) -> tuple[Tensor | None, Tensor | None]:
        return quantized_together(weights) if keeps_weights else (None, None)

    x, *weights = made((tokens, d), (d, d), (d, d), (d, d))
    upstream = torch.cat(made(*[(tokens, d)] * 3), dim=1)
    x8, g8 = eight(x, scale(INPUT, x)), eight(upstream, scale(GRADIENT, upstream), GRADIENT)
    w8 = eight(torch.cat(weights), quantized_together(weights)[1])
    largest = torch.stack((largest_of(x), largest_of(upstream), largest_of(*weights))) if keeps_scales else None
    products = torch.compile(Fp8Products.apply, dynamic=False)
    head: tuple[Any, ...] = (*kept(*weights), largest, None, not keeps_scales, *how)
    once = partial(_with_gradients, lambda x, *weights: torch.cat(products(x, *head, *weights), dim=1), [x, *weights], upstream)
    errors = [_largest(once(), [x8 @ w8.t(), g8 @ w8, *(g8.t() @ x8).split(d)])]
    taken_ms = _milliseconds(once, size.device)

    x, w1, w2, upstream = made((tokens, d), (4 * d, d), (d, 4 * d), (tokens, d))
    fixed = scale_of_norms(d)
    x8, g8 = eight(x, fixed), eight(upstream, scale(GRADIENT, upstream), GRADIENT)
    w18, w28 = (eight(weight, quantized_together([weight])[1]) for weight in (w1, w2))
    a = (x8 @ w18.t()).bfloat16().float().relu()  # as float64 makes it, rounded as the compute dtype is
    h8 = eight(a.square(), scale(INPUT, a.square()))
    d_a = 2 * a * (g8 @ w28).bfloat16()
    d_a8 = eight(d_a, scale(GRADIENT, d_a), GRADIENT)
    largest = torch.stack([largest_of(each) for each in (a.square(), upstream, d_a, w1, w2)]) if keeps_scales else None
    mlp = torch.compile(Fp8MLP.apply, dynamic=False)
    for mlp_how in mlps:
        head = (*kept(w1), *kept(w2), largest, fixed, not keeps_scales, *mlp_how)
        once = partial(_with_gradients, lambda x, *weights, head=head: mlp(x, *head, *weights), [x, w1, w2], upstream)
        errors.append(_largest(once(), [h8 @ w28.t(), d_a8 @ w18, d_a8.t() @ x8, g8.t() @ h8]))
    return _worst(errors), taken_ms + _milliseconds(once, size.device)


PROOFS: dict[str, Callable[[str, str, Size], tuple[float, float | None]]] = {
    "attention": _attention,
    "compile": _block,
    "head": _head,
    "mlp": _mlp,
    "muon": _muon,
    **{what: partial(_fp8, what) for what in CHOICES if what.startswith("fp8")},
}
