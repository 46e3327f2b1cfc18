"""The benchmark of answering runs and prints what machines read."""

import json
from pathlib import Path

from tests.conftest import World, wrong_request


def test_it_prints_what_machines_read(world: World, trained: Path) -> None:
    sizes = ("--prompt_tokens=8", "--new_tokens=6", "--rows=2", "--precision=fp32", "--json")
    for flags in ((f"--model={trained}",), ("--depth=2", "--vocab_size=600", "--max_seq_len=64", "--one_by_one", "--baseline")):
        finished = world.run("scripts.bench_infer", *sizes, *flags)
        assert finished.returncode == 0, finished.stderr
        value = json.loads(finished.stdout)
        assert all(value[key] > 0 for key in ("prefill_tok_per_s", "decode_tok_per_s", "first_token_ms", "bandwidth_fraction"))
        assert value["settings"]["rows"] == 2
    assert value["times_one_by_one"] > 0
    assert value["times_transformers"] > 0
    wrong_request(world.run("scripts.bench_infer", "--rows=0"), "--rows=0")
    wrong_request(world.run("scripts.bench_infer", "--new_tokens=5000"), "2,048")
    wrong_request(world.run("scripts.bench_infer", f"--model={trained}", "--new_tokens=64"), "context of 64")
    wrong_request(world.run("scripts.bench_infer", "--vocab_size=0"), "--vocab_size=0")
