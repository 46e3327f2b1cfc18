"""The processes that prove and measure: one that breaks, or hangs, takes nothing else with it."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.common.errors import UserError
from nanochat.plan.choose import StepPlan, reshard_text
from nanochat.plan.recipe import Recipe

PROVE, BENCH = "nanochat.tune.prove", "scripts.bench_train"
TORCHRUN_GRACE_S = 40.0  # torchrun gives its workers thirty
LOOK_EVERY_S = 0.05
PROOF_S = 180.0  # longer than any proof takes, compiling included


class Broke(Exception):
    """A process that did not do what it was for; the message says how it ended, in a line."""


def _start(arguments: list[str], environment: dict[str, str], stderr: int | None = None) -> subprocess.Popen[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NNODES")}
    command = [sys.executable, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=kept | environment, start_new_session=True)


def _kill(process: subprocess.Popen[str], grace_s: float = 0) -> None:
    """End a process and its group; with a grace it is asked to first, for torchrun's workers are in groups of their own."""
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        if grace_s and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(grace_s)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class Beginning:
    """How a process says that it has begun, from when on its time counts."""

    file: Path
    """What it makes then."""
    seconds: float
    """That it may take to."""


def run(
    arguments: list[str],
    seconds: float,
    environment: dict[str, str] | None = None,
    grace_s: float = 0,
    beginning: Beginning | None = None,
) -> dict[str, Any]:
    """The last line that a module prints, which is a JSON object. Raises Broke where there is none within so many seconds."""
    process = _start(arguments, environment or {}, subprocess.PIPE)
    try:
        if beginning:
            _await(beginning, process)
        out, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise Broke(f"not done after {seconds:.0f} s") from None
    finally:
        _kill(process, grace_s)
    if process.returncode:
        raise Broke(_end(process.returncode, errors))
    try:
        return dict(json.loads(out.strip().splitlines()[-1]))
    except (ValueError, IndexError):
        raise Broke("it printed no result") from None


def _await(beginning: Beginning, process: subprocess.Popen[str]) -> None:
    ends = time.monotonic() + beginning.seconds
    while not beginning.file.exists() and process.poll() is None:
        if time.monotonic() > ends:
            raise Broke(f"not done after {beginning.seconds:.0f} s")
        time.sleep(LOOK_EVERY_S)


def _end(status: int, errors: str) -> str:
    """How a process ended, in a line: what it said last, or the signal that killed it."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "Error" in line or line.startswith("error: ")), lines[-1] if lines else "")
    how = f"killed by signal {-status}" if status < 0 else ""
    return " ".join(f"{how} {said}".split()).removeprefix("error: ")[:300] or f"exit status {status}"


def proofs(
    depth: int, seq_len: int, vocab_size: int, precisions: list[str], quick: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the machine is, and every proof that it allows; a process that a proof kills is started again without it.

    quick: only those that the likeliest way to make a step needs.

    Raises UserError where not even the machine could be asked.
    """
    facts: dict[str, Any] = {}
    found: list[dict[str, Any]] = []
    skip: list[list[str]] = []
    while True:
        size = {"depth": depth, "seq_len": seq_len, "vocab_size": vocab_size}
        request = {**size, "precisions": precisions, "quick": quick, "skip": skip}
        process = _start(["-m", PROVE, json.dumps(request)], {})
        began: list[str] | None = None
        done, how = False, f"hung for {PROOF_S:.0f} s"
        try:
            for line in _lines(process, PROOF_S):
                facts, began = line.get("facts", facts), line.get("began", began)
                done = done or "done" in line
                if "proof" in line:
                    found.append(line["proof"])
                    skip.append([line["proof"]["precision"], line["proof"]["name"]])
                    began = None
            if (status := process.poll()) is not None:
                how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        finally:
            _kill(process)
        if done:
            return facts, found
        if began is None or began in skip:
            raise UserError(f"what this machine is could not be found out: the process that asks it {how}, as shown above")
        note = f"its process {how}"
        found.append({"name": began[1], "precision": began[0], "error": None, "tolerance": 0.0, "passed": False, "note": note})
        skip.append(began)


def _lines(process: subprocess.Popen[str], patience_s: float) -> Iterator[dict[str, Any]]:
    """JSON objects as they are printed, until the process ends or says nothing for so long."""
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in process.stdout or ():
            lines.put(line)
        lines.put("")

    threading.Thread(target=read, daemon=True).start()
    with contextlib.suppress(queue.Empty):
        while line := lines.get(timeout=patience_s):
            with contextlib.suppress(ValueError):
                yield json.loads(line)
        process.wait()


def measure(plan: StepPlan, recipe: Recipe, steps: int, warmup_s: float, seconds: float, cores: int = 0, cache: str = "") -> dict[str, Any]:
    """What scripts.bench_train says of a step made so. Raises Broke where it fails, or takes too long.

    cores: processors that the ranks of a step on a CPU share; 0 on a GPU. cache: where compiled kernels are kept; empty for
    the usual place.
    """
    job, shape = plan.job, plan.job.shape
    flags = {
        "depth": shape.depth,
        "vocab_size": shape.vocab_size,
        "max_seq_len": shape.seq_len,
        "device_batch_size": job.device_batch_size,
        "total_batch_size": job.total_batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "recompute": plan.recompute_text,
        "reshard_after_forward": reshard_text(plan.reshard),
        "precision": job.precision,
        "recipe": f"{recipe.text},threads={recipe.threads}",  # all of it: a profile from before must not fill in
        "num_iterations": steps,
        "warmup_s": warmup_s,
    }
    arguments = ["-m", BENCH, "--json", *(f"--{name}={value}" for name, value in flags.items())]
    environment = {"TORCHINDUCTOR_CACHE_DIR": cache, "TRITON_CACHE_DIR": f"{cache}/triton"} if cache else {}
    if job.world_size > 1:
        arguments += ["--simulate", f"--world_size={job.world_size}"]
        environment |= {"OMP_NUM_THREADS": str(max(1, cores // job.world_size))} if cores else {}
    began = time.monotonic()
    return run(arguments, seconds, environment) | {"recipe": recipe.text, "took_s": time.monotonic() - began}


def facts() -> dict[str, Any]:
    """What this machine is, by torch. Raises Broke where it cannot be asked."""
    return dict(run(["-m", PROVE, "{}"], PROOF_S)["facts"])


def links(ranks: int, seconds: float = 120) -> dict[str, Any]:
    """What nanochat.tune.links says. Raises Broke where it fails."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return run([*launch, "-m", "nanochat.tune.links"], seconds, grace_s=TORCHRUN_GRACE_S)
