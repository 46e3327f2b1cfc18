"""Seconds of a training step of one rank, by kind of work."""

import math
from dataclasses import dataclass, fields, replace
from functools import cache

from nanochat.plan.hardware import Gpu
from nanochat.plan.measurements import Measurement
from nanochat.plan.profile import measured, profile_of
from nanochat.plan.recipe import PLAIN, Recipe
from nanochat.plan.recompute import Recompute
from nanochat.plan.sizes import Shape

# Shares of the peaks that a step's work reaches, from the H100's measurements: products of two widths (larger ones draw more
# power, and the power limit is the ceiling), attention forward and backward by its causal count, element-wise kernels of the bandwidth.
PRODUCTS_SHARE = ((2432, 0.69), (3328, 0.653))
FP8_PRODUCTS_SHARE = 0.67  # of fp8's own peak
ATTENTION_SHARE = 0.319
BANDWIDTH_SHARE = 0.9
NEWTON_SCHULZ_SHARE = 0.6
LINK_SHARE = 0.75

# Reads and writes of tokens × width that a layer's element-wise kernels make in bf16, forward and backward, by precision, and those
# of the prototype that was measured; counted in the kernels that Inductor writes for an H100 (tests/parallel/test_compiled_kernels.py).
ELEMENTWISE_WIDTHS = {"bf16": 49.1, "fp8": 69.4}
FP8_FIRST_WIDTHS = 10.0  # besides, in a step's first micro-batch: the largest values, of which scales are made
PROTOTYPE_WIDTHS = {"bf16": 61.1, "fp8": 98.3}
ELEMENTWISE_SHARE = {"bf16": 0.79, "fp8": 0.70}  # of the bandwidth, which they reach
BYTES_PER_LOGIT = 12  # of the softmax and its gradient
RECOMPUTED_WIDTHS = {"none": 0, "mlp": 8, "block": 17}  # element-wise reads and writes made again
FORWARD_SHARE = 2 / 6  # of the FLOPs of forward and backward
NEWTON_SCHULZ_FLOPS = 4 * 30 + 2 * 90  # in d³: five iterations on a layer's four square matrices and two of the MLP
OPTIMIZER_BYTES = 40  # read and written a parameter: gradient, state and master
MASTER_BYTES = 4
GRADIENT_BYTES = 4  # gradients are reduced in float32
NETWORK_BYTES_PER_S = 50e9  # 400 Gbit/s a GPU between nodes


