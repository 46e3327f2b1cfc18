"""Text to token shards and back: every document in order, nothing lost by a kill, nothing damaged goes unnoticed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from nanochat.common.errors import UserError
from nanochat.data.text_shards import write_shard
from nanochat.data.token_shards import TokenIndex, open_shard, read_index, verify_shards
from nanochat.tokenizer.samples import SAMPLES
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.tokenizer.train import train_tokenizer

VAL_INDEX = 31
DOCUMENTS = 60


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(iter(SAMPLES.values()), 600)


def documents(shard: int, repeat: int = 1) -> list[str]:
    """The text of a shard, known beforehand: samples, awkward pieces and spellings of special tokens."""
    odd = ["", "<|bos|>", "  \n", "語" * 50, "x" * 300, "<|user_start|>hi<|user_end|>"]
    texts = [f"{shard}.{number} {list(SAMPLES.values())[number % 4][number : number + 900]}" for number in range(DOCUMENTS - len(odd))]
    return (texts + odd) * repeat


def make_text(base: Path, shards: list[int], repeat: int = 1) -> None:
    for shard in shards:
        write_shard(base / "data" / "python" / f"shard_{shard:05d}.parquet", documents(shard, repeat))


@pytest.fixture
def base(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    tokenizer.save(tmp_path / "tokenizer" / "python-600")
    make_text(tmp_path, [0, 1, VAL_INDEX])
    return tmp_path


def command(base: Path, *flags: str) -> tuple[list[str], dict[str, str]]:
    arguments = [sys.executable, "-m", "scripts.tok_encode", "--data=python", "--tokenizer=python-600", "--num_workers=2", *flags]
    return arguments, {**os.environ, "NANOCHAT_BASE_DIR": str(base)}


def tok_encode(base: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    arguments, environment = command(base, *flags)
    return subprocess.run(arguments, env=environment, capture_output=True, text=True)


def index_of(base: Path, tokenizer: Tokenizer) -> TokenIndex:
    return read_index(base / "tokens" / f"python-{tokenizer.hash}")


def files(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != ".lock"}


def expected_ids(tokenizer: Tokenizer, texts: list[str]) -> list[int]:
    return [id for text in texts for id in [tokenizer.bos_id, *tokenizer.encoding.encode_ordinary(text)]]


def test_every_document_in_order_with_its_counts(base: Path, tokenizer: Tokenizer) -> None:
    result = tok_encode(base)
    assert result.returncode == 0, result.stderr
    index = index_of(base, tokenizer)
    assert (index.data, index.tokenizer, index.tokenizer_hash, index.vocab_size) == ("python", "python-600", tokenizer.hash, 600)
    assert [(shard.name, shard.split) for shard in index.shards] == [
        ("shard_00000.bin", "train"),
        ("shard_00001.bin", "train"),
        ("shard_00031.bin", "val"),
    ]
    for number, shard in zip([0, 1, VAL_INDEX], index.shards, strict=True):
        ids = open_shard(index, shard)
        assert (ids.dtype, ids.shape) == (np.dtype("<u2"), (shard.tokens,))
        assert ids.tolist() == expected_ids(tokenizer, documents(number))
        assert shard.documents == DOCUMENTS == int((ids == tokenizer.bos_id).sum())
        assert shard.bytes == sum(len(text.encode()) for text in documents(number)) == int(tokenizer.token_bytes()[ids].sum())
    verify_shards(index)


def test_many_chunks_and_row_groups_keep_the_order(base: Path, tokenizer: Tokenizer) -> None:
    make_text(base, [0], repeat=40)
    assert tok_encode(base, "--num_workers=3").returncode == 0
    index = index_of(base, tokenizer)
    assert open_shard(index, index.shards[0]).tolist() == expected_ids(tokenizer, documents(0, repeat=40))


def test_only_an_added_shard_is_made(base: Path, tokenizer: Tokenizer) -> None:
    assert tok_encode(base).returncode == 0
    directory = index_of(base, tokenizer).directory
    before = {path.name: path.stat().st_mtime_ns for path in directory.glob("*.bin")}
    make_text(base, [2])
    result = tok_encode(base)
    assert result.returncode == 0
    assert "1 made" in result.stdout
    assert "3 already there" in result.stdout
    after = {path.name: path.stat().st_mtime_ns for path in directory.glob("*.bin")}
    assert after.items() > before.items()
    assert set(after) - set(before) == {"shard_00002.bin"}
    assert [shard.name for shard in index_of(base, tokenizer).shards][2] == "shard_00002.bin"


def test_changed_text_is_tokenized_again_and_shards_of_the_old_text_go(base: Path, tokenizer: Tokenizer) -> None:
    assert tok_encode(base).returncode == 0
    (base / "data" / "python" / "shard_00001.parquet").unlink()
    write_shard(base / "data" / "python" / "shard_00000.parquet", documents(7))
    assert tok_encode(base).returncode == 0
    index = index_of(base, tokenizer)
    assert [shard.name for shard in index.shards] == ["shard_00000.bin", "shard_00031.bin"]
    assert open_shard(index, index.shards[0]).tolist() == expected_ids(tokenizer, documents(7))


def test_text_deleted_to_save_room_keeps_its_tokens(base: Path, tokenizer: Tokenizer) -> None:
    assert tok_encode(base).returncode == 0
    before = index_of(base, tokenizer)
    (base / "data" / "python" / "shard_00001.parquet").unlink()
    assert tok_encode(base).returncode == 0
    assert index_of(base, tokenizer) == before


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_stopped_half_way_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path, tokenizer: Tokenizer, kill: signal.Signals) -> None:
    bases = [tmp_path / "broken", tmp_path / "unbroken"]
    for base in bases:
        tokenizer.save(base / "tokenizer" / "python-600")
        make_text(base, [*range(6), VAL_INDEX], repeat=40)
    arguments, environment = command(bases[0])
    directory = bases[0] / "tokens" / f"python-{tokenizer.hash}"
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while not (directory / "index.json").exists() and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(kill)
    done = {shard.name: (directory / shard.name).stat().st_mtime_ns for shard in read_index(directory).shards}
    assert 1 <= len(done) < 7, "it was not stopped half way"
    for base in bases:
        result = tok_encode(base)
        assert result.returncode == 0, result.stderr
    assert files(directory) == files(bases[1] / "tokens" / f"python-{tokenizer.hash}")
    assert all((directory / name).stat().st_mtime_ns == time_ns for name, time_ns in done.items())


def test_two_at_once_make_each_shard_once(base: Path, tokenizer: Tokenizer) -> None:
    make_text(base, list(range(4)), repeat=10)
    arguments, environment = command(base)
    both = [subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    made = [int(output.split("token shards of python: ")[1].split()[0]) for output in outputs]
    assert sorted(made) == [0, 5]
    index = index_of(base, tokenizer)
    verify_shards(index)


def test_a_flipped_byte_is_found_and_the_advice_mends_it(base: Path, tokenizer: Tokenizer) -> None:
    assert tok_encode(base).returncode == 0
    index = index_of(base, tokenizer)
    path = index.directory / "shard_00001.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    open_shard(index, index.shards[1])
    with pytest.raises(UserError, match=r"shard_00001\.bin is damaged.*scripts\.tok_encode --data python --tokenizer python-600"):
        verify_shards(index)
    again = tok_encode(base)
    assert again.returncode == 0
    assert "shard_00001.bin is damaged" in again.stdout
    assert path.read_bytes() == whole
    verify_shards(index)


@pytest.mark.parametrize("damage", ["shorter", "longer", "gone"])
def test_a_shard_of_another_size_is_refused(base: Path, tokenizer: Tokenizer, damage: str) -> None:
    assert tok_encode(base).returncode == 0
    index = index_of(base, tokenizer)
    path = index.directory / index.shards[0].name
    whole = path.read_bytes()
    path.unlink() if damage == "gone" else path.write_bytes(whole[:-2] if damage == "shorter" else whole + b"ab")
    with pytest.raises(UserError, match=r"shard_00000\.bin"):
        open_shard(index, index.shards[0])
    assert tok_encode(base).returncode == 0
    assert path.read_bytes() == whole


def test_a_missing_or_damaged_index_is_refused_with_the_command(base: Path, tokenizer: Tokenizer) -> None:
    directory = base / "tokens" / f"python-{tokenizer.hash}"
    with pytest.raises(UserError, match=r"scripts\.tok_encode"):
        read_index(directory)
    assert tok_encode(base).returncode == 0
    for damaged in ("", "{}", "[]", '{"data": "python"', '{"shards": [{"name": 1}]}'):
        (directory / "index.json").write_text(damaged)
        with pytest.raises(UserError, match=r"index\.json is damaged"):
            read_index(directory)


def test_a_truncated_text_shard_is_one_line_and_keeps_what_is_done(base: Path, tokenizer: Tokenizer) -> None:
    assert tok_encode(base).returncode == 0
    before = index_of(base, tokenizer)
    make_text(base, [2, 3])
    broken = base / "data" / "python" / "shard_00003.parquet"
    broken.write_bytes(broken.read_bytes()[:-20])
    result = tok_encode(base)
    assert result.returncode == 2
    assert "shard_00003.parquet" in result.stderr
    assert result.stderr.count("\n") == 1
    assert set(before.shards) <= set(index_of(base, tokenizer).shards)


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        (["--tokenizer=python-999"], "python-600"),
        (["--data=climbmix"], "scripts.dataset --data climbmix"),
        (["--num_workers=-3"], "--num_workers=-3"),
        (["--workers=2"], "--workers"),
    ],
)
def test_a_wrong_request_is_one_line(base: Path, flags: list[str], part: str) -> None:
    result = tok_encode(base, *flags)
    assert result.returncode == 2
    assert part in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (base / "tokens").exists()


def test_the_benchmark_compares_with_tiktoken(base: Path) -> None:
    arguments, environment = command(base)
    arguments[2] = "scripts.bench_tokenize"
    result = subprocess.run([*arguments, "--repeats=1", "--json"], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    measured = json.loads(result.stdout)
    assert measured["ratio"] == pytest.approx(measured["tok_per_s"] / measured["tiktoken_tok_per_s"], rel=0.01)


def test_reading_needs_numpy_alone() -> None:
    code = "import sys, nanochat.data.token_shards; print([m for m in ('torch', 'tiktoken', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
