"""Compiled and plain computation agree, and a machine without a compiler is no obstacle."""

import subprocess
from pathlib import Path

import pytest
import torch

from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.parallel.compiling import compile_model, compiler_missing
from tests.conftest import ROOT, TINY, World

CPU = torch.device("cpu")


def test_compiled_losses_and_gradients_are_those_of_the_plain_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base dir"))
    generator = torch.Generator().manual_seed(0)
    ids, targets = torch.randint(0, 300, (2, 2, 32), generator=generator)
    results = []
    for compiled in (False, True):
        model = GPT(GPTConfig.from_depth(2, 300, 32))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(parameter.numel()))
        if compiled:
            assert not compiler_missing(CPU)
            compile_model(model)
        loss = model(ids, targets)
        loss.backward()
        results.append((loss.detach(), {name: p.grad for name, p in model.named_parameters()}))
    (plain, plain_gradients), (fast, fast_gradients) = results
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=0)
    for name, gradient in plain_gradients.items():
        assert gradient.norm() > 0, name
        assert (fast_gradients[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_without_a_compiler_it_says_so_and_trains(world: World) -> None:
    flags = [flag for flag in TINY if flag != "--no-compile"]
    environment = world.environment(PATH="/nonexistent", CXX="")
    environment.pop("CXX")
    command = world.arguments("scripts.base_train", *flags, "--num_iterations=1", "--model_tag=no-compiler")
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    lines = [line for line in finished.stdout.splitlines() if "compile: off" in line]
    assert len(lines) == 1
    assert "no C++ compiler" in lines[0]
    assert "not compiled" in finished.stdout
    assert (world.base / "runs/no-compiler/base/model").is_dir()