@dataclass(frozen=True)
class Job:
    """What a plan is made for: a model on so many GPUs, and the batch of a step."""

    shape: Shape
    """Sizes of the model."""
    gpu: Gpu
    """What each rank runs on."""
    world_size: int
    """Ranks in all."""
    shard_ranks: int
    """Ranks that share the weights: those of one node."""
    total_batch_size: int
    """Tokens of a step, over all ranks and micro-batches."""
    device_batch_size: int
    """Most sequences of a micro-batch."""
    compute_bytes: int = 2
    """Of a number in the computation: 2 for bf16, 4 for float32."""
    on_gpu: bool = True
    """Whether it runs on GPUs."""
    fp8: bool = False
    """Whether the products inside layers are made in fp8."""
    recipe: Recipe = PLAIN
    """The kernels."""
    network_bytes_per_s: float = NETWORK_BYTES_PER_S
    """Between nodes, of one GPU, in one direction."""

    @property
    def precision(self) -> str:
        """As --precision names it."""
        return "fp8" if self.fp8 else "bf16" if self.compute_bytes == 2 else "fp32"


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step of one rank."""

    products: float
    """Matrix products of layers and head."""
    attention: float
    """Attention, forward and backward."""
    elementwise: float
    """Norms, rotary positions, relu², residual sums, softmax."""
    recompute: float
    """What the backward pass computes a second time."""
    sharding: float
    """Copies into and out of the buffers in which weights are brought together and gradients are reduced."""
    communication: float
    """What of the traffic between GPUs is not hidden behind computing."""
    optimizer: float
    """Newton–Schulz and the updates."""

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return sum(getattr(self, field.name) for field in fields(self))


def step_time(job: Job, micro_batch_size: int, grad_accum_steps: int, recompute: Recompute, reshard: bool) -> StepTime:
    """Predicted seconds of a step: the work's amount over what the GPU does of it, scaled to what was measured on its kind.

    Where this very step was measured on this machine, its time is that.
    """
    sums = computing_time(job, micro_batch_size, grad_accum_steps, recompute, reshard)
    taken = own_step_s(job).get((micro_batch_size, grad_accum_steps, recompute, reshard))
    computing = scaled(sums, taken / sums.total if taken else calibration(job.gpu, job.precision, job.shape.depth))
    return replace(computing, communication=_communication(job, computing, grad_accum_steps, reshard))


def computing_time(
    job: Job, micro_batch_size: int, grad_accum_steps: int, recompute: Recompute, reshard: bool, prototype: bool = False
) -> StepTime:
    """The same without communication, and without regard to what was measured on the kind. prototype: of the early program's kernels."""
    s, gpu, c = job.shape, job.gpu, job.compute_bytes
    d, depth = s.model_dim, s.depth
    tokens = micro_batch_size * grad_accum_steps * s.seq_len
    peak, bandwidth = gpu.peak_flops(c), BANDWIDTH_SHARE * gpu.bandwidth_bytes_per_s
    product_flops_per_s = products_share(d) * peak
    layer_flops_per_s = FP8_PRODUCTS_SHARE * (gpu.peak_fp8_flops or peak) if job.fp8 else product_flops_per_s
    kernels = "fp8" if job.fp8 else "bf16"
    widths = (PROTOTYPE_WIDTHS if prototype else ELEMENTWISE_WIDTHS)[kernels]
    widths += FP8_FIRST_WIDTHS / grad_accum_steps if job.fp8 and not prototype else 0
    width_s = d * c / (ELEMENTWISE_SHARE[kernels] * gpu.bandwidth_bytes_per_s)
    attention_flops_per_s = ATTENTION_SHARE * peak

    attention_flops = 6 * depth * d * s.seq_len
    again = _recomputed(s, recompute)
    # Bringing the weights together casts the shard, and copies what has arrived into its place; once a micro-batch or, when they were
    # given up after the forward pass, twice. Reducing copies every gradient into a buffer of float32, and adds up what comes back.
    gather_bytes = 2 * c + (c + MASTER_BYTES) / job.shard_ranks
    reduce_bytes = c + GRADIENT_BYTES + 3 * GRADIENT_BYTES / job.shard_ranks
    sharding_bytes = grad_accum_steps * s.parameters * ((2 if reshard else 1) * gather_bytes + reduce_bytes)
    newton_schulz_flops = depth * NEWTON_SCHULZ_FLOPS * d**3 / job.world_size
    return StepTime(
        products=tokens * 6 * (s.depth * s.block_parameters / layer_flops_per_s + s.embedding_parameters / product_flops_per_s),
        attention=tokens * attention_flops / attention_flops_per_s,
        elementwise=tokens * (widths * depth * width_s + BYTES_PER_LOGIT * s.vocab_size / bandwidth),
        recompute=tokens
        * (again.product_flops / layer_flops_per_s + again.attention_flops / attention_flops_per_s + again.widths * width_s),
        sharding=sharding_bytes / bandwidth,
        communication=0.0,
        optimizer=newton_schulz_flops / (NEWTON_SCHULZ_SHARE * peak) + OPTIMIZER_BYTES * s.parameters / job.shard_ranks / bandwidth,
    )


def products_share(model_dim: int) -> float:
    """Share of the peak that products of this width reach: linear between the two that were measured, and flat beyond them."""
    (narrow, high), (wide, low) = PRODUCTS_SHARE
    along = min(1.0, max(0.0, (model_dim - narrow) / (wide - narrow)))
    return high + along * (low - high)


@dataclass(frozen=True)
class _Again:
    """Work for one token that all layers do again."""

    product_flops: float
    attention_flops: float
    widths: float


def _recomputed(s: Shape, recompute: Recompute) -> _Again:
    product_flops = attention_flops = widths = 0.0
    upper = recompute.layers
    for level, layers in ((recompute.of_layer(0), upper), (recompute.of_layer(upper), s.depth - upper)):
        widths += layers * RECOMPUTED_WIDTHS[level]
        if level == "mlp":
            product_flops += layers * 8 * s.model_dim**2
        if level == "block":
            product_flops += layers * FORWARD_SHARE * 6 * s.block_parameters
            attention_flops += layers * FORWARD_SHARE * 6 * s.model_dim * s.seq_len
    return _Again(product_flops, attention_flops, widths)


