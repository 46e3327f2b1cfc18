"""What GPUs can do, hold and cost: the makers' dense peaks, and prices to be overridden."""

import re
from dataclasses import dataclass

from nanochat.common.errors import UserError

CPU_NAME = "CPU"


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, or a CPU seen as one."""

    name: str
    """As --gpus names it."""
    memory_gib: float
    """Memory that a program can have, GiB."""
    peak_bf16_flops: float
    """Dense bf16 peak with float32 sums, FLOP/s."""
    peak_fp8_flops: float | None
    """Dense fp8 peak with float32 sums, FLOP/s; None where there is none, or none in the format that is used here."""
    peak_fp32_flops: float
    """Peak of true float32, FLOP/s."""
    bandwidth_bytes_per_s: float
    """Of its memory."""
    link: str
    """What joins the GPUs of a node: NVLink, Infinity Fabric or PCIe."""
    link_bytes_per_s: float
    """Of one GPU, in one direction."""
    usd_per_hour: float
    """Price of one, US dollars an hour; a default for display that --usd_per_gpu_hour overrides."""
    device_names: tuple[str, ...] = ()
    """What the driver calls it, the maker's name left out. Whole names: an H100 PCIe, or a slice of an H100, is another kind."""

    @property
    def is_cpu(self) -> bool:
        """Whether this is no GPU at all."""
        return self.name == CPU_NAME

    def peak_flops(self, compute_bytes: int) -> float:
        """Peak of products of numbers of 2 bytes (bf16) or 4 (float32), FLOP/s."""
        return self.peak_bf16_flops if compute_bytes == 2 else self.peak_fp32_flops


# Peaks, bandwidth and links by the makers' data sheets: dense (sheets of NVIDIA quote twice that, for sparse matrices, from the
# L40S and H100 on), with float32 sums (half of the headline for GeForce), links in one direction (half of the sum that sheets
# quote). B200's bandwidth and memory are those that its driver reports. Memory is what PyTorch reports as a GPU's capacity; for
# the B300 the data sheet's 288 GB. Prices are round figures of 2026 for renting by the hour, defaults to be overridden.
GPUS = (
    Gpu("A100-80GB", 79.1, 312e12, None, 19.5e12, 2.039e12, "NVLink", 300e9, 1.80, ("A100-SXM4-80GB",)),
    Gpu("H100-80GB", 79.1, 989.4e12, 1978.9e12, 66.9e12, 3.35e12, "NVLink", 450e9, 3.00, ("H100 80GB HBM3",)),
    Gpu("H200", 139.7, 989.4e12, 1978.9e12, 66.9e12, 4.8e12, "NVLink", 450e9, 3.50, ("H200",)),
    Gpu("B200", 178.3, 2250e12, 4500e12, 80e12, 7.67e12, "NVLink", 900e9, 5.00, ("B200",)),
    Gpu("B300", 268.2, 2250e12, 4500e12, 75e12, 8e12, "NVLink", 900e9, 6.00, ("B300", "B300 SXM6 AC")),
    Gpu("RTX-4090", 23.6, 165.2e12, 330.3e12, 82.6e12, 1.008e12, "PCIe 4", 31.5e9, 0.40, ("GeForce RTX 4090",)),
    Gpu("RTX-5090", 31.3, 209.5e12, 419e12, 104.8e12, 1.792e12, "PCIe 5", 63e9, 0.70, ("GeForce RTX 5090",)),
    Gpu("L40S", 44.4, 362e12, 733e12, 91.6e12, 0.864e12, "PCIe 4", 31.5e9, 0.90, ("L40S",)),
    Gpu("MI300X", 191.9, 1307.4e12, None, 163.4e12, 5.3e12, "Infinity Fabric", 448e9, 2.50, ("Instinct MI300X",)),
)

# Dense FLOPs per clock and multiprocessor, bf16 (float32 sums) and float32, by compute capability: the data sheets' peaks divided
# by their clocks and multiprocessors; GeForce does half of the bf16. Before 8.0 there is no bf16, and float32's units do its work.
FLOPS_PER_CLOCK = {
    (7, 0): (128, 128),
    (8, 0): (2048, 128),
    (8, 6): (1024, 256),
    (8, 9): (1024, 256),
    (9, 0): (4096, 256),
    (10, 0): (8192, 256),
    (12, 0): (1024, 256),
}
FIRST_WITH_BF16 = (8, 0)
FIRST_WITH_FP8 = (8, 9)
DEFAULT_CLOCK_HZ = 1.5e9
FLOPS_PER_BYTE = 200  # bf16 peak over bandwidth: 117 to 419 in the table
PCIE_BYTES_PER_S = 31.5e9
CPU_FLOPS_PER_CORE = 50e9
CPU_BYTES_PER_S = 20e9


