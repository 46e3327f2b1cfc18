"""Training: the size asked for or a clear refusal, through the function and through the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.common.errors import UserError
from nanochat.data.text_shards import write_shard
from nanochat.tokenizer.samples import SAMPLES
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.tokenizer.train import train_tokenizer


def tok_train(base: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(base)}
    return subprocess.run([sys.executable, "-m", "scripts.tok_train", *flags], env=environment, capture_output=True, text=True)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    data = tmp_path / "data" / "python"
    write_shard(data / "shard_00000.parquet", [SAMPLES["prose"], SAMPLES["code"]])
    write_shard(data / "shard_00031.parquet", ["zzyzx " * 500])
    return tmp_path


def test_it_has_exactly_the_size_asked_for() -> None:
    tokenizer = train_tokenizer(iter(SAMPLES.values()), 400)
    assert tokenizer.vocab_size == 400
    assert len(tokenizer.mergeable_ranks) == 391


def test_training_is_deterministic() -> None:
    assert train_tokenizer(iter(SAMPLES.values()), 500).hash == train_tokenizer(iter(SAMPLES.values()), 500).hash


def test_frequent_words_become_one_token() -> None:
    tokenizer = train_tokenizer(iter(["a lighthouse " * 50]), 276)
    assert tokenizer.decode(tokenizer.encode(" lighthouse")[:1]) == " lighthouse"


def test_numbers_are_split_in_groups_of_at_most_two_digits() -> None:
    tokenizer = train_tokenizer(iter(["2024 " * 500]), 267)
    assert [tokenizer.decode([id]) for id in tokenizer.encode("2024")] == ["20", "24"]


def test_a_huge_run_of_spaces_does_not_stop_training() -> None:
    assert train_tokenizer(iter([" " * 1_500_000 + "x", *SAMPLES.values()]), 300).vocab_size == 300


@pytest.mark.parametrize("size", [65_537, 264, 0, -1])
def test_a_size_out_of_range_is_refused(size: int) -> None:
    with pytest.raises(UserError, match=f"--vocab_size={size} is too"):
        train_tokenizer(iter(SAMPLES.values()), size)


def test_too_little_text_says_how_far_it_got_and_that_size_works() -> None:
    with pytest.raises(UserError, match=r"--vocab_size=(\d+)") as raised:
        train_tokenizer(iter(["hello hello world"]), 300)
    reached = int(str(raised.value).split("--vocab_size=")[1].split()[0])
    assert train_tokenizer(iter(["hello hello world"]), reached).vocab_size == reached


def test_the_command_trains_on_training_text_only_and_then_says_that_it_is_there(base: Path) -> None:
    first = tok_train(base, "--data=python", "--vocab_size=400")
    assert first.returncode == 0, first.stderr
    tokenizer = Tokenizer.from_directory(base / "tokenizer" / "python-400")
    assert tokenizer.vocab_size == 400
    assert b"zyzx" not in tokenizer.mergeable_ranks
    before = {path.name: path.stat().st_mtime_ns for path in (base / "tokenizer" / "python-400").iterdir()}
    again = tok_train(base, "--data=python", "--vocab-size=400")
    assert again.returncode == 0
    assert "already there" in again.stdout
    assert "trained with" not in again.stderr
    assert {path.name: path.stat().st_mtime_ns for path in (base / "tokenizer" / "python-400").iterdir()} == before
    other = tok_train(base, "--data=python", "--vocab_size=400", "--doc_cap=50", "--max_chars=1000")
    assert other.returncode == 0
    assert "--doc_cap=10000, not 50 and --max_chars=2000000000, not 1000" in other.stderr


def test_caps_bound_what_is_read(base: Path) -> None:
    result = tok_train(base, "--data=python", "--vocab_size=280", "--doc_cap=700", "--max_chars=1000")
    assert result.returncode == 0, result.stderr
    assert "from 1,000 characters of 2 documents" in result.stdout


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--data=python", "--vocab_size=70000"], "--vocab_size=70000 is too large"),
        (["--data=python", "--vocab_size=65536"], "too little text"),
        (["--data=python", "--max_chars=0"], "--max_chars=0"),
        (["--data=fineweb-edu"], "scripts.dataset --data fineweb-edu"),
        (["--vocab_size=many"], "many"),
    ],
)
def test_a_wrong_request_is_one_line_and_leaves_nothing(base: Path, flags: list[str], part: str) -> None:
    result = tok_train(base, *flags)
    assert result.returncode == 2
    assert part in result.stderr
    assert result.stderr.count("\n") == 1
    assert not [path for path in (base / "tokenizer").glob("*") if path.suffix != ".lock"]
