"""A short rehearsal whose processes are killed at random: `python -m tests.kill_rehearsal DIRECTORY --kills 200`.

It takes the commands that the rehearsal gives, with fewer steps and questions, and runs them in peace, under DIRECTORY/calm; then each
again under DIRECTORY/killed, where a random process of it gets SIGKILL at a random moment, until its share of the kills is spent, and
then runs to its end. What the two have made must be the same, byte by byte: text, tokenizer, token shards, losses, models, evaluations.
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
FEW_TOKENS = {"--eval_tokens": "4096"}


def environment(base: Path) -> dict[str, str]:
    return {**os.environ, "NANOCHAT_BASE_DIR": str(base), "PYTHONPATH": str(ROOT), "SKIP_PREFLIGHT": "1"}


def commands_of_a_rehearsal(directory: Path) -> list[list[str]]:
    """What the run script would run, from a python that does nothing but pass the set-up's question on."""
    fake = directory / "bin/python"
    fake.parent.mkdir(parents=True, exist_ok=True)
    fake.write_text(f'#!/bin/sh\ncase "$*" in "- "*) exec {sys.executable} "$@" ;; esac\n')
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    said = subprocess.run(
        ["bash", "run3b.sh", "--rehearse"],
        cwd=ROOT,
        env={**environment(directory / "none"), "PATH": path, "VIRTUAL_ENV": sys.prefix},
        capture_output=True,
        text=True,
        check=True,
    )
    commands = [shlex.split(line[2:]) for line in said.stdout.splitlines() if line.startswith("$ python ")]
    return [[sys.executable, *shorter(command[1:])] for command in commands]


def shorter(command: list[str]) -> list[str]:
    """The command with fewer steps and questions."""
    module = next(word for word in command if word.startswith("scripts.") and word != "scripts.launch")
    flags = {
        "scripts.base_train": {"--num_iterations": "24", "--save_every": "3", "--eval_every": "12", "--sample_every": "12", **FEW_TOKENS},
        "scripts.base_loss": {"--train_tokens": "4096"},
        "scripts.mid_train": {"--num_iterations": "24", "--save_every": "3", "--eval_every": "12", "--sample_every": "12", **FEW_TOKENS},
        "scripts.chat_sft": {"--num_iterations": "16", "--save_every": "3", "--eval_every": "8", "--sample_every": "8", **FEW_TOKENS},
        "scripts.chat_rl": {"--num_iterations": "4", "--save_every": "1", "--sample_every": "2", "--examples_per_step": "4"},
    }.get(module, {})
    short = [f"{name}={flags[name]}" if (name := word.partition("=")[0]) in flags else word for word in command]
    if "--num_iterations" in flags:
        short.append("--no-compile")
    if module == "scripts.base_loss":
        short.append("--eval_tokens=4096")
    if "-x" in short:
        short[short.index("-x") + 1] = "16"
    return short


def calm_run(commands: list[list[str]], base: Path) -> list[float]:
    """Seconds that each command takes, undisturbed."""
    seconds = []
    for command in commands:
        started = time.monotonic()
        ended = subprocess.run(command, cwd=ROOT, env=environment(base), capture_output=True, text=True)
        assert ended.returncode == 0, f"{command}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        seconds.append(time.monotonic() - started)
        print(f"{seconds[-1]:6.1f} s  {name_of(command)}", flush=True)
    return seconds


def name_of(command: list[str]) -> str:
    """A command in a few words."""
    return " ".join(word for word in command if word.startswith("scripts.") or word in ("base", "mid", "sft", "rl"))


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
    shutil.rmtree(calm, ignore_errors=True)
    shutil.rmtree(killed, ignore_errors=True)
    commands = commands_of_a_rehearsal(asked.directory.absolute())
    kills = 0
    for number, (command, seconds) in enumerate(zip(commands, calm_run(commands, calm), strict=True)):
        share = round(asked.kills * (number + 1) / len(commands)) - kills
        done = False
        for _ in range(share):
            moment = generator.uniform(0, 0.6 * seconds)
            done, victim = kill_one(command, killed, moment, generator)
            if done:
                break
            kills += 1
            print(f"{kills:4} {moment:6.1f} of {seconds:5.1f} s  {name_of(command)}: {victim}", flush=True)
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
