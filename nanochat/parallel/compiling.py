"""torch.compile, block by block: every block shares one graph, so the first step comes within seconds."""

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


def compile_model(model: GPT, device: torch.device) -> bool:
    """Compile the blocks and the loss in place; returns whether that was done, and says in one line why not."""
    missing = compiler_missing(device)
    if missing:
        say(f"compile: off, {missing}; the run goes on without compiling, more slowly")
        return False
    for block in model.model.layers:
        block.compile(dynamic=False)
    say("compiling: the first step takes longer, up to a minute where nothing is cached yet")
    model.lm_head.chunk_loss = torch.compile(model.lm_head.chunk_loss, dynamic=False)
    return True
