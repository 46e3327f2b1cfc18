"""Which kernels a run computes with: those that its machine's profile names, or defaults; what is not proven yet proves itself first."""

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from nanochat.common.console import say, warn
from nanochat.common.errors import UserError
from nanochat.optim.newton_schulz import has_copy_engine
from nanochat.parallel.attention import PACKAGES, installed_packages, take_attention
from nanochat.parallel.compiling import compiler_missing
from nanochat.parallel.precision import Precision, makes_fp8_products, resolve_precision
from nanochat.parallel.proofs import Proof, Size, names, prove
from nanochat.plan.hardware import Gpu
from nanochat.plan.profile import Profile, add_proofs, profile_of
from nanochat.plan.recipe import CHOICES, PLAIN, Recipe, proven_in

CUDNN_FROM = (9, 0)  # on Hopper cuDNN's forward and backward reach 399 TFLOP/s where FlashAttention-2 reaches 236
PRODUCTS_UP_TO = 1024  # tokens of a sequence whose scores a CPU's caches bear
NAMES = {torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Kernels:
    """How a run computes."""

    dtype: torch.dtype
    """Of the model, apart from products in fp8."""
    fp8: bool
    """Whether the products inside layers are made in fp8."""
    recipe: Recipe
    """The kernels."""
    why: str
    """Where the choice comes from, in words."""
    proven: tuple[Proof, ...] = ()
    """What no profile had proven, and proved itself now."""

    @property
    def precision(self) -> str:
        """bf16, fp32 or fp8."""
        return "fp8" if self.fp8 else NAMES[self.dtype]

    @property
    def text(self) -> str:
        """The choice and why, in a line."""
        return f"kernels: {self.precision}, {self.recipe.text} ({self.why})"

    def take(self, world_size: int) -> None:
        """Let this process compute so, as far as that is torch's own setting. The model is built for the rest.

        A number of threads that was given in the environment, or that ranks on one machine share, stays as it is.
        """
        take_attention(self.recipe.attention)
        if self.recipe.threads and world_size == 1 and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(self.recipe.threads)


def settle_here(
    gpu: Gpu, asked: Precision, choices: str, compiles: bool, size: Size, kept: tuple[Precision, Recipe] | None = None
) -> Kernels:
    """`settle` on this very machine: by its profile, which then has what proved itself too, so that the next start need not wait for it."""
    kernels = settle(asked, choices, compiles, size, profile_of(gpu), kept)
    if kernels.proven:
        proofs = [{**proof.to_json(), "at": _at(size)} for proof in kernels.proven]
        add_proofs(gpu, proofs, torch.version.cuda or torch.version.hip)
    return kernels


def _at(size: Size) -> list[int]:
    """As a profile has it."""
    return [size.depth, size.seq_len, size.vocab_size]


def settle(
    asked: Precision, choices: str, compiles: bool, size: Size, profile: Profile | None, kept: tuple[Precision, Recipe] | None = None
) -> Kernels:
    """The kernels of a run of a size, given what --precision and --recipe ask for, and whether it may compile.

    kept: what the run has computed with so far, which it goes on with.

    The profile's where there is one. What is not proven by it proves itself now, or is left out with a warning.
    Raises UserError where fp8 is not to be had, or what --recipe asks for does not prove itself.
    """
    if kept:
        asked = kept[0]
    elif asked == "auto" and profile and profile.tuned and size.device.type == "cpu":
        asked = "fp32" if profile.precision == "fp32" else "bf16"
    dtype, fp8 = resolve_precision(asked, size.device), makes_fp8_products(asked, size.device)
    precision = "fp8" if fp8 else NAMES[dtype]
    tuned = profile.recipe_for(precision, size.depth, size.seq_len) if profile else None
    compiles = compiles and not compiler_missing(size.device)
    if kept:
        recipe, why = kept[1], "as this run began"
    elif tuned:
        recipe = tuned.recipe
        why = f"of {tuned.tried} ways that scripts.tune measured here on {profile.date if profile else ''} the fastest"
    else:
        recipe = _default(size, dtype, fp8, compiles)
        why = "defaults; python -m scripts.tune measures what is fastest here"
    if choices != "auto" and not kept:
        recipe, why = recipe.changed(choices), f"--recipe={choices}"
    if fp8 and (recipe.fp8_mlp, recipe.fp8_scales) == ("fused", "made"):
        raise UserError("--recipe: fp8_mlp=fused needs scales that are known beforehand: give fp8_scales=kept too")
    if not compiles:
        recipe = _uncompiled(recipe)
    recipe = _without_struck(recipe, precision, profile)
    recipe, proven = _proven(recipe, precision, NAMES[dtype], choices.split(","), size, profile)
    return Kernels(dtype, fp8, recipe, why, proven)


def _proven(
    recipe: Recipe, precision: str, beside_fp8: str, asked: list[str], size: Size, profile: Profile | None
) -> tuple[Recipe, tuple[Proof, ...]]:
    """The recipe without what neither the profile proves nor proves itself now, and what did."""
    unproven = _unproven(recipe, precision, beside_fp8, size, profile)
    if not unproven:
        return recipe, ()
    say(f"proving on this machine, before it trains: {', '.join(unproven)}")
    proven = []
    for name in unproven:
        what, way = name.split("=")
        if name != "head=compiled" and getattr(recipe, what) != way:
            continue  # it went with another
        if recipe.compile == "off" and name == "head=compiled":
            continue
        if proof := _proof_of(name, proven_in(what, precision, beside_fp8), size, name in asked):
            proven.append(proof)
        elif name == "compile=tuned":
            recipe = replace(recipe, compile="layers")
            unproven += [each for each in _unproven(recipe, precision, beside_fp8, size, profile) if each not in unproven]
        elif name in ("compile=layers", "head=compiled"):
            recipe = _uncompiled(recipe)
        else:
            recipe = replace(recipe, **{what: getattr(PLAIN, what)})
    if torch.cuda.is_initialized():  # float64 took memory, which is not the run's
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(size.device)
    return recipe, tuple(proven)


def _uncompiled(recipe: Recipe) -> Recipe:
    """The same without a compiler, without which the many small steps of products are slow."""
    return replace(recipe, compile="off", attention="fused" if recipe.attention == "products" else recipe.attention)


def _default(size: Size, dtype: torch.dtype, fp8: bool, compiles: bool) -> Recipe:
    """What is likely fast on such a device, little as it is: the rest is for scripts.tune to find out."""
    if dtype != torch.bfloat16:
        return PLAIN
    if size.device.type == "cpu":
        return replace(PLAIN, attention="products") if compiles and size.seq_len <= PRODUCTS_UP_TO else PLAIN
    hopper = not torch.version.hip and torch.cuda.get_device_capability(size.device) >= CUDNN_FROM
    in_fp8 = replace(PLAIN, fp8_casts="fused", fp8_scales="kept") if fp8 else PLAIN
    fused = "fused" if compiles and not fp8 and has_copy_engine(size.device) else "plain"
    return replace(in_fp8, attention="cudnn", mlp=fused) if hopper else in_fp8


def _without_struck(recipe: Recipe, precision: str, profile: Profile | None) -> Recipe:
    """The recipe without what the profile has struck out; what is proven takes its place. Raises UserError where nothing is."""
    compiled = proven_in("compile", precision)
    if profile and profile.strikes("compile=tuned", compiled) and recipe.compile == "tuned":
        recipe = replace(recipe, compile="layers")
    if profile and (profile.strikes("compile=layers", compiled) or profile.strikes("head=compiled", compiled)):
        recipe = _uncompiled(recipe)
    for what in ("attention", "muon", *(["fp8_sums"] if precision == "fp8" else [])):
        way, of_layers = getattr(recipe, what), proven_in(what, precision)
        if not profile or not profile.strikes(f"{what}={way}", of_layers):
            continue
        others = [each for each in CHOICES[what] if profile.proves(f"{what}={each}", of_layers)]
        if not others:
            raise UserError(f"--precision={precision}: scripts.tune found no {what} here that is right; use another precision")
        proven: dict[str, Any] = {what: others[0]}
        recipe = replace(recipe, **proven)
    return recipe


def _unproven(recipe: Recipe, precision: str, beside_fp8: str, size: Size, profile: Profile | None) -> list[str]:
    """What computes otherwise than torch's own operators do one by one, and is not proven by the profile."""
    found = []
    for what in CHOICES:
        way = getattr(recipe, what)
        plain = what != "compile" and way == getattr(PLAIN, what)
        if plain or way in ("off", "products") or (what.startswith("fp8") and precision != "fp8"):
            continue
        for name in (f"{what}={way}", *(["head=compiled"] if what == "compile" else [])):
            is_there = way not in PACKAGES or way in installed_packages()
            if not (is_there and profile and profile.proves(name, proven_in(what, precision, beside_fp8), _at(size))):
                found.append(name)
    return found


def _proof_of(name: str, precision: str, size: Size, asked: bool) -> Proof | None:
    """The proof of a choice, made now; None, with a warning, where it fails. Raises UserError where it was asked for."""
    if name not in names(precision, size.device, installed_packages(), can_compile=True):
        if asked:
            raise UserError(f"--recipe={name}: not to be had on this device in {precision}")
        warn(f"{name} is not to be had here any more and is left out")
        return None
    proof = prove(name, precision, size)
    if proof.passed:
        return proof
    what = proof.note or f"its results err by {proof.error:.2g} where {proof.tolerance:.2g} is allowed"
    if asked:
        raise UserError(f"--recipe={name}: does not prove itself here: {what}")
    warn(f"{name} does not prove itself here and is left out, which is slower: {what}")
    return None
