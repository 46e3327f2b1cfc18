"""The shape of a model."""

from dataclasses import dataclass

from nanochat.plan import sizes


@dataclass(frozen=True)
class GPTConfig:
    """Every number that the architecture needs."""

    vocab_size: int
    """Entries of the vocabulary, special tokens counted."""
    max_seq_len: int
    """Longest sequence, in tokens, that rotary positions are made for."""
    num_layers: int
    """Transformer blocks: the depth."""
    hidden_size: int
    """Width of the residual stream."""
    num_heads: int
    """Attention heads."""
    intermediate_size: int
    """Width of the MLP."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    rms_norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    logit_softcap: float = 15.0
    """Logits are c·tanh(x/c)."""

    @classmethod
    def from_depth(cls, depth: int, vocab_size: int, max_seq_len: int) -> "GPTConfig":
        """The house's shape of that depth. Raises UserError for a depth whose dimensions do not divide."""
        sizes.check_depth(depth)
        d = sizes.model_dim(depth)
        return cls(vocab_size, max_seq_len, num_layers=depth, hidden_size=d, num_heads=sizes.num_heads(depth), intermediate_size=4 * d)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads
