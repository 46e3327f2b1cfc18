"""The GPT of nanochat, which `transformers` carries as NanoChatForCausalLM: module names are those of its weights file.

Rotary positions, then RMSNorm on q and k; RMSNorm without weights everywhere, one after the embedding too; a relu² MLP;
untied embedding and head; no biases; soft-capped logits. Sharding, precision and compilation are applied from outside.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from nanochat.model.attention import fused_attention
from nanochat.model.config import GPTConfig
from nanochat.model.elementwise import norm, relu_squared, rms_norm, rotary_table, rotated_norm
from nanochat.model.loss import Head


class KVCache(Protocol):
    """What attention needs of a cache of keys and values."""

    def positions(self, tokens: int) -> slice | Tensor:
        """The positions of the tokens of this forward pass: the same for all rows, or (B, T)."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep the new k, v of a layer and attend with q to all that each query may see; all (B, H, T, D)."""


class Attention(nn.Module):
    """The projections of causal self-attention, with rotary positions and normalised queries and keys."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.num_heads, self.eps = config.num_heads, config.rms_norm_eps
        d = config.hidden_size
        self.q_proj = nn.Linear(d, d, bias=False)
        self.k_proj = nn.Linear(d, d, bias=False)
        self.v_proj = nn.Linear(d, d, bias=False)
        self.o_proj = nn.Linear(d, d, bias=False)

    def projected(self, x: Tensor) -> tuple[Tensor, ...]:
        """x: (B, T, d) → q, k, v, each (B, T, d)."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, T, d) → q, k, v, each (B, H, T, D)."""
        B, T, d = x.shape
        q, k, v = (each.view(B, T, self.num_heads, d // self.num_heads) for each in self.projected(x))
        q, k = (rotated_norm(each, cos, sin, self.eps).transpose(1, 2) for each in (q, k))
        return q, k, v.transpose(1, 2)

    def joined(self, y: Tensor) -> Tensor:
        """What the heads have found, y: (B, H, T, D), brought together: (B, T, d)."""
        return self.o_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two layers with relu² between (Primer, arXiv 2109.08668)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.in_training: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None  # another way, of input and weights

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T, d) → (B, T, d)."""
        if self.in_training and torch.is_grad_enabled():
            return self.in_training(x, self.fc1.weight, self.fc2.weight)
        return self.fc2(relu_squared(self.fc1(x)))


class Block(nn.Module):
    """Attention, then MLP, each added to the residual stream."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.eps = layer, config.rms_norm_eps
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] = fused_attention  # another way may take its place
        self.self_attn = Attention(config)
        self.mlp = MLP(config)

    def before_attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, T, d) → q, k, v, each (B, H, T, D)."""
        return self.self_attn.heads(norm(x, self.eps), cos, sin)

    def after_attention(self, x: Tensor, y: Tensor) -> Tensor:
        """x: (B, T, d), and what its heads found, y: (B, H, T, D) → (B, T, d)."""
        x = x + self.self_attn.joined(y)
        return x + self.mlp(norm(x, self.eps))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None = None) -> Tensor:
        """x: (B, T, d) → (B, T, d)."""
        q, k, v = self.before_attention(x, cos, sin)
        if cache is not None:
            return self.after_attention(x, cache.attend(self.layer, q, k, v))
        return self.after_attention(x, self.attend(q, k, v))


class Trunk(nn.Module):
    """Everything but the head: token ids to the hidden states that the head reads."""

    cos: Tensor
    sin: Tensor

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.eps = config.rms_norm_eps
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.register_buffer("cos", torch.empty(0), persistent=False)
        self.register_buffer("sin", torch.empty(0), persistent=False)
        self.init_rotary()

    def init_rotary(self) -> None:
        """Make the table of rotary positions, in float32 on the parameters' device."""
        device = self.embed_tokens.weight.device
        table = rotary_table(self.config.max_seq_len, self.config.head_dim, self.config.rope_theta)
        self.cos, self.sin = (each.to(device) for each in table)

    def forward(self, ids: Tensor, cache: KVCache | None = None) -> Tensor:
        """ids: (B, T) int64 → hidden states (B, T, d)."""
        positions = cache.positions(ids.size(1)) if cache is not None else slice(0, ids.size(1))
        cos, sin = self.cos[positions], self.sin[positions]
        x = rms_norm(self.embed_tokens(ids), self.eps)
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        return rms_norm(x, self.eps)


class Renewed(Protocol):
    """Something made of the weights, which goes stale as they change."""

    def renew(self) -> None:
        """Make it anew when it is next wanted."""


class GPT(nn.Module):
    """A language model: hidden states by the trunk, logits or losses by the head."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        self.kept_for_a_step: Renewed | None = None  # what is made of the weights, or found, by a step's first micro-batch
        self.model = Trunk(config)
        self.lm_head = Head(config.hidden_size, config.vocab_size, config.logit_softcap)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        *,
        weights: Tensor | None = None,
        per_token: bool = False,
        likeliest: bool = False,
        cache: KVCache | None = None,
        logits_to_keep: int = 0,
        logits_at: Tensor | None = None,
    ) -> Tensor:
        """ids: (B, T) int64 → logits (B, T, V) in float32; only the last `logits_to_keep` positions' when that is given, only those
        of one position in each row, (B, 1, V), with logits_at: (B,).

        With targets: (B, T), −1 where there is none: the sum of the losses in nats, each times its weight (B, T) where there are
        weights, a differentiable float32 scalar; with per_token too: each token's loss (B, T), not differentiable; with likeliest
        too: whether each target is the likeliest token, bool (B, T), True where there is no target.
        """
        hidden = self.model(ids, cache)
        if logits_at is not None:
            hidden = hidden[torch.arange(ids.size(0), device=ids.device), logits_at][:, None]
        loss_or_logits: Tensor = self.lm_head(hidden[:, -logits_to_keep:], targets, per_token, weights, likeliest)
        return loss_or_logits
