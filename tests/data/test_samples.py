"""Samples and the loader: the same data in the same order, however it is split and wherever it begins."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.common.errors import UserError
from nanochat.data.loader import Split, micro_batches
from nanochat.data.samples import Manifest, Samples
from nanochat.data.token_shards import read_index

SEQ_LEN = 16
SHARDS = {"shard_00000.bin": 1000, "shard_00001.bin": 5, "shard_00002.bin": 777}
CPU = torch.device("cpu")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    """Token shards in which every token tells its place: ids count up through all shards."""
    first, described = 0, []
    for name, count in SHARDS.items():
        np.arange(first, first + count).astype("<u2").tofile(tmp_path / name)
        first += count
        described.append({"name": name, "split": "train", "documents": 1, "tokens": count, "bytes": count, "sha256": name, "source": name})
    index = {"data": "counting", "tokenizer": "none-2000", "tokenizer_hash": "0" * 12, "vocab_size": 2000, "shards": described}
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path


def samples_of(tokens: Path, seed: int = 1) -> Samples:
    return Samples(Manifest.of(read_index(tokens), "train", SEQ_LEN, seed), tokens)


def test_an_epoch_holds_every_window_once_and_the_next_another_order(tokens: Path) -> None:
    samples = samples_of(tokens)
    assert samples.per_epoch == 999 // SEQ_LEN + 776 // SEQ_LEN
    epochs = [samples[np.arange(e * samples.per_epoch, (e + 1) * samples.per_epoch)] for e in (0, 1)]
    want = {*range(0, 999 // SEQ_LEN * SEQ_LEN, SEQ_LEN), *range(1005, 1005 + 776 // SEQ_LEN * SEQ_LEN, SEQ_LEN)}
    for rows in epochs:
        assert {int(row[0]) for row in rows} == want
        assert (np.diff(rows, axis=1) == 1).all()
        assert rows.shape == (samples.per_epoch, SEQ_LEN + 1)
    assert not np.array_equal(*epochs)
    assert not np.array_equal(epochs[0], samples_of(tokens, seed=2)[np.arange(samples.per_epoch)])


def test_a_manifest_survives_json_and_ignores_shards_added_later(tokens: Path) -> None:
    before = samples_of(tokens)
    saved = json.loads(json.dumps(before.manifest.to_json()))
    np.arange(900).astype("<u2").tofile(tokens / "shard_00003.bin")
    index = json.loads((tokens / "index.json").read_text())
    added = {"name": "shard_00003.bin", "split": "train", "documents": 1, "tokens": 900, "bytes": 900, "sha256": "new", "source": ""}
    (tokens / "index.json").write_text(json.dumps({**index, "shards": [*index["shards"], added]}))
    after = Samples(Manifest.from_json(saved), tokens)
    numbers = np.arange(3 * before.per_epoch)
    assert np.array_equal(before[numbers], after[numbers])


def test_a_shard_that_is_not_the_one_the_run_began_with_is_refused(tokens: Path) -> None:
    manifest = samples_of(tokens).manifest
    text = (tokens / "index.json").read_text()
    (tokens / "index.json").write_text(text.replace('"sha256": "shard_00002.bin"', '"sha256": "other"'))
    with pytest.raises(UserError, match=r"shard_00002\.bin"):
        Samples(manifest, tokens)


def test_a_sequence_longer_than_every_shard_is_refused(tokens: Path) -> None:
    with pytest.raises(UserError, match="999 or less"):
        Manifest.of(read_index(tokens), "train", 1000, 0)


def step_of(samples: Samples, world_size: int, micro_batch_size: int, accum: int, first: int, steps: int = 2) -> list[torch.Tensor]:
    """The rows of each step, gathered over ranks and put in one order."""
    gathered: list[list[torch.Tensor]] = [[] for _ in range(steps)]
    for rank in range(world_size):
        batches = micro_batches(samples, Split(rank, world_size, micro_batch_size, accum), first, CPU)
        for step in range(steps):
            for _ in range(accum):
                batch = next(batches)
                ids, targets = batch.ids, batch.targets
                assert ids.shape == targets.shape == (micro_batch_size, SEQ_LEN)
                assert torch.equal(ids[:, 1:], targets[:, :-1])
                gathered[step].extend(torch.cat((ids, targets[:, -1:]), dim=1))
        batches.close()
    return [torch.stack(sorted(rows, key=lambda row: int(row[0]))) for rows in gathered]


@pytest.mark.parametrize(("world_size", "micro_batch_size", "accum"), [(1, 4, 6), (2, 4, 3), (3, 8, 1), (4, 3, 2), (24, 1, 1)])
def test_any_split_gives_the_same_steps(tokens: Path, world_size: int, micro_batch_size: int, accum: int) -> None:
    samples = samples_of(tokens)
    first = samples.per_epoch - 30  # the second step crosses into the next epoch
    want = step_of(samples, 1, 24, 1, first)
    got = step_of(samples, world_size, micro_batch_size, accum, first)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_a_late_step_opens_as_fast_as_the_first(tokens: Path) -> None:
    def open_at(first: int) -> float:
        started = time.perf_counter()
        batches = micro_batches(samples_of(tokens), Split(0, 1, 4, 1), first, CPU)
        next(batches)
        batches.close()
        return time.perf_counter() - started

    open_at(0)
    assert open_at(1_000_000 * 384) < open_at(0) + 1  # reading up to there would take minutes


def test_an_error_in_the_reading_thread_reaches_the_caller(tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = samples_of(tokens)
    (tokens / "shard_00000.bin").unlink()
    monkeypatch.setattr(samples, "_places", lambda _: (tokens / "shard_00000.bin").read_bytes())
    with pytest.raises(FileNotFoundError):
        next(micro_batches(samples, Split(0, 1, 4, 1), 0, CPU))
