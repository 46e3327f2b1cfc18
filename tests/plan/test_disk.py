"""What a run needs on disk: against the sources themselves, against sums by hand, and against the disk."""

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from nanochat.common.errors import UserError
from nanochat.data.sources import NAMED
from nanochat.plan.disk import TRAIN_SHARDS, check_disk, disk_of, kept_for_good, rooms, still_needed
from nanochat.plan.sizes import Shape
from tests.conftest import VOCAB_SIZE

LATER = ("mid", "sft", "rl")


def test_the_sources_are_those_that_can_be_fetched() -> None:
    assert {name: source.max_shards for name, source in NAMED.items() if source.repo} == TRAIN_SHARDS


def test_a_3b_run_at_eight_tokens_a_parameter() -> None:
    disk = disk_of(Shape(38), 24_126_686_720, "climbmix")
    assert 463 < disk.text_shards < 463 * 1.05
    assert disk.text_gb == pytest.approx((disk.text_shards + 1) * 0.1)
    assert disk.tokens_gb == pytest.approx(48.3, rel=0.05)
    assert disk.data_gb == pytest.approx(disk.text_gb + disk.tokens_gb)
    assert disk.epochs == pytest.approx(463 / 6542, rel=0.01)
    # Two checkpoints and a third being written, each of float32 masters, one number of state for a matrix's parameter and two for
    # an embedding's; and the bf16 model.
    matrices, tables = 12 * 2432**2 * 38, 2 * 65_536 * 2432
    assert disk.checkpoint_gb == pytest.approx((3 * (8 * matrices + 12 * tables) + 2 * (matrices + tables)) / 1e9)


def test_a_source_is_never_asked_for_more_than_it_has() -> None:
    disk = disk_of(Shape(52), 10**12, "fineweb-edu")
    assert disk.text_shards == 1822
    assert disk.epochs == pytest.approx(10.5, abs=0.1)


def with_free(monkeypatch: pytest.MonkeyPatch, base: Path, gb: float) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=gb * 1e9))


def test_a_disk_that_is_too_small_is_refused_with_what_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = disk_of(Shape(12), 1_500_000_000, "climbmix")
    need = disk.data_gb + disk.checkpoint_gb
    with_free(monkeypatch, tmp_path, need - 0.1)
    with pytest.raises(UserError, match=rf"{tmp_path} has .* free, and this run needs {need:.1f} GB more .*NANOCHAT_BASE_DIR"):
        check_disk(disk, "climbmix", 12)
    with_free(monkeypatch, tmp_path, need + 0.1)
    check_disk(disk, "climbmix", 12)


def test_what_is_there_already_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = disk_of(Shape(2), 52_000_000, "climbmix")
    with_free(monkeypatch, tmp_path, disk.data_gb + disk.checkpoint_gb - 0.01)
    with pytest.raises(UserError):
        check_disk(disk, "climbmix", 2)
    shard = tmp_path / "data" / "climbmix" / "shard_00000.parquet"
    shard.parent.mkdir(parents=True)
    with shard.open("wb") as file:
        file.truncate(20_000_000)
    check_disk(disk, "climbmix", 2)


def test_a_checkpoint_is_as_large_as_the_plan_says(trained: Path) -> None:
    planned = disk_of(Shape(2, VOCAB_SIZE, 64), 1, "climbmix")
    newest = max((trained.parent / "checkpoints").glob("step_*"))
    # Each tensor has a header besides, which counts in a model as small as this.
    assert sum(path.stat().st_size for path in newest.iterdir()) == pytest.approx(planned.one_checkpoint_gb * 1e9, rel=0.03)


@pytest.mark.parametrize(("steps", "keep_every", "kept"), [(1000, -1, 0), (1000, 500, 1), (1001, 500, 2), (30_679, 5000, 6), (10, 500, 0)])
def test_checkpoints_that_are_kept_for_good_take_room(steps: int, keep_every: int, kept: int) -> None:
    assert kept_for_good(steps, keep_every) == kept
    more, without = (disk_of(Shape(12), 1_000_000, "climbmix", count) for count in (kept, 0))
    assert more.checkpoint_gb - without.checkpoint_gb == pytest.approx(kept * without.one_checkpoint_gb)


def test_a_stage_whose_model_stands_needs_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    disk = disk_of(Shape(2), 52_000_000, "climbmix")
    assert [need.name for need in still_needed(disk, "climbmix", 2)] == [
        "text",
        "token shards",
        "checkpoints",
        *map("stage {}".format, LATER),
    ]
    (tmp_path / "runs/d2/base/model").mkdir(parents=True)
    assert [need.name for need in still_needed(disk, "climbmix", 2)] == ["stage mid", "stage sft", "stage rl"]
    for stage in LATER:
        (tmp_path / f"runs/d2/{stage}/model").mkdir(parents=True)
    assert still_needed(disk, "climbmix", 2) == []


@pytest.mark.parametrize("mirror", ["", "s3://bucket/path"])
def test_the_checkpoint_that_is_written_and_the_one_that_is_copied_have_room_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: str
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    monkeypatch.setenv("CHECKPOINT_MIRROR", mirror)
    disk = disk_of(Shape(12), 52_000_000, "climbmix")
    copied = disk.one_checkpoint_gb if mirror else 0

    def needs() -> dict[str, float]:
        return {need.name: pytest.approx(need.gb) for need in still_needed(disk, "climbmix", 12)}

    later = {f"stage {stage}": disk.later_stage_gb for stage in LATER}
    assert needs() == {"text": disk.text_gb, "token shards": disk.tokens_gb, "checkpoints": disk.checkpoint_gb + copied, **later}
    (tmp_path / "runs/d12/base/model").mkdir(parents=True)
    assert needs() == {**later, "stage mid": disk.later_stage_gb + disk.one_checkpoint_gb + copied}
    (tmp_path / "runs/d12/mid/model").mkdir(parents=True)
    del later["stage mid"]
    assert needs() == {**later, "stage sft": disk.later_stage_gb + disk.one_checkpoint_gb + copied}


def test_parts_that_lie_on_another_disk_are_counted_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = next((Path(path) for path in ("/dev/shm", "/run") if os.access(path, os.W_OK)), None)
    if other is None or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk here")
    (tmp_path / "runs").symlink_to(other)
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    own, others = rooms(still_needed(disk_of(Shape(2), 1, "climbmix"), "climbmix", 2))
    assert (own.directory, [need.name for need in own.needs]) == (tmp_path, ["text", "token shards"])
    assert others.needs[0].name == "checkpoints"
    assert others.directory.stat().st_dev == other.stat().st_dev
