"""The weights that training starts from: a function of the seed, whoever holds which rows."""

import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from nanochat.model.elementwise import rotary_table, rotate
from nanochat.model.gpt import GPT

ROWS_AT_ONCE = 128  # rows that one seed makes: a rank that holds a part of a matrix makes little more than that part
PREVIOUS = 4  # heads of the first layer, at most, that begin by looking at tokens before
IN_COMMON = 0.5  # cosine of each row of the embedding with the first axis, where there are such heads
HEARD = 1.5  # nats that they begin above all other tokens of a sequence together, were those all alike
FAST_PAIRS = 9  # rotary pairs, the fastest, by which they tell one distance from another


def initial_std(name: str, parameter: Tensor, projections: float = 0.0) -> float:
    """The known-good start: embedding N(0, 1); matrices N(0, min(1, out/in) / in); head zero, and output projections too.

    projections: what output projections have instead of zero, as a share of in^−½.
    """
    if "embed_tokens" in name:
        return 1.0
    if name.endswith("lm_head.weight"):
        return 0.0
    fan_out, fan_in = parameter.shape
    if name.endswith(("o_proj.weight", "fc2.weight")):
        return projections * fan_in**-0.5
    return math.sqrt(min(1.0, fan_out / fan_in) / fan_in)


def normal_rows(name: str, first: int, rows: int, columns: int, std: float, seed: int) -> Tensor:
    """Rows `first` to `first + rows` of the matrix that `name` and `seed` stand for, (rows, columns) float32 on the CPU."""
    out = torch.empty(rows, columns)
    row = first
    while row < first + rows:
        block, skip = divmod(row, ROWS_AT_ONCE)
        digest = hashlib.sha256(f"{seed}/{name}/{block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        made = torch.empty(ROWS_AT_ONCE, columns).normal_(std=std, generator=generator)[skip : first + rows - row + skip]
        out[row - first : row - first + len(made)] = made
        row += len(made)
    return out


@torch.no_grad()
def init_weights(
    model: GPT,
    seed: int,
    rows_held: Callable[[Tensor], tuple[Tensor, int]] = lambda parameter: (parameter, 0),
    std_of: Callable[[str, Tensor], float] = initial_std,
) -> None:
    """Give every parameter its start.

    rows_held: the rows of a parameter that this process holds, and the number of the first; default all of them.
    """
    for name, parameter in model.named_parameters():
        held, first = rows_held(parameter)
        std = std_of(name, parameter)
        if std == 0:
            held.zero_()
        else:
            held.copy_(normal_rows(name, first, held.size(0), held.size(1), std, seed))


@torch.no_grad()
def look_back(model: GPT, rows_held: Callable[[Tensor], tuple[Tensor, int]] = lambda parameter: (parameter, 0)) -> None:
    """Have head h of the first layer begin by attending to the token h + 1 before, the first `PREVIOUS` heads.

    Without biases nothing is the same in all queries; so every row of the embedding gets the same share of its length in the first
    coordinate. Of that alone queries and keys make a vector for each head, the key's turned by h + 1 positions. Such heads are the
    first half of induction (arXiv 2209.11895), of which neither half helps without the other. rows_held: as of init_weights, after
    which it is called.
    """
    config = model.config
    embedding, _ = rows_held(model.model.embed_tokens.weight)
    embedding[:, 0] = IN_COMMON * (1 - IN_COMMON**2) ** -0.5 * embedding[:, 1:].norm(dim=1)
    heads, pairs = min(PREVIOUS, config.num_heads), min(FAST_PAIRS, config.head_dim // 2)
    query = torch.zeros(1, heads, 1, config.head_dim)
    score = min((math.log(config.max_seq_len) + HEARD) / config.head_dim**0.5, 0.9)  # of the most that there can be
    clarity = (score / (1 - score)) ** 0.5  # held against what random weights make of a token
    query[..., :pairs] = clarity * (config.head_dim / pairs / config.hidden_size) ** 0.5 / IN_COMMON
    key = rotate(query, *(each[1:] for each in rotary_table(heads + 1, config.head_dim, config.rope_theta)))
    for name, vectors in (("q_proj", query), ("k_proj", key)):
        held, first = rows_held(model.get_parameter(f"model.layers.0.self_attn.{name}.weight"))
        column = vectors.flatten()[first : first + len(held)].to(held.device)
        held[: len(column), 0] += column
