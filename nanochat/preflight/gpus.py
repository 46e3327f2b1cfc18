"""The GPUs, by what their driver says: how many, how much of their memory is free, who else uses them, what is broken."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from nanochat.preflight.check import GREEN, RED, YELLOW, Finding
from nanochat.preflight.settings import PreflightSettings

QUERY_S = 15.0
MIB_PER_GIB = 1024
ROCM = Path("/dev/kfd")  # is there where an AMD GPU's driver is
DRIVER_FILES = (Path("/proc/driver/nvidia"), Path("/dev/nvidia0"))
FIELDS = (
    "index",
    "uuid",
    "name",
    "memory.total",
    "memory.free",
    "mig.mode.current",
    "ecc.errors.uncorrected.volatile.total",
    "retired_pages.pending",
    "clocks_event_reasons.active",
    "clocks_throttle_reasons.active",  # the same, as drivers before 535 call it
    "pcie.link.width.current",
    "pcie.link.width.max",
)
REMAPPED_FIELDS = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")
APP_FIELDS = ("gpu_uuid", "pid", "process_name", "used_memory")
# Bits of nvmlClocksEventReasons (nvml.h) that tell of a fault; a limit on power under load is none.
SLOWDOWNS = {0x8: "hardware slowdown", 0x20: "too hot (software)", 0x40: "too hot (hardware)", 0x80: "power brake"}

Row = dict[str, str]


class NoAnswer(Exception):
    """The driver's tool gave none; the message says why, and is empty where there is no such tool or no device."""


def query(kind: str, fields: Sequence[str]) -> list[Row]:
    """What `nvidia-smi --query-KIND` says, a dictionary a line; fields that this driver does not know are left out.

    Raises NoAnswer.
    """
    asked = list(fields)
    while asked:
        command = ["nvidia-smi", f"--query-{kind}={','.join(asked)}", "--format=csv,noheader,nounits"]
        try:
            finished = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_S)
        except FileNotFoundError:
            raise NoAnswer("") from None
        except subprocess.TimeoutExpired:
            raise NoAnswer(f"nvidia-smi has not answered for {QUERY_S:.0f} s") from None
        except OSError as error:
            raise NoAnswer(f"nvidia-smi could not be started: {error.strerror}") from None
        said = f"{finished.stdout}\n{finished.stderr}".strip()
        unknown = re.search(r'Field "([^"]+)" is not a valid field', said)
        if unknown and unknown[1] in asked:
            asked.remove(unknown[1])
            continue
        if "No devices were found" in said:
            raise NoAnswer("")
        if finished.returncode:
            raise NoAnswer(f"nvidia-smi ended with {finished.returncode}: {' '.join(said.split())[:200]}")
        lines = [[cell.strip() for cell in line.split(",")] for line in finished.stdout.splitlines() if line.strip()]
        if any(len(cells) != len(asked) for cells in lines):
            raise NoAnswer(f"nvidia-smi says {finished.stdout.splitlines()[0][:80]!r} where {len(asked)} values were asked for")
        return [dict(zip(asked, cells, strict=True)) for cells in lines]
    return []


def visible(rows: list[Row]) -> list[Row]:
    """Those that CUDA_VISIBLE_DEVICES leaves to a program, by number or by the beginning of a UUID."""
    wanted = os.environ.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return rows
    found = []
    for word in (word.strip() for word in wanted.split(",")):
        of_it = [row for row in rows if word and (row["index"] == word or row["uuid"].startswith(word))]
        if not of_it:
            break  # CUDA stops at the first that is not there
        found += of_it[:1]
    return found


def slowdowns(mask: str) -> str:
    """The faults in a mask of reasons for a lower clock, as in `0x0000000000000040`; empty where there is none, or no mask."""
    try:
        bits = int(mask, 16)
    except ValueError:
        return ""
    return ", ".join(what for bit, what in SLOWDOWNS.items() if bits & bit)


def check(settings: PreflightSettings) -> list[Finding]:
    """How many GPUs there are, their free memory against the plan, other processes on them, errors, throttling, slices."""
    try:
        rows = visible(query("gpu", FIELDS))
    except NoAnswer as error:
        return [_none_found(str(error))]
    others = [_others(rows)] if rows else []  # before anything else is asked: what measures does not wait for a slow driver
    findings = [_count(settings, rows)]
    if rows:
        findings += [_memory(settings, rows), *others, _errors(rows), _throttling(rows), *_slices(rows), *_narrow(rows)]
    return findings


def _none_found(why: str) -> Finding:
    if why:
        return Finding("GPUs", RED, why, "the driver does not answer: restart the node, or ask for another one")
    if ROCM.exists():
        return Finding("GPUs", GREEN, "of AMD, whose driver is not asked: how fast they are stands below")
    if there := [str(path) for path in DRIVER_FILES if path.exists()]:
        return Finding("GPUs", YELLOW, f"{there[0]} is there, but nvidia-smi finds no GPU", "install or restart the driver")
    return Finding("GPUs", GREEN, "none; this run computes on the CPU")


def _count(settings: PreflightSettings, rows: list[Row]) -> Finding:
    kinds = sorted({row["name"] for row in rows})
    value = ", ".join(f"{sum(row['name'] == kind for row in rows)} × {kind}" for kind in kinds) or "0 GPUs"
    wanted = settings.node.count
    if len(rows) < wanted:
        hidden = ", as CUDA_VISIBLE_DEVICES leaves them" if "CUDA_VISIBLE_DEVICES" in os.environ else ""
        return Finding("GPUs", RED, f"{value}{hidden}; {wanted} are wanted", "set NPROC_PER_NODE lower, or ask for another node")
    if len(kinds) > 1:
        return Finding("GPUs", YELLOW, value, "all wait for the slowest kind; CUDA_VISIBLE_DEVICES chooses")
    return Finding("GPUs", GREEN, value)


