"""Which kernels a run takes: the profile's, the run's own, what was asked for; never what does not prove itself."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nanochat.common.errors import UserError
from nanochat.model.attention import attention_by_products
from nanochat.optim.newton_schulz import has_copy_engine
from nanochat.parallel import kernels, proofs
from nanochat.parallel.kernels import settle, settle_here
from nanochat.parallel.proofs import Size
from nanochat.plan.hardware import cpu
from nanochat.plan.profile import Profile, Tuned
from nanochat.plan.recipe import PLAIN, Recipe

CPU = cpu(8.0)
SMALL = Size(torch.device("cpu"), 2, 64, 300)
PROVEN = tuple(
    {"name": name, "precision": precision, "error": 0.01, "tolerance": 0.02, "passed": True}
    for precision in ("bf16", "fp32")
    for name in ("attention=products", "muon=gram", "compile=layers", "head=compiled")
)
COMPILED = tuple(each for each in PROVEN if "compile" in str(each["name"]))


def profile(*recipes: tuple[str, Recipe], auto: str = "fp32", proven: tuple[dict[str, object], ...] = PROVEN) -> Profile:
    tuned = tuple(Tuned(2, 64, precision, recipe, 1000.0, 7) for precision, recipe in recipes)
    return Profile("a CPU", "2.13.0", None, "", "2026-12-01", auto, tuned, (), proven)


def test_a_profile_decides_precision_and_kernels_and_is_named() -> None:
    recipe = Recipe(attention="products", muon="gram", threads=2)
    found = settle("auto", "auto", True, SMALL, profile(("fp32", recipe), auto="fp32"))
    assert (found.precision, found.recipe) == ("fp32", recipe)
    assert "of 7 ways" in found.text
    assert "2026-12-01" in found.text
    assert settle("auto", "auto", True, SMALL, profile(("bf16", recipe), auto="bf16")).precision == "bf16"
    assert settle("bf16", "auto", True, SMALL, profile(("fp32", recipe), auto="fp32")).precision == "bf16"


def test_a_run_that_has_begun_goes_on_as_it_was() -> None:
    began = ("fp32", Recipe(compile="off"))
    found = settle("auto", "auto", True, SMALL, profile(("bf16", Recipe(muon="gram")), auto="bf16"), began)
    assert (found.precision, found.recipe) == began
    assert "as this run began" in found.text


def test_what_is_asked_for_takes_the_place_of_what_was_found() -> None:
    tuned = profile(("fp32", Recipe(attention="products", muon="gram")))
    assert settle("fp32", "muon=plain", True, SMALL, tuned).recipe == Recipe(attention="products")
    assert settle("fp32", "auto", False, SMALL, tuned).recipe.compile == "off"


def test_without_a_profile_defaults_follow_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    untuned = profile(proven=COMPILED)
    assert settle("bf16", "auto", True, SMALL, untuned).recipe.attention == "products"
    assert settle("bf16", "auto", True, replace(SMALL, seq_len=4096), untuned).recipe.attention == "fused"
    assert settle("fp32", "auto", True, SMALL, untuned).recipe == PLAIN
    assert "scripts.tune" in settle("fp32", "auto", True, SMALL, untuned).text
    monkeypatch.setattr(kernels, "compiler_missing", lambda device: "no C++ compiler found (g++)")
    assert settle("bf16", "auto", True, SMALL, None).recipe == Recipe(compile="off")


@pytest.mark.parametrize(
    ("choices", "words"),
    [("attention=flash", "not to be had on this device"), ("muon=fast", "no such choice"), ("threads=many", "no such choice"), ("x", "x:")],
)
def test_what_there_is_not_is_refused(choices: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settle("fp32", choices, True, SMALL, None)


def test_unproven_kernels_of_a_profile_prove_themselves_or_are_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = profile(("fp32", Recipe(muon="gram")), proven=COMPILED)
    assert settle("fp32", "auto", True, SMALL, tuned).recipe.muon == "gram"
    right = proofs.orthogonalize
    monkeypatch.setattr(proofs, "orthogonalize", lambda x, dtype, way="plain": right(x, dtype, way) * (1.5 if way == "gram" else 1))
    assert settle("fp32", "auto", True, SMALL, tuned).recipe.muon == "plain"
    assert "muon=gram does not prove itself here" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"does not prove itself here: its results err by 0\.5"):
        settle("fp32", "muon=gram", True, SMALL, None)


def test_compiled_layers_prove_themselves_once_or_are_not_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    right = torch.compile
    with monkeypatch.context() as wrong:
        wrong.setattr(torch, "compile", lambda function, **how: lambda x, *more: right(function, **how)(x, *more) * 1.5)
        assert settle_here(CPU, "fp32", "attention=products", True, SMALL).recipe == Recipe(compile="off")
    assert "compile=layers does not prove itself here" in capsys.readouterr().err
    found = settle_here(CPU, "fp32", "auto", True, SMALL)
    assert (found.recipe, [proof.name for proof in found.proven]) == (PLAIN, ["compile=layers", "head=compiled"])
    again = settle_here(CPU, "fp32", "auto", True, SMALL)
    assert (again.recipe, again.proven) == (PLAIN, ())
    monkeypatch.setattr(kernels, "prove", lambda name, precision, size: proofs.Proof(name, precision, 3.0, 1e-4, False))
    other_size = settle_here(CPU, "fp32", "auto", True, replace(SMALL, depth=3))  # is proven for itself
    assert other_size.recipe == Recipe(compile="off")
    assert settle_here(CPU, "auto", "auto", False, SMALL).precision == settle("auto", "auto", False, SMALL, None).precision


def test_threads_are_taken_where_nothing_else_has_set_them(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    found = settle("fp32", "threads=3", False, SMALL, None)
    try:
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        found.take(1)
        assert torch.get_num_threads() == before
        monkeypatch.delenv("OMP_NUM_THREADS")
        found.take(2)
        assert torch.get_num_threads() == before
        found.take(1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_layers_of_a_model_attend_as_the_recipe_says() -> None:
    from nanochat.model.config import GPTConfig
    from nanochat.parallel.ranks import ranks
    from nanochat.parallel.sharding import sharded_model
    from nanochat.plan.recompute import Recompute

    with ranks() as r:
        for recipe, attend in ((Recipe(attention="products", compile="off"), attention_by_products),):
            config = GPTConfig.from_depth(2, 300, 64)
            model = sharded_model(config, r, r.mesh(), torch.float32, 0, recompute=Recompute(0, 2), reshard=False, recipe=recipe)
            assert all(block.attend is attend for block in model.model.layers)


@pytest.mark.parametrize(
    ("capability", "hip", "attention", "precisions"),
    [
        ((8, 0), None, "fused", ["bf16"]),  # A100
        ((8, 9), None, "fused", ["bf16", "fp8"]),  # Ada
        ((9, 0), None, "cudnn", ["bf16", "fp8"]),  # Hopper
        ((10, 0), None, "cudnn", ["bf16", "fp8"]),  # Blackwell
        ((12, 0), None, "cudnn", ["bf16", "fp8"]),  # GeForce's
        ((9, 4), "6.3", "fused", ["bf16"]),  # ROCm counts otherwise
    ],
)
def test_other_gpus_get_what_they_have(
    capability: tuple[int, int], hip: str | None, attention: str, precisions: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanochat.tune import prove as proving

    gpu = Size(torch.device("cuda", 0), 12, 2048, 65_536)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(kernels, "prove", lambda name, precision, size: proofs.Proof(name, precision, 0.001, 0.02, True))
    monkeypatch.setattr(kernels, "compiler_missing", lambda device: "")
    has_copy_engine.cache_clear()
    found = settle("auto", "auto", True, gpu, None)
    assert found.recipe.attention == attention
    assert found.recipe.mlp == ("fused" if capability in ((9, 0), (10, 0)) else "plain")
    assert proving.precisions(gpu.device) == precisions
    if "fp8" in precisions:
        assert settle("fp8", "auto", True, gpu, None).precision == "fp8"
    else:
        with pytest.raises(UserError, match="--precision=fp8"):
            settle("fp8", "auto", True, gpu, None)
    kinds = {name.split("=")[1] for name in proofs.names("bf16", gpu.device, ["fa4"], can_compile=True) if name.startswith("attention")}
    assert kinds == {"fused", "efficient", "math", "cudnn", "flash", "fa4"}
    has_copy_engine.cache_clear()


def test_what_the_profile_has_struck_out_does_not_train_even_where_it_is_plain() -> None:
    struck = ({"name": "attention=fused", "precision": "fp32", "error": 3.0, "tolerance": 1e-4, "passed": False},)
    assert settle("fp32", "auto", True, SMALL, profile(("fp32", PLAIN), proven=PROVEN + struck)).recipe.attention == "products"
    with pytest.raises(UserError, match="no attention here that is right"):
        settle("fp32", "auto", True, SMALL, profile(("fp32", PLAIN), proven=struck + COMPILED))


def test_compiled_layers_that_the_profile_has_struck_out_are_not_tried_again() -> None:
    struck = ({"name": "compile=layers", "precision": "fp32", "error": None, "tolerance": 1e-4, "passed": False, "note": "killed"},)
    assert settle("fp32", "auto", True, SMALL, profile(("fp32", Recipe(compile="tuned")), proven=struck)).recipe.compile == "off"


def test_what_is_tuned_and_not_right_is_compiled_the_usual_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fails(name: str, precision: str, size: Size) -> proofs.Proof:
        asked.append(name)
        return proofs.Proof(name, precision, 3.0, 1e-4, name == "head=compiled")

    monkeypatch.setattr(kernels, "prove", fails)
    monkeypatch.setattr(kernels, "names", lambda *_, **__: ["compile=tuned", "compile=layers", "head=compiled"])
    assert settle("fp32", "auto", True, SMALL, profile(), ("fp32", Recipe(compile="tuned"))).recipe.compile == "layers"
    assert asked == ["compile=tuned"]  # PROVEN has the others
    asked.clear()
    assert settle("fp32", "auto", True, SMALL, profile(proven=()), ("fp32", Recipe(compile="tuned"))).recipe.compile == "off"
    assert asked == ["compile=tuned", "head=compiled", "compile=layers"]


def test_products_in_fp8_end_with_relu_squared_only_where_scales_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_FP8_ON_CPU", "1")
    with pytest.raises(UserError, match="fp8_scales=kept too"):
        settle("fp8", "fp8_mlp=fused", True, SMALL, profile())


def test_a_package_that_is_gone_is_left_out_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    proven = ({"name": "attention=fa4", "precision": "bf16", "error": 0.01, "tolerance": 0.02, "passed": True},)
    kept = ("bf16", Recipe(attention="fa4"))
    assert settle("bf16", "auto", True, SMALL, profile(proven=proven + COMPILED), kept).recipe.attention == "fused"
    assert "not to be had here any more" in capsys.readouterr().err


def test_compiled_layers_are_cached_apart_by_their_attention() -> None:
    tags = set()
    for way in ("fused", "math", "flash"):
        kernels.take_attention(way)
        tags.add(torch.compiler.config.cache_key_tag)
    kernels.take_attention("fused")
    assert len(tags) == 3


@pytest.mark.parametrize("way", ["fused", "products", "flash", "efficient", "math", "cudnn"])
def test_cudnn_computes_only_where_it_is_named(way: str) -> None:
    try:
        kernels.take_attention(way)
        assert torch.backends.cuda.cudnn_sdp_enabled() == (way == "cudnn")
        assert torch.backends.cuda.flash_sdp_enabled() == (way in ("fused", "products", "flash"))
    finally:
        kernels.take_attention("fused")
