"""A machine's profile: kept, read, and gone by."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanochat.common.errors import UserError
from nanochat.plan import measurements
from nanochat.plan.choose import best, choose
from nanochat.plan.hardware import Gpu, cpu, parse_gpus
from nanochat.plan.measurements import Measurement
from nanochat.plan.profile import Profile, Tuned, add_proofs, basis, machine_of, profile_of, profile_path, with_own_links, write_profile
from nanochat.plan.recipe import Recipe
from nanochat.plan.recompute import Recompute
from nanochat.plan.sizes import Shape
from nanochat.plan.step import LINK_SHARE, Job

H100 = parse_gpus("H100-80GB")[1]
JOB = Job(Shape(38), H100, 8, 8, 786_432, 48)


@pytest.fixture(autouse=True)
def _base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "not there yet"))


def row(micro_batch_size: int, step_s: float, recompute: str = "none", reshard: bool = False, precision: str = "bf16") -> Measurement:
    return Measurement(
        gpu="H100-80GB",
        precision=precision,
        depth=38,
        seq_len=2048,
        vocab_size=65_536,
        micro_batch_size=micro_batch_size,
        grad_accum_steps=48 // micro_batch_size,
        recompute=recompute,
        reshard=reshard,
        world_size=8,
        tok_per_s=98_304 / step_s,
        mfu=0.6,
        step_s=step_s,
        peak_allocated_gib=60.0,
        peak_reserved_gib=62.0,
        torch="2.13.0",
        cuda="13.0",
        date="2026-12-01",
        command="",
        source="bench_train",
    )


def profile(*rows: Measurement, gpu: Gpu = H100, link_bytes_per_s: float | None = None) -> Profile:
    tuned = (
        Tuned(38, 2048, "bf16", Recipe(attention="cudnn", muon="gram"), 30_000.0, 9),
        Tuned(4, 512, "bf16", Recipe(attention="products"), 9_000.0, 3),
    )
    return Profile(
        machine_of(gpu), "2.13.0", "13.0", "580.1", "2026-12-01", "bf16", tuned, rows, (), link_bytes_per_s=link_bytes_per_s, link_ranks=8
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert profile_of(H100) is None
    made = profile(row(8, 3.2))
    path = write_profile(H100, made)
    assert path == profile_path(H100)
    assert profile_of(H100) == made
    assert profile_of(parse_gpus("H200")[1]) is None
    assert profile_of(cpu(10.0)) is None


def test_a_damaged_profile_is_said_and_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    path = write_profile(H100, profile())
    text = path.read_text()
    for damaged in ("{", "[]", "{}", text.replace('"gram"', '"magic"'), text.replace('"format": 2', '"format": 99')):
        path.write_text(damaged)
        assert profile_of(H100) is None
        assert "no profile that can be read" in capsys.readouterr().err


def proof(name: str, at: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "precision": "bf16", "error": 0.01, "tolerance": 0.02, "passed": True} | ({"at": at} if at else {})


def test_what_proves_itself_as_a_run_begins_is_kept_for_runs_of_its_size() -> None:
    add_proofs(H100, [proof("mlp=fused", [38, 2048, 65_536])], "13.0")
    add_proofs(H100, [proof("mlp=fused", [52, 2048, 65_536]), proof("attention=cudnn", [52, 2048, 65_536])], "13.0")
    found = profile_of(H100)
    assert found
    assert (found.tuned, found.rows, len(found.proofs)) == ((), (), 3)
    assert found.proves("mlp=fused", "bf16", [38, 2048, 65_536])
    assert not found.proves("attention=cudnn", "bf16", [38, 2048, 65_536])
    assert not found.proves("mlp=fused", "bf16")
    assert basis(H100, "bf16", 38) == measurements.basis("H100-80GB", "bf16")  # nothing was measured here

    tuned = replace(profile(row(16, 3.1)), proofs=(proof("mlp=fused"),))
    write_profile(H100, tuned)
    add_proofs(H100, [proof("muon=gram", [4, 512, 4096])], "13.0")
    assert profile_of(H100) == replace(tuned, proofs=(*tuned.proofs, proof("muon=gram", [4, 512, 4096])))


def test_proofs_are_not_kept_where_a_profile_cannot_be_read_or_written(capsys: pytest.CaptureFixture[str]) -> None:
    path = write_profile(H100, profile(row(16, 3.1)))
    newer = path.read_text().replace('"format": 2', '"format": 3')
    path.write_text(newer)
    add_proofs(H100, [proof("mlp=fused", [38, 2048, 65_536])], "13.0")
    assert path.read_text() == newer
    shutil.rmtree(path.parent)
    path.parent.write_text("no directory")
    add_proofs(H100, [proof("mlp=fused", [38, 2048, 65_536])], "13.0")
    assert "will be proven again at the next start" in capsys.readouterr().err


def test_the_nearest_size_lends_its_kernels() -> None:
    made = profile()

    def attention(depth: int, seq_len: int) -> str:
        found = made.recipe_for("bf16", depth, seq_len)
        assert found
        return found.recipe.attention

    assert attention(52, 2048) == "cudnn"
    assert attention(4, 256) == "products"
    assert attention(4, 600) == "fused"  # scores grow with the square of the sequence
    assert made.recipe_for("fp8", 38, 2048) is None


def test_of_ways_that_were_measured_here_the_fastest_is_taken_at_its_time() -> None:
    slower, faster = row(4, 3.3), row(2, 3.1, "mlp", True)
    assert best(JOB).micro_batch_size == 16
    write_profile(H100, profile(slower, faster))
    plan = choose(JOB)
    assert (plan.micro_batch_size, plan.recompute_text, plan.reshard) == (2, "mlp", True)
    assert plan.time.total - plan.time.communication == pytest.approx(3.1)
    assert not plan.estimated
    assert plan.basis == "measured here 2026-12-01 with torch 2.13.0, CUDA 13.0"
    assert choose(JOB, micro_batch_size=4).micro_batch_size == 4
    assert choose(JOB, recompute=Recompute.parse("block", 38)).recompute_text == "block"
    other = replace(JOB, total_batch_size=8 * 2048 * 12)
    assert choose(other).micro_batch_size != 2  # was not measured, and is chosen by the sums
    # Nothing that does not fit is taken for having been measured.
    assert choose(replace(JOB, gpu=replace(H100, memory_gib=40.0))).fits


def test_speeds_of_other_sizes_are_scaled_to_what_was_measured_here() -> None:
    small = replace(JOB, shape=Shape(20))
    before = best(small).time.total
    own = row(8, 3.2)
    write_profile(H100, profile(own))
    half = best(small).time.total
    write_profile(H100, profile(replace(own, step_s=6.4)))
    assert best(small).time.total == pytest.approx(2 * half, rel=0.02)
    assert half != before
    assert basis(H100, "fp8", 20) == measurements.basis("H100-80GB", "fp8")
    assert basis(H100, "bf16", 4) == measurements.basis("H100-80GB", "bf16")  # 38 layers say nothing of four


def test_measured_links_replace_the_data_sheet() -> None:
    assert with_own_links(H100, LINK_SHARE) == H100
    write_profile(H100, profile(link_bytes_per_s=3e9))
    slow = with_own_links(H100, LINK_SHARE)
    assert LINK_SHARE * slow.link_bytes_per_s == pytest.approx(3e9)
    assert best(replace(JOB, gpu=slow)).time.communication > best(JOB).time.communication


def test_the_plan_command_goes_by_the_profile_and_makes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nanochat.plan.command import plan
    from nanochat.plan.settings import PlanSettings

    plan(PlanSettings(depth=38, gpus="8xH100-80GB", json=True))
    assert json.loads(capsys.readouterr().out)["basis"] == measurements.basis("H100-80GB", "bf16")
    assert not (tmp_path / "not there yet").exists()
    write_profile(H100, profile(row(4, 3.0)))
    plan(PlanSettings(depth=38, gpus="8xH100-80GB", json=True))
    answer = json.loads(capsys.readouterr().out)
    assert answer["basis"].startswith("measured here")
    assert answer["micro_batch_size"] == 4


def test_a_profile_that_was_sent_in_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from nanochat.tune.settings import TuneSettings
    from nanochat.tune.tune import tune

    monkeypatch.setattr(measurements, "TABLE", tmp_path / "table.json")
    measurements.TABLE.write_text("[]")
    sent = write_profile(H100, profile(row(8, 3.2), row(4, 3.1)))
    tune(TuneSettings(record=True, sent_in=str(sent)))
    assert measurements.read() == (row(8, 3.2), row(4, 3.1))
    for text in ("{", "[]"):
        sent.write_text(text)
        with pytest.raises(UserError, match="no profile that can be read"):
            tune(TuneSettings(record=True, sent_in=str(sent)))
    with pytest.raises(UserError, match="--record"):
        tune(TuneSettings(sent_in=str(sent)))
