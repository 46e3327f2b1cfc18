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

    def __post_init__(self) -> None:
        """Raises ValueError for what is no size of a model."""
        for name in ("vocab_size", "max_seq_len", "num_layers", "hidden_size", "num_heads", "intermediate_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}, which is no size")
        for name in ("rope_theta", "rms_norm_eps", "logit_softcap"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ValueError(f"{name} is {value!r}, which is no positive number")
        if self.hidden_size % self.num_heads or self.head_dim % 2:
            raise ValueError(f"a width of {self.hidden_size} does not divide into {self.num_heads} heads of one even width")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads
