"""The kernels that Inductor writes for an H100, on a machine without one: what each reads and writes.

    python -m tests.described_gpu [--depth=38] [--sequences=8] [--precision=fp8] [--scales=first]

prints, for the forward and the backward pass of a layer, what the element-wise kernels read and write, in units of tokens × width in
bf16. Nothing is run: tensors are only described, torch is told of a GPU that does nothing, and code is made but not compiled. It
needs a C++ compiler and Triton.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

# To autograd a device is a guard and a few hooks, which a build of torch without CUDA lacks. These do nothing.
GUARD = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace c10::impl {
struct Described : NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device exchangeDevice(Device) const override { return first(); }
  Device getDevice() const override { return first(); }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, first()); }
  Stream getNewStream(Device, int = 0) const override { return Stream(Stream::DEFAULT, first()); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, first()); }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  static Device first() { return Device(DeviceType::CUDA, 0); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Described)
}
namespace at {
struct CUDAHooks : CUDAHooksInterface {
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isAvailable() const override { return true; }
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}
"""
H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=80 * 2**30,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    gcnArchName="",
    L2_cache_size=50 * 2**20,
)


def describe_an_h100() -> None:
    """Let torch and Triton take this process for one with an H100."""
    import torch
    import triton
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> int:
            return 0

        def get_current_stream(self, _device: int = 0) -> int:
            return 0

    triton.runtime.driver.set_active(Driver())
    cuda, zero = torch.cuda, lambda *_: 0
    answers: dict[str, Any] = {"is_available": True, "is_initialized": True, "is_bf16_supported": True, "device_count": 1}
    answers |= {"current_device": 0, "_exchange_device": 0, "_maybe_exchange_device": 0, "_lazy_init": None, "synchronize": None}
    answers |= {"set_device": None, "get_device_properties": H100, "get_device_capability": (9, 0), "set_rng_state": None}
    for name, answer in answers.items():
        setattr(cuda, name, lambda *_args, answer=answer, **_kwargs: answer)
    cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)  # type: ignore[assignment]
    for name in ("getDevice", "setDevice", "getCurrentRawStream", "exchangeDevice", "maybeExchangeDevice"):
        setattr(torch._C, f"_cuda_{name}", zero)
    torch.version.cuda = "13.0"  # type: ignore[assignment]
    from torch._dynamo.device_interface import CudaInterface  # which asks torch.cuda as it is imported
    from torch._inductor.fx_passes import fuse_attention, misc_patterns, pad_mm

    for name, answer in {"get_compute_capability": 90, "is_triton_capable": True, "raise_if_triton_unavailable": None}.items():
        setattr(CudaInterface, name, staticmethod(lambda *_, answer=answer: answer))
    for name in ("is_available", "exchange_device", "maybe_exchange_device"):
        setattr(CudaInterface, name, staticmethod(lambda *_, answer=name == "is_available": answer))
    CudaInterface.Worker.get_device_properties = staticmethod(lambda *_: H100)  # type: ignore[assignment]
    CudaInterface.Worker.current_device = staticmethod(zero)  # type: ignore[assignment]
    for module, name in ((fuse_attention, "_sfdp_init"), (pad_mm, "_pad_mm_init"), (misc_patterns, "_misc_patterns_init")):
        setattr(module, name, lambda *_args, **_kwargs: None)  # patterns of theirs are traced with real tensors