def kind_names() -> str:
    """The kinds of the table, for a sentence."""
    return ", ".join(gpu.name for gpu in GPUS)


def parse_gpus(text: str) -> tuple[int, Gpu]:
    """How many of what kind, from `8xH100-80GB`, `8*h100`, `H100` (one) or `4 x RTX 4090`.

    A kind may be shortened as long as it fits one kind only. Raises UserError for anything else, with the kinds there are.
    """
    count, kind = split_gpus(text)
    wanted = _plain(kind)
    found = [gpu for gpu in GPUS if wanted and (_plain(gpu.name).startswith(wanted) or wanted in map(_plain, gpu.device_names))]
    found = [gpu for gpu in found if _plain(gpu.name) == wanted] or found
    found = found or [gpu for gpu in GPUS if wanted and wanted == _plain(gpu.name).removeprefix("rtx")]
    if len(found) != 1:
        what = f"may be {' or '.join(gpu.name for gpu in found)}" if found else f"no such kind; the kinds are {kind_names()}"
        raise UserError(f"--gpus={text}: {what}")
    return count, found[0]


def split_gpus(text: str) -> tuple[int, str]:
    """The number and the kind in `8xH100`; one where there is no number. Raises UserError where it cannot be split so."""
    match = re.fullmatch(r"\s*(?:(\d+)\s*[x×*]\s*)?(\S.*?)\s*", text, re.IGNORECASE)
    if match is None or (match[1] is not None and int(match[1]) < 1):
        raise UserError(f"--gpus={text}: a number and a kind, as in 8xH100-80GB; the kinds are {kind_names()}")
    return int(match[1] or 1), match[2]


def _plain(name: str) -> str:
    """Letters and digits alone, small, without makers' names and brands."""
    return re.sub(r"[^a-z0-9]|nvidia|amd|geforce|instinct|sxm\d?", "", name.lower())


def gpu_named(device_name: str) -> Gpu | None:
    """The kind that a device name as torch or nvidia-smi reports it belongs to, or None when it is not in the table."""
    name = re.sub(r"^(NVIDIA|AMD)\s+", "", device_name.strip())
    return next((gpu for gpu in GPUS if name in gpu.device_names), None)


def gpu_from_properties(
    name: str, memory_bytes: float, sm_count: int, clock_hz: float | None = None, capability: tuple[int, int] = (8, 0)
) -> Gpu:
    """A kind that is not in the table, its speeds estimated from multiprocessors, clock and compute capability; no price."""
    known = [each for each in FLOPS_PER_CLOCK if each <= capability]
    bf16, fp32 = FLOPS_PER_CLOCK[max(known, default=min(FLOPS_PER_CLOCK))]
    clocks_per_s = sm_count * (clock_hz or DEFAULT_CLOCK_HZ)
    peak = bf16 * clocks_per_s / (2 if "GeForce" in name and capability >= FIRST_WITH_BF16 else 1)
    return Gpu(
        name=name,
        memory_gib=memory_bytes / 2**30,
        peak_bf16_flops=peak,
        peak_fp8_flops=2 * peak if capability >= FIRST_WITH_FP8 else None,
        peak_fp32_flops=fp32 * clocks_per_s,
        bandwidth_bytes_per_s=peak / FLOPS_PER_BYTE,
        link="PCIe",
        link_bytes_per_s=PCIE_BYTES_PER_S,
        usd_per_hour=0.0,
    )


def cpu(memory_gib: float, cores: int = 1) -> Gpu:
    """CPU cores as if they were a GPU, at nominal speeds that only rank one plan against another; it costs nothing."""
    flops = CPU_FLOPS_PER_CORE * cores
    return Gpu(CPU_NAME, memory_gib, flops, None, flops, CPU_BYTES_PER_S, "memory", CPU_BYTES_PER_S, 0.0)
