"""What follows from `depth`: dimensions, parameters and FLOPs of a model."""

from dataclasses import dataclass

from nanochat.common.errors import UserError

ASPECT_RATIO = 64  # model_dim per layer
HEAD_DIM = 128  # the width that attention kernels like best; heads are as wide as this or a little narrower


def model_dim(depth: int) -> int:
    """Width of the residual stream."""
    return ASPECT_RATIO * depth


def num_heads(depth: int) -> int:
    """Attention heads: as few as keep each at most 128 wide."""
    return -(-model_dim(depth) // HEAD_DIM)


def divides_evenly(depth: int) -> bool:
    """Whether the width of depth splits into heads of one even width (rotary positions need pairs)."""
    return depth >= 1 and model_dim(depth) % num_heads(depth) == 0 and model_dim(depth) // num_heads(depth) % 2 == 0


def check_depth(depth: int) -> None:
    """Raises UserError for a depth whose dimensions do not divide, naming the nearest two that do."""
    if divides_evenly(depth):
        return
    if depth < 1:
        raise UserError(f"--depth={depth}: depth is a number of layers, 1 or more; the smallest are 1 and 2")
    below = next(d for d in range(depth - 1, 0, -1) if divides_evenly(d))
    above = next(d for d in range(depth + 1, 2 * depth + 3) if divides_evenly(d))
    raise UserError(
        f"--depth={depth}: a width of {model_dim(depth)} does not divide into {num_heads(depth)} heads of one even width; "
        f"the nearest depths that do are {below} and {above}"
    )


def parameters(depth: int, vocab_size: int) -> int:
    """Parameters: 12·d² a layer, and the embedding and the head of V·d each."""
    d = model_dim(depth)
    return 12 * d * d * depth + 2 * vocab_size * d


def flops_per_token(depth: int, vocab_size: int, seq_len: int) -> int:
    """Training FLOPs per token, forward and backward (PaLM, arXiv 2204.02311, appendix B).

    6·(N − V·d) + 12·L·d·T: the embedding is a look-up and costs nothing; attention is not halved for causality, the
    convention of nanochat, torchtitan and llm-foundry.
    """
    d = model_dim(depth)
    return 6 * (parameters(depth, vocab_size) - vocab_size * d) + 12 * depth * d * seq_len


def reading_flops_per_token(depth: int, vocab_size: int, prompt_tokens: int) -> int:
    """FLOPs of reading a prompt, per token of it: the forward third of training's, without the head, which one token passes."""
    return flops_per_token(depth, vocab_size, prompt_tokens) // 3 - 2 * vocab_size * model_dim(depth)


@dataclass(frozen=True)
class Shape:
    """What fixes the sizes of a model and of its step: depth, vocabulary, length of a sequence."""

    depth: int
    """Layers."""
    vocab_size: int = 65_536
    """Entries of the vocabulary."""
    seq_len: int = 2048
    """Tokens of a sequence."""

    @property
    def model_dim(self) -> int:
        """Width of the residual stream."""
        return model_dim(self.depth)

    @property
    def num_heads(self) -> int:
        """Attention heads."""
        return num_heads(self.depth)

    @property
    def block_parameters(self) -> int:
        """Parameters of one layer: 12·d²."""
        return 12 * self.model_dim**2

    @property
    def embedding_parameters(self) -> int:
        """Parameters of the embedding; the head has as many."""
        return self.vocab_size * self.model_dim

    @property
    def parameters(self) -> int:
        """All of them."""
        return parameters(self.depth, self.vocab_size)

    @property
    def flops_per_token(self) -> int:
        """Training FLOPs per token."""
        return flops_per_token(self.depth, self.vocab_size, self.seq_len)
