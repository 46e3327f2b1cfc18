"""The table of measurements: reading, and recording into it."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nanochat.common.errors import UserError
from nanochat.plan import measurements
from nanochat.plan.measurements import basis, of_kind, read, record


def test_the_table_begins_with_the_prototypees_of_one_rank_of_eight() -> None:
    prototypees = [row for row in read() if row.source == "prototype"]
    assert {(row.gpu, row.depth, row.world_size) for row in prototypees} == {("H100-80GB", 38, 8), ("H100-80GB", 52, 8)}


def test_a_recorded_row_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    shutil.copy(measurements.TABLE, table)
    before = read(table)
    first = replace(before[0], source="bench_train", step_s=3.0, date="2026-12-01")
    record(first, table)
    assert read(table) == (*before, first)
    again = replace(first, step_s=2.9)
    record(again, table)
    assert read(table) == (*before, again)
    other = replace(first, micro_batch_size=4, grad_accum_steps=12)
    record(other, table)
    assert read(table) == (*before, again, other)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A table with the prototypees alone, in place of the project's."""
    path = tmp_path / "table.json"
    path.write_text(json.dumps([asdict(row) for row in read() if row.source == "prototype"]))
    monkeypatch.setattr(measurements, "TABLE", path)
    of_kind.cache_clear()
    yield path
    of_kind.cache_clear()


def test_a_kind_that_the_planner_does_not_know_is_not_recorded(table: Path) -> None:
    with pytest.raises(UserError, match="Radeon 9700"):
        record(replace(read()[0], gpu="Radeon 9700"))


def test_what_rests_on_nothing_is_called_estimated_and_on_a_prototype_a_prototype(table: Path) -> None:
    assert basis("H100-80GB", "bf16") == "from a prototype"
    assert basis("H100-80GB", "fp32") == basis("B200", "bf16") == "estimated"


def test_measurements_take_the_place_of_prototypees_in_what_speeds_rest_on(table: Path) -> None:
    row = replace(read()[0], source="bench_train", date="2026-12-01", torch="2.13.0", cuda="13.0", saved_widths=None)
    record(row)
    assert of_kind("H100-80GB", "bf16") == (row,)
    faster, slower = (replace(row, recipe=f"muon={way}", step_s=step_s) for way, step_s in (("gram", 3.0), ("halves", 3.6)))
    record(faster)
    record(slower)
    assert of_kind("H100-80GB", "bf16") == (faster,)
    assert basis("H100-80GB", "bf16") == "measured 2026-12-01 at depth 38 with torch 2.13.0, CUDA 13.0"


def test_what_the_benchmark_says_becomes_a_row_whose_command_is_one(tmp_path: Path) -> None:
    from nanochat.common.cli import parse
    from nanochat.plan.measurements import row_of
    from nanochat.train.bench_settings import BenchTrainSettings

    result = {
        "gpu": "H100-80GB",
        "precision": "bf16",
        "depth": 38,
        "max_seq_len": 2048,
        "vocab_size": 65_536,
        "device_batch_size": 48,
        "total_batch_size": 786_432,
        "micro_batch_size": 8,
        "grad_accum_steps": 6,
        "recompute": "mlp:3",
        "reshard": True,
        "world_size": 8,
        "simulated": True,
        "recipe": "attention=cudnn,muon=gram,fp8_sums=long,compile=layers",
        "tok_per_s": 30_000.0,
        "mfu": 0.6,
        "step_s": 3.3,
        "optimizer_s": 0.03,
        "first_step_after_start_s": 20.0,
        "peak_allocated_gib": 66.0,
        "peak_reserved_gib": 70.0,
        "torch": "2.13.0",
        "cuda": "13.0",
    }
    row = row_of(result, "2026-12-01")
    assert (row.optimizer_s, row.first_step_s, row.cold_first_step_s, row.recipe) == (0.03, 20.0, None, result["recipe"])
    assert row.command
    words = row.command.split()
    assert words[:3] == ["python", "-m", "scripts.bench_train"]
    settings = parse(BenchTrainSettings, words[3:])
    settings.check()
    assert (settings.simulate, settings.world_size, settings.recompute, settings.recipe) == (True, 8, "mlp:3", result["recipe"])
    assert settings.reshard_after_forward == "always"
    (tmp_path / "table.json").write_text("[]")
    record(row, tmp_path / "table.json")
    assert read(tmp_path / "table.json") == (row,)
