"""torch.compile, layer by layer: all of them share one graph, so the first step comes within seconds."""

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from nanochat.common.console import say
from nanochat.model.gpt import GPT


def compiler_missing(device: torch.device) -> str:
    """What torch.compile lacks on this machine, in a phrase; empty when nothing."""
    if device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")) and not shutil.which("clang++"):
        return "no C++ compiler found (g++)"
    if device.type == "cuda" and not any(map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "cc", "clang"))):
        return "no C compiler found (gcc)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "no Python headers found (python3-dev)"
    return ""


def say_compiling(device: torch.device) -> None:
    """Say in one line whether this machine can compile, and what follows."""
    if missing := compiler_missing(device):
        say(f"compile: off, {missing}; the run goes on without compiling, more slowly")
    else:
        say("compiling: the first step takes longer, up to a minute where nothing is cached yet")


def compile_model(model: GPT, tuned: bool = False) -> None:
    """Compile the layers' forward passes and the loss, in place. What sharding does around a forward pass stays outside.

    tuned: let the compiler try many kernels for every product, which takes minutes the first time.
    """
    mode = "max-autotune-no-cudagraphs" if tuned else None
    for block in model.model.layers:
        block.forward = torch.compile(block.forward, dynamic=False, mode=mode)
    model.lm_head.chunk_loss = torch.compile(model.lm_head.chunk_loss, dynamic=False, mode=mode)