def traffic_time(job: Job, grad_accum_steps: int, reshard: bool) -> float:
    """Seconds that the traffic of a step takes, hidden or not."""
    per_micro_batch, per_step = _traffic(job, reshard)
    return grad_accum_steps * per_micro_batch + per_step


def _traffic(job: Job, reshard: bool) -> tuple[float, float]:
    """Seconds of traffic of a micro-batch (weights and gradients), and of a step besides (Muon's two exchanges)."""
    s, c, ranks = job.shape, job.compute_bytes, job.shard_ranks
    link = LINK_SHARE * job.gpu.link_bytes_per_s
    others = (ranks - 1) / ranks
    per_micro_batch = s.parameters * ((2 if reshard else 1) * c + GRADIENT_BYTES) * others / link
    replicas = job.world_size // ranks
    if replicas > 1:
        ring = 2 * (replicas - 1) / replicas
        per_micro_batch += ring * GRADIENT_BYTES * s.parameters / ranks / (LINK_SHARE * job.network_bytes_per_s)
    return per_micro_batch, 2 * c * s.depth * s.block_parameters / ranks * others / link


def _communication(job: Job, computing: StepTime, grad_accum_steps: int, reshard: bool) -> float:
    """What traffic is not hidden: all that is more than the computing beside it, and the first layer's weights of each micro-batch."""
    per_micro_batch, per_step = _traffic(job, reshard)
    others = (job.shard_ranks - 1) / job.shard_ranks
    first_layer = job.shape.block_parameters * job.compute_bytes * others / (LINK_SHARE * job.gpu.link_bytes_per_s)
    beside = (computing.total - computing.optimizer) / grad_accum_steps
    exposed = max(0.0, per_micro_batch - first_layer - beside) + first_layer
    return grad_accum_steps * exposed + max(0.0, per_step - computing.optimizer)


def scaled(time: StepTime, factor: float) -> StepTime:
    """Every kind of work times a factor."""
    return StepTime(**{field.name: getattr(time, field.name) * factor for field in fields(time)})


def predicted_of(row: Measurement, gpu: Gpu) -> StepTime:
    """What the sums give for a measured configuration, without communication, which a rank of many run alone does not have."""
    shape = Shape(row.depth, row.vocab_size, row.seq_len)
    total = row.micro_batch_size * row.grad_accum_steps * row.seq_len * row.world_size
    width, fp8 = 4 if row.precision == "fp32" else 2, row.precision == "fp8"
    job = Job(shape, gpu, row.world_size, row.world_size, total, row.micro_batch_size, width, fp8=fp8)
    recompute = Recompute.parse(row.recompute, row.depth)
    return computing_time(job, row.micro_batch_size, row.grad_accum_steps, recompute, row.reshard, row.source == "prototype")


def calibration(gpu: Gpu, precision: str, depth: int) -> float:
    """Measured over predicted seconds of steps near a depth on this kind of GPU, their geometric mean; 1 where nothing was measured."""
    return _geometric_mean(gpu, measured(gpu, precision, depth))


@cache
def _geometric_mean(gpu: Gpu, rows: tuple[Measurement, ...]) -> float:
    ratios = [math.log(row.step_s / predicted_of(row, gpu).total) for row in rows]
    return math.exp(sum(ratios) / len(ratios)) if ratios else 1.0


Configuration = tuple[int, int, Recompute, bool]


def own_step_s(job: Job) -> dict[Configuration, float]:
    """Seconds of every way to make this job's step that was measured on this machine, the fastest kernels of each.

    By micro-batch, number of micro-batches, what is recomputed, and whether weights are given up.
    """
    profile = profile_of(job.gpu)
    found: dict[Configuration, float] = {}
    s, sequences = job.shape, job.total_batch_size // (job.shape.seq_len * job.world_size)
    size = (s.depth, s.seq_len, s.vocab_size, job.shard_ranks, job.precision, sequences)
    for row in profile.rows if profile else ():
        if (row.depth, row.seq_len, row.vocab_size, row.world_size, row.precision, row.micro_batch_size * row.grad_accum_steps) == size:
            way = (row.micro_batch_size, row.grad_accum_steps, Recompute.parse(row.recompute, row.depth), row.reshard)
            found[way] = min(row.step_s, found.get(way, row.step_s))
    return found
