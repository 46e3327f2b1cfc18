"""What is kept of a layer for the backward pass, and what is computed again there."""

from dataclasses import dataclass

from nanochat.common.errors import UserError
from nanochat.plan.sizes import Shape

LEVELS = ("none", "mlp", "block")
SCORES_KEPT = 0.68  # of the weights of attention by products: five of eight blocks, and masks


@dataclass(frozen=True, order=True)
class Recompute:
    """The first `layers` layers recompute at `level`, the others at the level before it.

    none keeps what the products and attention read; mlp computes the MLP's first product and relu² again; block all of the layer.
    """

    level: int
    """Index into LEVELS."""
    layers: int
    """How many layers."""

    @classmethod
    def parse(cls, text: str, depth: int) -> "Recompute":
        """From `LEVEL` or `LEVEL:LAYERS`. Raises UserError for anything else."""
        name, _, number = text.partition(":")
        if name not in LEVELS or (number and not (number.isdecimal() and 0 < int(number) <= depth)):
            raise UserError(
                f"--recompute={text}: auto, {', '.join(LEVELS)}, or one of these for some layers only, as in mlp:{max(1, depth // 2)} "
                f"(1 to {depth} layers)"
            )
        return cls(LEVELS.index(name), int(number) if number and name != "none" else depth)

    def of_layer(self, layer: int) -> str:
        """The level's name at a layer."""
        return LEVELS[self.level if layer < self.layers else max(self.level - 1, 0)]

    def text(self, depth: int) -> str:
        """What `parse` takes."""
        return LEVELS[self.level] + ("" if self.layers == depth else f":{self.layers}")


def saved_bytes_per_token(shape: Shape, level: str, compute_bytes: int, fp8: bool = False, by_products: bool = False) -> float:
    """Bytes of one layer that live from its forward to its backward pass, for each token, its input counted in.

    In units of the width d: none keeps the norm of the input, normed q and k, v, attention's result, the second norm and the MLP's
    4d after relu² (10); mlp is without the 4d (6); block has the input alone. To that come float32 factors of norms and
    attention's log-sum-exp. With products in fp8 both norms are kept in a byte too, which mlp makes again of the second.
    Attention by products keeps its weights and five widths more. tests/parallel/test_recompute.py counts what autograd really keeps.
    """
    d, heads = shape.model_dim, shape.num_heads
    if level == "block":
        return d * compute_bytes
    scores = heads * shape.seq_len * SCORES_KEPT + 5 * d if by_products else 0
    widths, eights = (10, 2) if level == "none" else (6, 1)
    return (scores + widths * d) * compute_bytes + (eights * d if fp8 else 0) + (3 * heads + 2) * 4


def saved_bytes_per_token_all_layers(
    shape: Shape, recompute: Recompute, compute_bytes: int, fp8: bool = False, by_products: bool = False
) -> float:
    """Of all layers together."""
    kept = {level: saved_bytes_per_token(shape, level, compute_bytes, fp8, by_products) for level in LEVELS}
    return recompute.layers * kept[recompute.of_layer(0)] + (shape.depth - recompute.layers) * kept[recompute.of_layer(recompute.layers)]
