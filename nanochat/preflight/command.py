"""`scripts.preflight`: every check at once, each with its own end; what they found in a table, and a verdict."""

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

from nanochat.common.cli import EXIT_WRONG_REQUEST, leave_alone
from nanochat.common.console import is_first_rank, is_terminal, say
from nanochat.common.errors import UserError
from nanochat.common.paths import base_path
from nanochat.common.processes import DIES_WITH
from nanochat.preflight.check import GREEN, RED, YELLOW, Finding, worst
from nanochat.preflight.settings import PreflightSettings
from nanochat.tune.children import Broke, run

CHECKS = ("GPUs", "speed", "disk", "limits", "hub", "wandb", "mirror", "clock", "ports", "versions")
EXIT_INTERRUPTED = 130
GPUS_S = 12.0  # that measuring waits for
TELL_S = 6.0  # that it takes to begin measuring, and to tell where ranks hang
LATER_S = 6.0  # that another node may begin later
OF_THE_JOB = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
COLOURS = {GREEN: "green", YELLOW: "yellow", RED: "bold red"}


def preflight(settings: PreflightSettings) -> None:
    """Look this node, or in a job of several nodes all of them, over and print what was found.

    Under a launcher the first rank of each node does it for the node, the first of all prints. Raises UserError where anything is
    red.
    """
    began = time.monotonic()
    settings.check()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return
    report = look_over(settings)
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        findings, verdict = _with_others(report, began + GPUS_S + _speed_s(settings) + LATER_S)
    else:
        findings = _findings(report)
        verdict = worst(finding.status for finding in findings)
    if is_first_rank():
        show(findings, verdict, settings.json)
    if verdict == RED:
        if not is_first_rank():
            leave_alone("error: preflight: something is red; the first node tells what\n", EXIT_WRONG_REQUEST)
        raise UserError("preflight: " + "; ".join(f"{each.name}: {each.value}" for each in findings if each.status == RED))


def look_over(settings: PreflightSettings) -> dict[str, Any]:
    """What the checks of this node find, and what its ranks measure: `findings` and `figures`."""
    own = {name: os.environ[name] for name in OF_THE_JOB if name in os.environ} | {DIES_WITH: str(os.getpid())}
    ends, unused = time.monotonic() + settings.seconds, threading.Event()

    def check(name: str) -> dict[str, Any]:
        if name == "speed":
            unused.wait(GPUS_S)  # what measures would be one of the other processes that are looked for
        left_s = _speed_s(settings) if name == "speed" else ends - time.monotonic()
        try:
            return run(["-m", "nanochat.preflight.one", name, json.dumps(asdict(settings))], left_s, own)
        except Broke as broke:
            finding = Finding(name, YELLOW, f"could not be looked at: {broke}", rank=int(own.get("RANK", "0")))
            return {"findings": [finding.to_json()]}
        finally:
            if name == "GPUs":
                unused.set()

    with ThreadPoolExecutor(len(CHECKS)) as pool:
        try:
            reports = list(pool.map(check, CHECKS))
        except KeyboardInterrupt:
            leave_alone("", EXIT_INTERRUPTED)  # not waiting for them: what they have started ends with this process
    kinds = ("findings", "figures")
    return {kind: [each for report in reports for each in report.get(kind, [])] for kind in kinds}


def _speed_s(settings: PreflightSettings) -> float:
    """Seconds after which measuring is left; the process that does it leaves ranks that hang before, and tells in what."""
    return settings.import_s + settings.seconds + TELL_S


def _findings(*reports: dict[str, Any]) -> list[Finding]:
    """The findings of the nodes' reports, one node after the other, and what the figures of all their ranks tell."""
    from nanochat.preflight.speed import judge

    found = []
    for node, report in enumerate(reports):
        rows = [Finding(**each) for each in report["findings"]]
        found += [replace(each, name=f"node {node}: {each.name}") for each in rows] if len(reports) > 1 else rows
    return found + judge([each for report in reports for each in report["figures"]])


def _with_others(report: dict[str, Any], ends: float) -> tuple[list[Finding], str]:
    """On the first node the findings of all; everywhere the verdict. `ends`: until when others are waited for, by time.monotonic()."""
    from nanochat.preflight.nodes import Nodes

    rank = int(os.environ["RANK"])
    report["findings"] = [each | {"rank": each["rank"] or rank} for each in report["findings"]]
    try:
        nodes = Nodes()
        with nodes.shared(base_path()) as shared:
            report["findings"].append(shared.to_json() | {"rank": rank})
            reports = nodes.gather(report, max(1.0, ends - time.monotonic()))
        findings = _findings(*reports)
        return findings, nodes.agree(worst(finding.status for finding in findings), max(1.0, ends + LATER_S - time.monotonic()))
    except RuntimeError as error:
        return [Finding("nodes", RED, str(error).splitlines()[0], "see that every node reaches MASTER_ADDR", rank)], RED


def show(findings: list[Finding], verdict: str, as_json: bool) -> None:
    """Print what was found."""
    if as_json:
        print(json.dumps({"verdict": verdict, "findings": [each.to_json() for each in findings]}, indent=2, ensure_ascii=False))
        return
    if is_terminal():
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("", "looked at", "found", "what to do", box=box.SIMPLE_HEAD)
        for each in findings:
            table.add_row(Text(each.status, COLOURS[each.status]), Text(each.name), Text(each.value), Text(each.advice))
        Console().print(table)
    else:
        width = max(len(each.name) for each in findings)
        for each in findings:
            say(f"{each.status:<6}  {each.name:<{width}}  {each.value}{f' -> {each.advice}' if each.advice else ''}")
    say(sentence(findings, verdict))


def sentence(findings: list[Finding], verdict: str) -> str:
    """The verdict for a person."""
    if verdict == GREEN:
        return "verdict: green"
    named = ", ".join(each.name for each in findings if each.status == verdict)
    return f"verdict: {verdict} ({named})"
