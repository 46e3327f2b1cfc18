"""How fast each device computes and how fast they speak to each other, measured by a process a rank; a slow one is named."""

import json
import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nanochat.common.files import read_json
from nanochat.common.processes import DIES_WITH
from nanochat.plan.hardware import gpu_named
from nanochat.plan.profile import usable_cores
from nanochat.preflight.check import GREEN, RED, YELLOW, Finding
from nanochat.preflight.gpus import slowdowns
from nanochat.preflight.settings import PreflightSettings
from nanochat.tune.children import Beginning, Broke, run

MEASURE = "nanochat.preflight.measure"
PARTS = ("importing torch", "its device", "a product", "meeting the other ranks", "an all-reduce", "passing to the next rank")
"""What a rank is at, in this order."""
NOT_DONE = "not done"  # how children.run begins to say that time was up
FAIR, POOR = 0.9, 0.5  # of the median of its like
PRODUCT_OF_PEAK = 0.4  # of the data sheet's peak, which no product reaches
LINK_OF_PEAK = 0.25
PAIR_FAIR = 0.7

Figures = dict[str, Any]


def measure(settings: PreflightSettings, directory: Path) -> list[Figures]:
    """What the ranks of this node have measured, as measure.py writes it into an empty directory; `error` says how one failed.

    Under a launcher the ranks are those of the whole job, which measure together: every node calls this at the same time.
    """
    node, seconds, environ = settings.node, settings.seconds, os.environ
    count = node.count
    first = int(environ.get("RANK", "0"))
    shared = {"WORLD_SIZE": environ.get("WORLD_SIZE", str(count)), "GROUP_RANK": environ.get("GROUP_RANK", "0")}
    shared |= {"LOCAL_WORLD_SIZE": str(count), "OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS", str(max(1, usable_cores() // count)))}
    store = "" if "WORLD_SIZE" in environ else str(directory / "store")

    def one(local_rank: int) -> Figures:
        path = directory / f"rank{local_rank}.json"
        own = {"RANK": str(first + local_rank), "LOCAL_RANK": str(local_rank), DIES_WITH: str(os.getpid())}
        request = {"path": str(path), "store": store, "import_s": settings.import_s, "patience_s": seconds, "has_gpu": node.is_this_machine}
        error = ""
        try:
            run(["-m", MEASURE, json.dumps(request)], seconds, shared | own, beginning=Beginning(path, settings.import_s))
        except Broke as broke:
            error = str(broke)
        known = {"rank": first + local_rank, "local_rank": local_rank, "node": int(shared["GROUP_RANK"]), "at": PARTS[0]}
        return known | (read_json(path) if path.is_file() else {}) | {"error": error}

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def judge(figures: list[Figures]) -> list[Finding]:
    """What the figures of all ranks of the job tell."""
    if not figures:
        return []
    alike: dict[tuple[str, str], list[Figures]] = {}
    for each in _culprits([each for each in figures if each["error"]]):
        alike.setdefault((each["at"], each["error"]), []).append(each)
    findings = [_failure(each) for each in alike.values()]
    findings += [_products([each for each in figures if "flops" in each])]
    linked = [each for each in figures if "link_bytes_per_s" in each]
    if linked:
        findings.append(_links(linked))
    if len(versions := {each["torch"] for each in figures if "torch" in each}) > 1:
        findings.append(Finding("torch of the nodes", RED, ", ".join(sorted(versions)), "install the same version on every node"))
    return findings


def _name(each: Figures) -> str:
    where = f" of node {each['node']}" if each["node"] else ""
    return f"{'GPU' if each.get('on_gpu') else 'rank'} {each['local_rank'] if each.get('on_gpu') else each['rank']}{where}"


def _culprits(failed: list[Figures]) -> list[Figures]:
    """Those that failed first; ranks that came further have only waited for them, and so have, of these, the ones that hung."""
    if not failed:
        return []
    earliest = min(PARTS.index(each["at"]) for each in failed)
    first = [each for each in failed if each["at"] == PARTS[earliest]]
    return [each for each in first if not each["error"].startswith(NOT_DONE)] or first


def _failure(alike: list[Figures]) -> Finding:
    """Ranks that failed or hung alike. One that could not even import torch in time tells of a slow disk, not of a device."""
    first = alike[0]
    name = f"rank{'s' if len(alike) > 1 else ''} {', '.join(str(each['rank']) for each in alike)}"
    value = f"at {first['at']}: {first['error']}"
    if first["at"] == PARTS[0] and first["error"].startswith(NOT_DONE):
        return Finding(name, YELLOW, value, "a slow disk or a busy machine: try again", first["rank"])
    return Finding(name, RED, value, "training would end or hang alike: mend it, or ask for another node", first["rank"])


def _products(figures: list[Figures]) -> Finding:
    if not figures:
        return Finding("speed", YELLOW, "no device was measured")
    rates = [each["flops"] for each in figures]
    median = statistics.median(rates)
    on_gpu = figures[0]["on_gpu"]
    unit, kind = (1e12, "TFLOP/s in bf16") if on_gpu else (1e9, "GFLOP/s in float32")
    spread = f"{min(rates) / unit:,.0f} to {max(rates) / unit:,.0f}" if len(rates) > 1 else f"{median / unit:,.0f}"
    value = f"{spread} {kind}"
    if wrong := [each for each in figures if not each["finite"]]:
        named = ", ".join(map(_name, wrong))
        return Finding(
            "speed", RED, f"{named}: a product of finite numbers is not finite", "that GPU computes wrongly: ask for another node"
        )
    if not on_gpu:  # cores are shared, and their speeds tell nothing of a fault
        return Finding("speed", GREEN, value)
    advice = "every step waits for the slowest: ask for another node, or leave it out (CUDA_VISIBLE_DEVICES)"
    slow = [each for each in figures if each["flops"] < FAIR * median]
    if slow:
        told = ", ".join(f"{_name(each)} {each['flops'] / unit:,.0f}{_why(each)}" for each in slow)
        return Finding(
            "speed",
            RED if min(rates) < POOR * median else YELLOW,
            f"{told}, where the median is {median / unit:,.0f} {kind}",
            advice,
            slow[0]["rank"],
        )
    peak = gpu_named(figures[0]["device"])
    if peak and median < PRODUCT_OF_PEAK * peak.peak_bf16_flops:
        value += f", and {peak.name}'s peak is {peak.peak_bf16_flops / unit:,.0f}{_why(figures[0])}"
        return Finding("speed", YELLOW, value, "look with nvidia-smi -q -d CLOCK,POWER,PERFORMANCE")
    hot = [each for each in figures if slowdowns(each.get("slowdown", ""))]
    if hot:
        told = ", ".join(f"{_name(each)}{_why(each)}" for each in hot)
        return Finding("speed", YELLOW, f"{value}; {told}", "its cooling or its power is at fault", hot[0]["rank"])
    return Finding("speed", GREEN, value)


def _why(each: Figures) -> str:
    """What the driver said of a GPU's clock while it worked."""
    words = [f"{each['clock_mhz']} MHz", f"{each['degrees']} °C"] if "degrees" in each else []
    words += [found] if (found := slowdowns(each.get("slowdown", ""))) else []
    return f" ({', '.join(words)})" if words else ""


def _links(figures: list[Figures]) -> Finding:
    rate = min(each["link_bytes_per_s"] for each in figures)
    nodes = len({each["node"] for each in figures})
    value = f"{rate / 1e9:,.1f} GB/s of each of {len(figures)} ranks in an all-reduce" + (f" over {nodes} nodes" if nodes > 1 else "")
    if not figures[0]["on_gpu"]:
        return Finding("links", GREEN, value)
    if slow := _slow_pairs(figures):
        return Finding("links", YELLOW, f"{value}; {', '.join(slow)}", "look with nvidia-smi topo -m and nvidia-smi nvlink -s")
    known = gpu_named(figures[0]["device"])
    if known and nodes == 1 and rate < LINK_OF_PEAK * known.link_bytes_per_s:
        value += f", and {known.name} has {known.link_bytes_per_s / 1e9:,.0f} by {known.link}"
        return Finding("links", YELLOW, value, "look with nvidia-smi topo -m; NCCL_DEBUG=INFO tells which way it takes")
    return Finding("links", GREEN, value)


def _slow_pairs(figures: list[Figures]) -> list[str]:
    """Neighbours that pass less than others do, those inside a node and those between nodes each among themselves."""
    by_rank = {each["rank"]: each for each in figures}
    pairs = [(each, by_rank.get((each["rank"] + 1) % len(figures))) for each in figures if each.get("next_bytes_per_s")]
    told = []
    for between in (False, True):
        like = [(left, right) for left, right in pairs if right and (left["node"] != right["node"]) == between]
        median = statistics.median(left["next_bytes_per_s"] for left, _ in like) if like else 0.0
        for left, right in like:
            if left["next_bytes_per_s"] < PAIR_FAIR * median:
                told.append(f"{_name(left)} and {_name(right)} pass {left['next_bytes_per_s'] / 1e9:,.1f}, others {median / 1e9:,.1f}")
    return told
