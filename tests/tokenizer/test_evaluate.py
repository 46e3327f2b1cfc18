"""The table of bytes per token, with and without the tokenizers that would have to be downloaded."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nanochat.data.text_shards import write_shard
from nanochat.tokenizer.evaluate import bytes_per_token, first_bytes, reference_encodings
from nanochat.tokenizer.samples import SAMPLES
from nanochat.tokenizer.tokenizer import Tokenizer


def test_the_command_prints_the_table_without_a_network(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer" / "python-1200")
    write_shard(tmp_path / "data" / "python" / "shard_00000.parquet", ["a text of 24 bytes, yes."] * 10)
    write_shard(tmp_path / "data" / "python" / "shard_00031.parquet", ["语" * 10])
    environment = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path), "TIKTOKEN_CACHE_DIR": str(tmp_path / "cache"), "no_proxy": ""}
    environment |= {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "NO_PROXY": ""}
    flags = ["--tokenizer=python-1200", "--data=python"]
    result = subprocess.run([sys.executable, "-m", "scripts.tok_eval", *flags], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    rows = {line.rsplit(None, 2)[0]: line.split()[-2:] for line in result.stdout.splitlines()}
    assert {*SAMPLES, "python, training", "python, validation"} <= set(rows)
    assert rows["python, training"][0] == "240"
    size = len(SAMPLES["prose"].encode())
    assert rows["prose"] == [f"{size:,}", f"{size / len(tokenizer.encode(SAMPLES['prose'])):.2f}"]
    assert "gpt2 and cl100k_base not at hand" in result.stdout


def test_a_network_that_never_answers_does_not_hang_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for name in ("HTTPS_PROXY", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{silent.getsockname()[1]}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "")
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
        start = time.monotonic()
        assert reference_encodings(["gpt2", "cl100k_base"], timeout_s=0.5) == {}
        assert time.monotonic() - start < 5


def test_a_column_for_each_tokenizer_at_hand(tokenizer: Tokenizer) -> None:
    one_per_byte = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})
    counters = {"ours": lambda text: len(tokenizer.encode(text)), "bytes": lambda text: len(one_per_byte.encode(text))}
    [row] = bytes_per_token({"語": ["語語", "x"]}, counters)
    ours = len(tokenizer.encode("語語")) + len(tokenizer.encode("x"))
    assert row == ["語", "7", f"{7 / ours:.2f}", "1.00"]


def test_the_beginning_of_a_shard_is_cut_at_the_limit() -> None:
    assert first_bytes([["abc", "de"], ["fgh"]], limit=4) == ["abc", "de"]
    assert first_bytes([["abcdefgh"]], limit=4) == ["abcd"]
