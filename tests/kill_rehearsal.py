"""A rehearsal whose processes are killed at random: `python -m tests.kill_rehearsal DIRECTORY --kills 200`.

It runs the rehearsal once in peace, under DIRECTORY/calm, then each of its commands again under DIRECTORY/killed: a random process of
the command gets SIGKILL at a random moment, until its share of the kills is spent; then it runs to its end. Whatever the two have
made must be the same, byte by byte: text, tokenizer, token shards, losses, models, evaluations.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
TIMED = {"tok_per_sec", "mfu", "mem_gib", "elapsed_s", "step_s", "seconds", "answers_per_s"}
"""What differs between any two runs."""
END_S = 900.0


def environment(base: Path) -> dict[str, str]:
    return {**os.environ, "NANOCHAT_BASE_DIR": str(base), "PYTHONPATH": str(ROOT), "SKIP_PREFLIGHT": "1"}


def calm_run(base: Path) -> list[tuple[list[str], float]]:
    """The commands of an unbroken rehearsal, with the seconds that each took; run once, and kept."""
    kept = base.with_name("commands.json")
    if not kept.exists():
        shutil.rmtree(base, ignore_errors=True)
        begun: list[tuple[list[str], float]] = []
        run = subprocess.Popen(["bash", "run3b.sh", "--rehearse"], cwd=ROOT, env=environment(base), stdout=subprocess.PIPE, text=True)
        assert run.stdout
        for line in run.stdout:
            print(line, end="", flush=True)
            if line.startswith("$ python "):
                begun.append((shlex.split(line[2:]), time.monotonic()))
        ended = time.monotonic()
        assert run.wait() == 0
        ends = [at for _, at in begun[1:]] + [ended]
        kept.write_text(json.dumps([(command, end - at) for (command, at), end in zip(begun, ends, strict=True)]))
    return [(list(command), float(seconds)) for command, seconds in json.loads(kept.read_text())]


def kill_one(command: list[str], base: Path, after_s: float, generator: random.Random) -> tuple[bool, str]:
    """Run a command and kill one of its processes after that time; whether it came to its end first, and which was killed."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(base), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        return process.wait(after_s) == 0, ""
    except subprocess.TimeoutExpired:
        pass
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    victim = generator.choice(family)
    try:
        name = " ".join(victim.cmdline()[:4]) or victim.name()
        victim.kill()
    except psutil.NoSuchProcess:
        name = "one that had ended"
    status = process.wait(END_S)
    left = psutil.wait_procs(family, timeout=30)[1]
    assert not left, f"{command} has left {left} behind"
    assert status != 2, f"{command} was refused after a kill"
    return status == 0, name


def contents(base: Path) -> dict[str, Any]:
    """All that a rehearsal has made and that must be the same in another, by file."""
    found: dict[str, Any] = {}
    for pattern in ("data/*/*.parquet", "tokenizer/*/*", "tokens/*/*", "runs/d4/*/model/*", "runs/d4/*/*.json*"):
        for path in sorted(base.glob(pattern)):
            name = str(path.relative_to(base))
            if not path.is_file() or path.name.startswith(".") or path.name in ("config.json", "step_plan.json", "README.md"):
                continue
            if path.parent.parent.name == "d4" or path.suffix == ".jsonl":
                rows = (
                    [json.loads(line) for line in path.read_text().splitlines()]
                    if path.suffix == ".jsonl"
                    else json.loads(path.read_text())
                )
                found[name] = without_times(rows)
            else:
                found[name] = path.read_bytes()
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in TIMED}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    generator = random.Random(asked.seed)
    asked.directory.mkdir(parents=True, exist_ok=True)
    calm, killed = asked.directory.absolute() / "calm", asked.directory.absolute() / "killed"
    commands = calm_run(calm)
    shutil.rmtree(killed, ignore_errors=True)
    kills = 0
    for number, (command, seconds) in enumerate(commands):
        share = round(asked.kills * (number + 1) / len(commands)) - kills
        name = " ".join(part for part in command if part.startswith(("scripts.", "-i", "base", "mid", "sft", "rl")) or "=" not in part)[:90]
        done = False
        for _ in range(share):
            moment = generator.uniform(0, 0.6 * seconds)
            done, victim = kill_one(command, killed, moment, generator)
            if done:
                break
            kills += 1
            print(f"{kills:4} {moment:6.1f} of {seconds:5.1f} s  {name}: {victim}", flush=True)
        if not done:
            ended = subprocess.run(command, cwd=ROOT, env=environment(killed), capture_output=True, text=True)
            assert ended.returncode == 0, f"{command}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        if "scripts.tune" in command:  # what is fastest is not the same twice
            shutil.rmtree(killed / "profiles", ignore_errors=True)
            shutil.copytree(calm / "profiles", killed / "profiles")
    one, other = contents(calm), contents(killed)
    wrong = sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
    print(f"{kills} kills; {len(one)} files compared, {len(wrong)} differ: {', '.join(wrong)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
