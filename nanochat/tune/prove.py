"""A process that proves: what this machine is, then one line of JSON as each proof begins and one as it ends.

Kernels may take their process down with them; whoever started this one sees which it was, and goes on without it.
"""

import json
import os
import sys
from dataclasses import asdict
from typing import Any

import torch

from nanochat.parallel.attention import installed_packages
from nanochat.parallel.compiling import compiler_missing
from nanochat.parallel.precision import cpu_has_bf16
from nanochat.parallel.proofs import Size, names, prove
from nanochat.parallel.ranks import pick_device
from nanochat.plan.hardware import FIRST_WITH_FP8
from nanochat.plan.profile import usable_cores
from nanochat.train.step_plan import gpu_of

PACKAGES = ["", "FlashAttention's packages"]  # as what began is named
BROKEN = 3
# What the likeliest way to make a step does not have; of the first ones one is needed where no other of its kind is right.
IF_NO_OTHER = ("attention=efficient", "attention=math", "fp8_sums=short")
UNLIKELY = ("muon=halves", "mlp=plain", "fp8_weights=kept", "fp8_casts=plain", "fp8_mlp=fused")


def precisions(device: torch.device) -> list[str]:
    """What the device computes in, the likeliest to be fastest first."""
    if device.type == "cpu":
        return ["bf16", "fp32"] if cpu_has_bf16() else ["fp32"]
    if not torch.cuda.is_bf16_supported():
        return ["fp32"]
    has_fp8 = not torch.version.hip and torch.cuda.get_device_capability(device) >= FIRST_WITH_FP8
    return ["bf16", *(["fp8"] if has_fp8 else [])]


def facts(device: torch.device) -> dict[str, Any]:
    """What the tuner must know of the machine."""
    return {
        "gpu": asdict(gpu_of(device)),
        "gpus": torch.cuda.device_count() if device.type == "cuda" else 0,
        "precisions": precisions(device),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or torch.version.hip,
        "compiler_missing": compiler_missing(device),
        "cores": usable_cores(),
    }


def say_line(**values: Any) -> None:
    """One JSON object on standard output, at once."""
    print(json.dumps(values), flush=True)


def main(request: dict[str, Any]) -> None:
    """request: depth, seq_len, vocab_size, precisions (none for all), skip: [precision, name] of what is not to be tried, and quick.

    quick: whether to leave out what the likeliest way to make a step does not need.

    An empty request is for the facts alone.
    """
    device = pick_device()
    found = facts(device)
    say_line(facts=found)
    if not request:
        return
    say_line(began=PACKAGES)
    packages = installed_packages() if device.type == "cuda" and PACKAGES not in request["skip"] else []
    size = Size(device, request["depth"], request["seq_len"], request["vocab_size"])
    right: set[str] = set()
    for precision in request["precisions"] or found["precisions"]:
        for name in names(precision, device, packages, not found["compiler_missing"], autotunes=False):
            kind = f"{precision} {name.split('=')[0]}"
            needless = request["quick"] and (name in UNLIKELY or (name in IF_NO_OTHER and kind in right))
            if [precision, name] in request["skip"] or needless:
                continue
            say_line(began=[precision, name])
            proof = prove(name, precision, size)
            if device.type == "cuda" and proof.error is None and _is_broken():
                os._exit(BROKEN)  # every later proof here would fail for it
            right.update([kind] if proof.passed else [])
            say_line(proof=proof.to_json())
    say_line(done=True)


def _is_broken() -> bool:
    """Whether an error has left the GPU unusable for this process."""
    try:
        torch.cuda.synchronize()
    except Exception:  # it is CUDA's last word on whatever came before
        return True
    return False


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
