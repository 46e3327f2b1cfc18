"""Files that are complete or absent."""

from pathlib import Path

import pytest

from nanochat.common.files import atomic_path, read_json, write_json


def test_after_an_error_the_old_file_stands_and_nothing_is_left_behind(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1, "é"])
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.json") as aside:
        aside.write_text((aside.write_text("half"), Path("/no/such/file").read_text())[1])
    assert read_json(tmp_path / "a.json") == [1, "é"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    for number in (1, 2):
        with atomic_path(tmp_path / "made") as aside:
            aside.mkdir()
            (aside / str(number)).write_text("")
            assert not (tmp_path / "made" / str(number)).exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "2"]
    with pytest.raises(FileExistsError), atomic_path(tmp_path / "made") as aside:
        [aside.mkdir() for _ in range(2)]
    assert [path.name for path in tmp_path.rglob("*")] == ["made", "2"]
