"""The memory of one rank at the peak of a training step, by kind, and of what it saves from, in bytes."""

import math
from dataclasses import dataclass, fields, replace

from nanochat.plan.recompute import Recompute, saved_bytes_per_token_all_layers
from nanochat.plan.sizes import Shape

GIB = 2**30
MASTER_BYTES = 4  # parameters, their gradients and the optimizer's state are float32
FRAGMENTATION = 0.03  # share of what is allocated that the allocator holds besides
CONTEXT_BYTES = 1.5 * GIB  # CUDA's context and NCCL's buffers, outside the allocator
LOGITS_PER_CHUNK_GPU = 2**28  # 4,096 tokens of a 65,536 vocabulary
LOGITS_PER_CHUNK_CPU = 2**21  # 512 tokens of a 4,096 vocabulary: near what a cache holds
TOKEN_BYTES = 6 * 2 * 8  # ids and targets, int64: those of this micro-batch and of the few that the loader has read ahead
# Tensors of tokens × width that a layer's backward pass has at once besides what is kept: its own and what it computes again.
BACKWARD_WIDTHS = {"none": 2, "mlp": 7.9, "block": 12.9}
FP8_BACKWARD_WIDTHS = {"none": 9.9, "mlp": 14.4, "block": 20.4}  # gradients and inputs in eight bits, and turned
MUON_ROUND_ELEMENTS = 2**27  # of the matrices that a rank orthogonalises at once
MUON_COPIES = 10  # of them: momentum as it is sent and as it arrives, the iteration's own, results going back, and the next round's


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a step, wherever in the step that is."""

    parameters: float
    """Shards of the float32 masters, and whole layers in eight bits where they are kept."""
    gradients: float
    """Shards of the float32 gradients."""
    optimizer: float
    """Shards of momentum (Muon) and moments (AdamW)."""
    activations: float
    """What the forward pass keeps for the backward pass, and the tokens."""
    head: float
    """Logits of a chunk, their gradients, the head's input, and the gradients of that and of its weight; or what a layer's
    backward pass works on, when the peak is there."""
    communication: float
    """Whole weights brought together from their shards, and whole gradients on their way to them; or the matrices that Muon
    brings together and works on, when the peak is there."""
    reserve: float
    """What the allocator holds unused, CUDA's context and NCCL's buffers."""

    @property
    def allocated(self) -> float:
        """Bytes in tensors: what torch.cuda.max_memory_allocated() shows."""
        return self.peak - self.reserve

    @property
    def peak(self) -> float:
        """Everything: what nvidia-smi shows."""
        return sum(getattr(self, field.name) for field in fields(self))


def chunk_tokens(vocab_size: int, on_gpu: bool) -> int:
    """Tokens whose logits exist at once."""
    return max(1, (LOGITS_PER_CHUNK_GPU if on_gpu else LOGITS_PER_CHUNK_CPU) // vocab_size)


def step_memory(
    shape: Shape,
    micro_batch_size: int,
    recompute: Recompute,
    reshard: bool,
    shard_ranks: int,
    compute_bytes: int,
    on_gpu: bool = True,
    accumulates: bool = True,
    fp8: bool = False,
    by_products: bool = False,
    kept_fp8: bool = False,
) -> Memory:
    """Memory at the peak of a step of one rank among `shard_ranks` that share the weights.

    by_products: whether attention is made by products, which keep its weights.
    kept_fp8: whether all weights of layers are kept in eight bits too.
    accumulates: whether a step has several micro-batches, so that the gradients of some stand while the next is computed.
    tests/parallel/test_step_memory.py follows every allocation of a step and holds this to their peak.
    """
    s, c = shape, compute_bytes
    tokens = micro_batch_size * s.seq_len
    width = tokens * s.model_dim * c
    block, table = s.block_parameters, s.embedding_parameters
    shards = s.parameters / shard_ranks
    eights = s.depth * block if kept_fp8 else 0
    optimizer = (s.depth * block + 2 * 2 * table) / shard_ranks * MASTER_BYTES
    ids = tokens * TOKEN_BYTES
    # The first norm and the last keep their inputs too.
    kept = tokens * saved_bytes_per_token_all_layers(s, recompute, c, fp8, by_products) + 2 * width + ids
    # Weights arrive in a buffer and are copied out of it; a single rank has them already and only casts them.
    arriving = c if shard_ranks > 1 else 0

    def at(gradients: float, activations: float, head: float, communication: float) -> Memory:
        memory = Memory(shards * MASTER_BYTES + eights, gradients * MASTER_BYTES, optimizer, activations, head, communication, 0.0)
        return replace(memory, reserve=memory.peak * FRAGMENTATION + (CONTEXT_BYTES if on_gpu else 0))

    # A chunk's logits and their gradient; the head's input and weight with their gradients. What the last reduction of a
    # micro-batch reads, the embedding's, lives until the next backward pass.
    chunk = min(tokens, chunk_tokens(s.vocab_size, on_gpu))
    at_head = at(
        gradients=shards if accumulates else 0,
        activations=kept,
        head=2 * chunk * s.vocab_size * c + 2 * width + table * c,
        communication=(table if reshard else s.parameters) * c + table * arriving + (table * MASTER_BYTES if accumulates else 0),
    )
    # The last layer's backward pass, while nothing else is given up: its gradients, and those of the head being reduced.
    in_last_layer = at(
        gradients=shards if accumulates else table / shard_ranks,
        activations=kept,
        head=(FP8_BACKWARD_WIDTHS if fp8 else BACKWARD_WIDTHS)[recompute.of_layer(s.depth - 1)] * width,
        communication=(block * (c + arriving) if reshard else (s.parameters - table) * c) + block * c + table * MASTER_BYTES,
    )
    # The embedding's gradient is of the whole table, however few tokens there were.
    at_embedding = at(shards, ids + 2 * width, 0, table * (2 * c + MASTER_BYTES))
    # Activations and whole weights are gone; Muon works on a round of the matrices that this rank owns: a third of the layer's
    # weights are of one shape.
    round_elements = min(MUON_ROUND_ELEMENTS, math.ceil(s.depth / shard_ranks) * block / 3)
    in_optimizer = at(shards, ids, 0, MUON_COPIES * round_elements * c)
    return max(at_head, in_last_layer, at_embedding, in_optimizer, key=lambda memory: memory.peak)


def pinned_copy_bytes(shape: Shape, shard_ranks: int) -> int:
    """Memory on the CPU that one rank gets for the copy that a checkpoint is written from, where GPUs copy into it.

    Such memory is pinned, and torch rounds each tensor's up to a power of two of bytes.
    """
    width, depth = shape.model_dim, shape.depth
    # Rows, columns, how many there are, and tensors of each: its master, and Muon's momentum or AdamW's two moments.
    kinds = (
        (width, width, 4 * depth, 2),
        (4 * width, width, depth, 2),
        (width, 4 * width, depth, 2),
        (shape.vocab_size, width, 2, 3),
    )
    shards = [(math.ceil(rows / shard_ranks) * columns * MASTER_BYTES, count * tensors) for rows, columns, count, tensors in kinds]
    return sum(count * (1 << (size - 1).bit_length()) for size, count in shards)
