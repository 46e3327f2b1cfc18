"""The table of GPUs: names that people type, names that drivers give, and estimates for kinds that are not in it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common.errors import UserError
from nanochat.plan.hardware import GPUS, Gpu, gpu_from_properties, gpu_named, parse_gpus


@pytest.mark.parametrize(
    ("text", "count", "name"),
    [
        ("8xH100-80GB", 8, "H100-80GB"),
        ("8xh100", 8, "H100-80GB"),
        ("8*H100", 8, "H100-80GB"),
        ("H100", 1, "H100-80GB"),
        ("4 x H100 SXM5 80GB", 4, "H100-80GB"),
        ("NVIDIA H100 80GB HBM3", 1, "H100-80GB"),
        ("2×A100", 2, "A100-80GB"),
        ("RTX 4090", 1, "RTX-4090"),
        ("2xgeforce_rtx_5090", 2, "RTX-5090"),
        ("8x4090", 8, "RTX-4090"),
        ("16xmi300x", 16, "MI300X"),
        ("L4", 1, "L40S"),
    ],
)
def test_gpus_are_read_as_people_write_them(text: str, count: int, name: str) -> None:
    found = parse_gpus(text)
    assert (found[0], found[1].name) == (count, name)


@given(st.sampled_from(GPUS), st.integers(1, 999), st.booleans())
def test_every_kind_is_read_by_its_own_name(gpu: Gpu, count: int, small: bool) -> None:
    text = f"{count}x{gpu.name}"
    assert parse_gpus(text.lower() if small else text) == (count, gpu)


@pytest.mark.parametrize("text", ["8xV100", "8xH100-PCIe", "", "8x", "x", "-", "H100-80GBx8", "10H100"])
def test_an_unknown_kind_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(UserError) as refused:
        parse_gpus(text)
    assert all(gpu.name in str(refused.value) for gpu in GPUS)


def test_a_name_that_fits_two_kinds_names_both() -> None:
    with pytest.raises(UserError, match="H100-80GB or H200"):
        parse_gpus("8xH")


def test_none_of_a_kind_is_refused() -> None:
    with pytest.raises(UserError, match="0xH100"):
        parse_gpus("0xH100")


@pytest.mark.parametrize(
    ("device_name", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("AMD Instinct MI300X", "MI300X"),
        ("NVIDIA H100 PCIe", None),  # 756 TFLOP/s
        ("NVIDIA H200 NVL", None),
        ("NVIDIA A100-SXM4-40GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
    ],
)
def test_drivers_names_are_known_and_lesser_kinds_are_not_mistaken(device_name: str, name: str | None) -> None:
    found = gpu_named(device_name)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(
    ("name", "capability", "sm_count", "clock_hz", "bf16", "fp32"),
    [  # multiprocessors, boost clocks and dense peaks with float32 sums, by the data sheets
        ("A100", (8, 0), 108, 1.410e9, 312e12, 19.5e12),
        ("GeForce RTX 3090", (8, 6), 82, 1.695e9, 71e12, 35.6e12),
        ("RTX A6000", (8, 6), 84, 1.800e9, 154.8e12, 38.7e12),
        ("GeForce RTX 4090", (8, 9), 128, 2.520e9, 165.2e12, 82.6e12),
        ("L40S", (8, 9), 142, 2.520e9, 362e12, 91.6e12),
        ("H100", (9, 0), 132, 1.830e9, 989.4e12, 61.8e12),
        ("B200", (10, 0), 148, 1.850e9, 2250e12, 70e12),
        ("GeForce RTX 5090", (12, 0), 170, 2.407e9, 209.5e12, 104.8e12),
    ],
)
def test_estimated_peaks_are_near_the_data_sheets(
    name: str, capability: tuple[int, int], sm_count: int, clock_hz: float, bf16: float, fp32: float
) -> None:
    gpu = gpu_from_properties(f"NVIDIA {name}", 80e9, sm_count, clock_hz, capability)
    assert gpu.peak_bf16_flops == pytest.approx(bf16, rel=0.03)
    assert gpu.peak_fp32_flops == pytest.approx(fp32, rel=0.03)
    assert (gpu.peak_fp8_flops is not None) == (capability >= (8, 9))
    assert gpu.memory_gib == pytest.approx(74.5, abs=0.1)


def test_a_driver_that_tells_no_clock_still_gives_an_estimate() -> None:
    assert gpu_from_properties("some GPU", 80e9, 100, 0, (11, 0)).peak_bf16_flops > 0