def _number(text: str) -> float:
    """A number of the driver's; 0 for [N/A] and the like."""
    try:
        return float(text)
    except ValueError:
        return 0.0


def _named(rows: list[Row]) -> str:
    return f"GPU {', '.join(row['index'] for row in rows)}"


def _memory(settings: PreflightSettings, rows: list[Row]) -> Finding:
    known = [row for row in rows if _number(row["memory.total"])]
    if not known:
        return Finding("GPU memory", YELLOW, "the driver does not tell", "look with nvidia-smi")
    plan = settings.answer().run.plan
    free_gib = {row["index"]: _number(row["memory.free"]) / MIB_PER_GIB for row in known}
    least = min(free_gib, key=lambda index: free_gib[index])
    value = f"{free_gib[least]:.1f} GiB free or more; this run needs {plan.peak_gib:.1f}"
    if short := [row for row in known if free_gib[row["index"]] < plan.peak_gib]:
        value = f"{_named(short)}: {free_gib[least]:.1f} GiB free, and this run needs {plan.peak_gib:.1f}"
        return Finding("GPU memory", RED, value, "end what uses it, or plan a smaller model (run script's --plan)")
    return Finding("GPU memory", GREEN, value)


def _others(rows: list[Row]) -> Finding:
    index = {row["uuid"]: row["index"] for row in rows}
    try:
        apps = [app for app in query("compute-apps", APP_FIELDS) if app["gpu_uuid"] in index]
    except NoAnswer as error:
        return Finding("other processes", YELLOW, str(error), "look with nvidia-smi")
    if not apps:
        return Finding("other processes", GREEN, "none on the GPUs")
    told = [f"GPU {index[app['gpu_uuid']]}: {app['process_name']} ({app['pid']}), {app['used_memory']} MiB" for app in apps]
    return Finding("other processes", YELLOW, "; ".join(told), "they share its time and memory: end them, where they are yours")


def _errors(rows: list[Row]) -> Finding:
    if uncorrected := [row for row in rows if _number(row.get("ecc.errors.uncorrected.volatile.total", "")) > 0]:
        counts = ", ".join(row["ecc.errors.uncorrected.volatile.total"] for row in uncorrected)
        value = f"{_named(uncorrected)}: {counts} errors of memory that could not be corrected since the driver's start"
        return Finding("GPU errors", RED, value, "reset the GPU (nvidia-smi --gpu-reset -i N), or ask for another node")
    index = {row["uuid"]: row for row in rows}
    try:
        remapped = {row["gpu_uuid"]: row for row in query("remapped-rows", REMAPPED_FIELDS) if row["gpu_uuid"] in index}
    except (NoAnswer, KeyError):  # older drivers and GPUs have no such thing
        remapped = {}
    if failed := [index[uuid] for uuid, row in remapped.items() if row.get("remapped_rows.failure") in ("Yes", "1")]:
        value = f"{_named(failed)}: rows of memory that are broken could not be replaced"
        return Finding("GPU errors", RED, value, "the GPU is at its end: ask for another node")
    pending = [index[uuid] for uuid, row in remapped.items() if row.get("remapped_rows.pending") in ("Yes", "1")]
    pending += [row for row in rows if row.get("retired_pages.pending") == "Yes"]
    if pending:
        value = f"{_named(pending)}: broken memory that is replaced at the next reset"
        return Finding("GPU errors", YELLOW, value, "reset the GPU (nvidia-smi --gpu-reset -i N) before a long run")
    if not any(row.get("ecc.errors.uncorrected.volatile.total", "").isdigit() for row in rows):
        return Finding("GPU errors", GREEN, "none told of; these GPUs do not count errors of memory")
    return Finding("GPU errors", GREEN, "no uncorrected errors of memory")


def _throttling(rows: list[Row]) -> Finding:
    masks = {row["index"]: row.get("clocks_event_reasons.active", row.get("clocks_throttle_reasons.active", "")) for row in rows}
    if slow := {index: found for index, mask in masks.items() if (found := slowdowns(mask))}:
        value = "; ".join(f"GPU {index}: {found}" for index, found in slow.items())
        return Finding("throttling", YELLOW, value, "its cooling or its power is at fault: ask for another node")
    return Finding("throttling", GREEN, "none at rest")


def _slices(rows: list[Row]) -> list[Finding]:
    cut = [row for row in rows if row.get("mig.mode.current") == "Enabled"]
    if not cut:
        return []
    return [Finding("MIG", YELLOW, f"{_named(cut)}: cut into slices, of which a rank gets one", "nvidia-smi -mig 0 gives the whole GPU")]


def _narrow(rows: list[Row]) -> list[Finding]:
    widths = ("pcie.link.width.current", "pcie.link.width.max")
    narrow = [row for row in rows if 0 < _number(row.get(widths[0], "")) < _number(row.get(widths[1], ""))]
    if not narrow:
        return []
    value = f"{_named(narrow)}: {narrow[0][widths[0]]} of {narrow[0][widths[1]]} PCIe lanes"
    return [Finding("PCIe", YELLOW, value, "a loose card or riser: ask for another node where the links below are slow")]
