"""Grids as people write them, and what is wrong with them."""

from pathlib import Path

import pytest

from nanochat.ablate.grid import check_text, read_grid
from nanochat.common.errors import UserError
from tests.conftest import ROOT

GRID = """
depths = [2, 3]
seeds = 2
[baseline]
num_iterations = 10
total_batch_size = 4096
max_seq_len = 128
[changes.longer-warmdown]
warmdown_ratio = 0.5
[changes.hotter]
matrix_lr = 1
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_baseline_comes_first_and_each_change_has_its_settings_besides(tmp_path: Path) -> None:
    runs = read_grid(written(tmp_path, GRID)).runs()
    assert [run.name for run in runs[:5]] == [
        "baseline-d2-s1",
        "baseline-d2-s2",
        "baseline-d3-s1",
        "baseline-d3-s2",
        "longer-warmdown-d2-s1",
    ]
    assert len({run.name for run in runs}) == 12
    assert runs[4].settings == {"num_iterations": 10, "total_batch_size": 4096, "max_seq_len": 128, "warmdown_ratio": 0.5}


@pytest.mark.parametrize("path", sorted((ROOT / "ablations").glob("*.toml")), ids=lambda path: path.stem)
def test_our_own_can_be_read(path: Path) -> None:
    assert read_grid(path).name == path.stem


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("matrix_lr", "matrix_rl", "base_train has no setting matrix_rl; is matrix_lr meant"),
        ("matrix_lr = 1", 'matrix_lr = "high"', "hotter: matrix_lr = 'high' is not a float"),
        ("matrix_lr = 1", "matrix_lr = -1", "hotter: --matrix_lr=-1: must be 0 or more"),
        ("matrix_lr = 1", "muon_hold_norm = true", "hotter: --muon_hold_norm keeps what is zero at zero"),
        ("matrix_lr = 1", "seed = 1", "seed is not a change's to set"),
        ("matrix_lr = 1", "", "changes nothing"),
        ("changes.hotter", "changes.longer-warmdown", "two runs have the same name"),
        ("changes.hotter", "changes.baseline", "is called baseline"),
        ("changes.hotter", 'changes."a b"', "letters, digits"),
        ("depths = [2, 3]", "depth = [2, 3]", "is depths meant"),
        ("depths = [2, 3]", "depths = []", "at least one of each"),
        ("depths = [2, 3]", "depths = [0]", "--depth"),
        ("seeds = 2", "seeds = 2.5", "not what is expected"),
        ("seeds = 2", "seeds = ", "line 3"),
        ("4096", "4000", "does not divide"),
    ],
)
def test_what_cannot_be_run_is_named(tmp_path: Path, old: str, new: str, words: str) -> None:
    with pytest.raises(UserError) as raised:
        read_grid(written(tmp_path, GRID.replace(old, new)))
    assert words in str(raised.value)
    assert "grid.toml" in str(raised.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        read_grid(tmp_path / "none.toml")
    with pytest.raises(UserError, match="no \\[changes"):
        read_grid(written(tmp_path, "depths = [2]"))


def test_a_text_that_is_too_short_says_how_many_epochs_it_would_be(tmp_path: Path) -> None:
    check_text(read_grid(written(tmp_path, GRID)), 700, 40_960)
    with pytest.raises(UserError, match=r"40,960 tokens, and there are 32,768: it would be 1\.25 epochs"):
        check_text(read_grid(written(tmp_path, GRID)), 700, 32_768)
    check_text(read_grid(written(tmp_path, "max_epochs = 2\n" + GRID)), 700, 32_768)
