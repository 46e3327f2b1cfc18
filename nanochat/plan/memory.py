"""The memory of one rank at the peak of a training step, by kind, in bytes."""

from dataclasses import dataclass, fields, replace

from nanochat.plan.recompute import Recompute, saved_bytes_per_token_all_layers
from nanochat.plan.sizes import Shape

GIB = 2**30
MASTER_BYTES = 4  # parameters, their gradients and the optimizer's state are float32
FRAGMENTATION = 0.03  # share of what is allocated that the allocator holds besides
CONTEXT_BYTES = 1.5 * GIB  # CUDA's context and NCCL's buffers, outside the allocator
LOGITS_PER_CHUNK_GPU = 2**28  # 4,096 tokens of a 65,536 vocabulary
LOGITS_PER_CHUNK_CPU = 2**21  # 512 tokens of a 4,096 vocabulary: near what a cache holds
BACKWARD_WIDTHS = 10  # a layer's backward pass works on this many tensors of tokens × width at once


@dataclass(frozen=True)
class Memory:
    """Bytes of one rank at the peak of a step."""

    parameters: float
    """Shards of the float32 masters."""
    gradients: float
    """Shards of the float32 gradients."""
    optimizer: float
    """Shards of momentum (Muon) and moments (AdamW)."""
    activations: float
    """What the forward pass keeps for the backward pass."""
    head: float
    """Logits of a chunk, their gradient, and the gradients of the head's input and weight; or what a layer's backward pass
    works on, when that is more: the two never meet."""
    communication: float
    """Whole weights brought together from their shards, and whole gradients on their way to them."""
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
    shape: Shape, micro_batch_size: int, recompute: Recompute, reshard: bool, shard_ranks: int, compute_bytes: int, on_gpu: bool = True
) -> Memory:
    """Memory at the peak of a step of one rank among `shard_ranks` that share the weights."""
    s, c = shape, compute_bytes
    tokens = micro_batch_size * s.seq_len
    width = tokens * s.model_dim * c
    block, table = s.block_parameters, s.embedding_parameters
    shards = s.parameters / shard_ranks
    logits = min(tokens, chunk_tokens(s.vocab_size, on_gpu)) * s.vocab_size
    at_head = 2 * logits * c + 3 * width + table * c
    again = {"none": 0, "elementwise": 4, "mlp": 8, "block": 16}[recompute.of_layer(s.depth - 1)]
    in_block = (BACKWARD_WIDTHS + again) * width
    # Not resharded, every weight is whole; resharded, this layer's and the next one's, arriving in a buffer of its own.
    whole = s.parameters * c if not reshard else (4 * block + table) * c
    # Gradients of a layer, and those of the one before it being reduced, in a buffer each.
    reducing = 2 * block * c + 2 * block * c
    memory = Memory(
        parameters=shards * MASTER_BYTES,
        gradients=shards * MASTER_BYTES,
        optimizer=(s.depth * block + 2 * 2 * table) / shard_ranks * MASTER_BYTES,
        activations=tokens * saved_bytes_per_token_all_layers(s, recompute, c),
        head=max(at_head, in_block),
        communication=whole + reducing,
        reserve=0.0,
    )
    return replace(memory, reserve=memory.peak * FRAGMENTATION + (CONTEXT_BYTES if on_gpu else 0))
