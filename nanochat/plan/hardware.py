"""What GPUs can do and cost: dense bf16 peaks by the makers' data sheets, and a price to be overridden."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """As people call it."""
    peak_bf16_flops: float
    """Dense bf16 peak, FLOP/s."""
    usd_per_hour: float
    """Price of one, US dollars an hour; a default for display that --usd_per_gpu_hour overrides."""


# Substrings of torch.cuda.get_device_name(), first match wins.
GPUS = (
    Gpu("H200", 989.4e12, 3.50),
    Gpu("H100", 989.4e12, 3.00),
    Gpu("A100", 312e12, 1.80),
    Gpu("B200", 2250e12, 5.00),
)


def gpu_named(device_name: str) -> Gpu | None:
    """The kind that a device name as torch reports it belongs to, or None when it is not in the table."""
    return next((gpu for gpu in GPUS if gpu.name in device_name), None)