def count(depth: int, sequences: int, precision: str, scales: str) -> dict[str, float]:
    """Widths that the element-wise kernels of a layer's forward and backward pass read and write, those of our own casts counted in."""
    describe_an_h100()
    import torch
    import torch._functorch.config as functorch_config
    from torch import nn
    from torch._inductor import config as inductor_config
    from torch._inductor.graph import GraphLowering
    from torch._inductor.scheduler import ExternKernelSchedulerNode, NopKernelSchedulerNode
    from torch._subclasses import FakeTensorMode

    from nanochat.model.config import GPTConfig
    from nanochat.model.fp8_layers import InEightBits, use_fp8
    from nanochat.model.gpt import GPT, Block

    config = GPTConfig.from_depth(depth, 65_536, 2048)
    shape = (sequences, config.max_seq_len, config.hidden_size)
    width_bytes = 2 * sequences * config.max_seq_len * config.hidden_size
    found: list[float] = []

    def counted(graph: GraphLowering) -> Any:
        graph.codegen()
        total = 0.0
        for node, quarters in graph.count_bytes()[1]:
            name = str(getattr(node.node, "python_kernel_name", ""))
            # An operator's last tensor of the backward pass is there for the order, and not read.
            unread = width_bytes if "turned" in name and "cast_and" not in name else 0
            if "relu_squared_gradient" in name:  # what it makes in eight bits, of four widths, is read once more to be turned
                unread = -2 * width_bytes
            if "nanochat" in name or not isinstance(node, (ExternKernelSchedulerNode, NopKernelSchedulerNode)):
                total += 4 * quarters - unread
        found.append(total / width_bytes)
        return SimpleNamespace(call=lambda *_: None, key="", __path__="")

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, True)[0]
        return result

    settings = {"force_disable_caches": True, "compile_threads": 1, "joint_graph_constant_folding": False}
    with (
        mock.patch.object(GraphLowering, "compile_to_module", counted),
        inductor_config.patch(settings),
        functorch_config.patch({"force_non_lazy_backward_lowering": True}),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        with torch.device("meta"):
            model = GPT(replace(config, num_layers=1))
        if precision == "fp8":
            use_fp8(model, fused=True)
        block = model.model.layers[0]
        assert isinstance(block, Block)
        block.attend = attend
        for module in block.modules():
            if isinstance(module, nn.Linear):
                module.weight = nn.Parameter(torch.empty(module.weight.shape, dtype=torch.bfloat16, device="cuda"))
            if isinstance(module, InEightBits):
                module.largest = torch.zeros(module.values, device="cuda", requires_grad=True)
                module.first = scales == "first"
        x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", requires_grad=True)
        cos, sin = torch.empty(2, config.max_seq_len, config.head_dim // 2, device="cuda").unbind()
        try:
            torch.compile(block.forward, dynamic=False)(x, cos, sin)
        except Exception:  # what was made returns nothing
            if len(found) < 2:
                raise
    return dict(zip(("forward", "backward"), found, strict=True))


def run(*flags: str) -> dict[str, float]:
    """`count` in a process of its own, which has the guard from its start."""
    import torch

    libraries = Path(torch.__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        source, guard = Path(folder, "guard.cpp"), Path(folder, "libguard.so")
        source.write_text(GUARD)
        headers = [f"-I{libraries / 'include'}", f"-I{libraries / 'include/torch/csrc/api/include'}"]
        compiler = os.environ.get("CXX", "g++")
        command = [compiler, "-std=c++20", "-shared", "-fPIC", *headers, str(source), "-o", str(guard), f"-L{libraries / 'lib'}"]
        subprocess.run([*command, "-lc10", "-ltorch_cpu"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(guard), "LD_LIBRARY_PATH": str(libraries / "lib")}
        inside = [sys.executable, "-m", "tests.described_gpu", "--inside", *flags]
        finished = subprocess.run(inside, env=environment, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, float] = json.loads(finished.stdout.splitlines()[-1])
    return answer


if __name__ == "__main__":
    flags = [flag for flag in sys.argv[1:] if flag != "--inside"]
    asked = {"depth": "38", "sequences": "8", "precision": "bf16", "scales": "kept"} | dict(flag[2:].split("=") for flag in flags)
    if "--inside" in sys.argv:
        print(json.dumps(count(int(asked["depth"]), int(asked["sequences"]), asked["precision"], asked["scales"])))
    else:
        for name, widths in run(*flags).items():
            print(f"{name}: {widths:.2f} widths read and written")
