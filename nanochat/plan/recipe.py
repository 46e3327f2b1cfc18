"""Which kernels make a training step: what `scripts.tune` chooses from, and what a run keeps."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from nanochat.common.errors import UserError

CHOICES = {
    "attention": ("fused", "cudnn", "flash", "fa3", "fa4", "efficient", "math", "products"),
    "muon": ("plain", "halves", "gram"),
    "mlp": ("plain", "fused"),
    "fp8_sums": ("long", "short"),
    "fp8_weights": ("made", "kept"),
    "fp8_scales": ("made", "kept"),
    "fp8_casts": ("plain", "fused"),
    "fp8_mlp": ("plain", "fused"),
    "compile": ("layers", "tuned", "off"),
}


@dataclass(frozen=True)
class Recipe:
    """One way to make a step; every choice but the first of each is proven on the machine before it trains."""

    attention: str = "fused"
    """`fused`: the kernel that torch takes by itself, cuDNN's left out; `cudnn`, `flash` (FlashAttention-2), `fa3` and `fa4` (where
    they are installed), `efficient`, `math`: that one; `products`: plain products and a softmax (see model.attention)."""
    muon: str = "plain"
    """`plain`, `halves` or `gram`, as optim.newton_schulz has them."""
    mlp: str = "plain"
    """Whether relu² and its gradient are passes of their own, `plain`, or the end of the products before them, `fused`: a Triton kernel of
    this project, in bf16."""
    fp8_sums: str = "long"
    """Whether gradients in fp8 are summed in float32, `long`, or in the tensor cores' shorter registers, `short`."""
    fp8_weights: str = "made"
    """Whether weights in eight bits are `made` anew for every micro-batch, or `kept` for a step, which takes a byte for each."""
    fp8_scales: str = "made"
    """Whether scales of inputs, gradients and weights are `made` anew for every micro-batch, or `kept` from a step's first one for the
    others."""
    fp8_casts: str = "plain"
    """Whether what is cast to eight bits is turned in passes that the compiler makes, `plain`, or by Triton kernels of this project."""
    fp8_mlp: str = "plain"
    """As `mlp`, for products in fp8, with the casts of what relu² and its gradient give: by kernels of this project in the micro-batches
    that know their scales, so with `fp8_scales=kept`."""
    compile: str = "layers"
    """`layers`: layer by layer; `tuned`: the same, the compiler trying many kernels, which takes minutes once; `off`."""
    threads: int = 0
    """Threads of a CPU; 0 for torch's own number."""

    @property
    def text(self) -> str:
        """What `changed` takes."""
        words = [f"{name}={value}" for name, value in asdict(self).items() if name != "threads" or value]
        return ",".join(words)

    def changed(self, text: str) -> "Recipe":
        """This one with some choices replaced, from `attention=flash,muon=plain`. Raises UserError for what there is not."""
        changes: dict[str, Any] = {}
        for word in filter(None, text.split(",")):
            name, _, value = word.partition("=")
            if name == "threads" and value.isdecimal():
                changes[name] = int(value)
            elif value in CHOICES.get(name, ()):
                changes[name] = value
            else:
                known = "; ".join(f"{name}: {', '.join(values)}" for name, values in CHOICES.items())
                raise UserError(f"--recipe: {word}: there is no such choice; there are {known}; threads: a number")
        return replace(self, **changes)

    @classmethod
    def of(cls, kept: Any) -> "Recipe | None":
        """From what asdict made, as a file has it; None for what no recipe of this version can be.

        A choice that the version which wrote it did not have is plain: so that version computed.
        """
        names = {field.name for field in fields(cls)}
        if not (isinstance(kept, dict) and "attention" in kept and kept.keys() <= names and isinstance(kept.get("threads", 0), int)):
            return None
        recipe = cls(**kept)
        return recipe if all(getattr(recipe, name) in values for name, values in CHOICES.items()) else None


def proven_in(what: str, precision: str, beside_fp8: str = "bf16") -> str:
    """In which precision a choice is proven; beside_fp8: what computes that fp8 leaves alone."""
    return beside_fp8 if precision == "fp8" and not what.startswith("fp8") else precision


def check_recipe(text: str) -> None:
    """Raises UserError where --recipe is neither auto nor choices that there are."""
    if text != "auto":
        Recipe().changed(text)


PLAIN = Recipe()
