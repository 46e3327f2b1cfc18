"""Text of a Python installation: prose first, no copies, nothing of the validation text in the training text, the same bytes again."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.common.errors import UserError
from nanochat.data import python_text
from nanochat.data.docstring_text import Unseen, read_prose, split_lines
from nanochat.data.sources import PYTHON
from nanochat.data.text_shards import TextShards, iter_texts, text_shards

LETTERS = "abcdefghijklmnopqrstuvwxyz "


def docstring(seed: int) -> str:
    words = random.Random(seed)
    return "\n    ".join(f"Line {i} of {seed}: {''.join(words.choices(LETTERS, k=50)).strip()}." for i in range(4))


def module(seed: int, body: str = "") -> str:
    return f'def function_{seed}():\n    """{docstring(seed)}\n    """\n    return {seed}\n{body}'


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setattr(python_text, "SHARD_BYTES", 4_000)
    monkeypatch.setattr(python_text, "_help_topics", dict)
    package = tmp_path / "site-packages/package"
    (package / "tests").mkdir(parents=True)
    for seed in range(60):
        (package / f"module_{seed}.py").write_text(module(seed))
    return {"stdlib": tmp_path / "stdlib", "packages1": tmp_path / "site-packages"}


def make(roots: dict[str, Path], num_shards: int, num_workers: int = 1) -> TextShards:
    python_text.make(PYTHON, num_shards, num_workers, roots)
    return text_shards("python")


def texts_of(*paths: Path) -> list[str]:
    return [text for path in paths for texts in iter_texts(path) for text in texts]


def seeds_in(texts: list[str]) -> set[int]:
    return {int(seed) for text in texts for seed in re.findall(r"Line 0 of (\d+):", text)}


def test_prose_comes_first_and_validation_is_apart(roots: dict[str, Path]) -> None:
    shards = make(roots, 6)
    val = texts_of(shards.val)
    assert shards.val.name == "shard_00031.parquet"
    assert all("def " not in text for text in [*val, *texts_of(shards.train[0])])
    train = texts_of(*shards.train)
    assert any("def function_" in text for text in train)
    assert seeds_in(val).isdisjoint(seeds_in(train))
    assert seeds_in(val) | seeds_in(train) == set(range(60))
    for path in (shards.val, *shards.train):
        assert 4_000 <= sum(len(text.encode()) for text in texts_of(path)) < 4_000 + 1_000


def test_validation_stays_prose_where_there_is_little(roots: dict[str, Path]) -> None:
    for seed in range(10, 60):
        (roots["packages1"] / f"package/module_{seed}.py").unlink()
    for seed in range(300, 320):
        (roots["packages1"] / f"package/bare_{seed}.py").write_text(f"value_{seed} = {seed}\n" * 20)
    shards = make(roots, 1)
    assert seeds_in(texts_of(shards.val)) == set(range(10))
    assert all("def " not in text and "value_" not in text for text in texts_of(shards.val))
    assert all("value_" in text for text in texts_of(*shards.train))


def test_same_bytes_however_many_processes(roots: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = [path.read_bytes() for path in make(roots, 4).train]
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "other"))
    monkeypatch.setattr(python_text, "BLOCK_FILES", 7)
    assert [path.read_bytes() for path in make(roots, 4, num_workers=2).train] == one


def test_more_shards_leave_the_earlier_ones_alone(roots: dict[str, Path]) -> None:
    few = make(roots, 2)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in [*few.train, few.val]}
    few.train[1].unlink()
    many = make(roots, 4)
    assert len(many.train) == 4
    assert few.train[1].read_bytes() == before.pop(few.train[1])[0]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    assert python_text.is_there(4)
    assert not python_text.is_there(5)


def test_when_the_text_runs_out_it_warns_and_does_not_try_again(roots: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    count = len(make(roots, 31).train)
    assert 4 < count < 31
    assert f"gives {count} train shards of the 31 asked for" in capsys.readouterr().err
    make(roots, 31)
    said = capsys.readouterr()
    assert f"gives {count} train shards" in said.err
    assert "making" not in said.out


def test_other_packages_make_all_anew(roots: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    make(roots, 2)
    for seed in range(100, 140):
        (roots["packages1"] / f"package/module_{seed}.py").write_text(module(seed))
    shards = make(roots, 3)
    assert "anew" in capsys.readouterr().out
    assert seeds_in(texts_of(shards.val)).isdisjoint(seeds_in(texts_of(*shards.train)))
    assert seeds_in(texts_of(shards.val)) & set(range(100, 140))


def test_copies_and_what_is_no_python_are_left_out(roots: dict[str, Path]) -> None:
    package = roots["packages1"] / "package"
    (package / "copy.py").write_text(module(0).replace("function_0", "another"))
    (package / "tests/case.py").write_text(module(200))
    (package / "test_unit.py").write_text(module(201))
    (package / "syntax.py").write_text(module(202, "def broken(:\n"))
    (package / "latin.py").write_bytes(module(203).encode() + b"# \xff\n")
    (package / "huge.py").write_text(module(204, "x = 1\n" * 200_000))
    chain = "if x == 0:\n    pass\n" + "".join(f"elif x == {i}:\n    pass\n" for i in range(1, 3000))
    (package / "deep.py").write_text(module(206, chain))
    (package / "escape.py").write_text(module(205, "pattern = '\\d'\n"))
    shards = make(roots, 6)
    texts = [text for text in texts_of(shards.val, *shards.train) if "def " not in text]
    assert sum("Line 0 of 0:" in text for text in texts) == 1
    assert seeds_in(texts_of(shards.val, *shards.train)) & set(range(200, 206)) - {206} == {205}


def test_no_text_at_all_is_a_users_error(roots: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--data path:DIR"):
        make({"stdlib": tmp_path / "empty"}, 1)


def test_docstrings_of_one_module_in_source_order_and_dedented(tmp_path: Path) -> None:
    path = tmp_path / "m.py"
    long = "word " * 20
    path.write_text(
        f'"""Module. {long}"""\nif True:\n    class A:\n        """Class. {long}\n\n        Indented.\n        """\n'
        f'        async def f(self):\n            "Method. {long}"\n        x = """No docstring. {long}"""\n        def g(self): "short"\n'
    )
    file = read_prose(path)
    assert file is not None
    assert [text.split(".")[0] for text in file.docstrings] == ["Module", "Class", "Method"]
    assert file.docstrings[1].endswith("\n\nIndented.")


def test_near_copies_are_no_news() -> None:
    unseen = Unseen()
    text = "\n".join(docstring(seed) for seed in range(3))
    assert unseen.take(text)
    assert not unseen.take(text.upper().replace("\n", " \n  "))
    assert not unseen.take(text + "\nOne more line that was never seen before, at the end.")
    assert unseen.take(docstring(4))


def test_long_documents_are_split_between_lines() -> None:
    text = "".join(f"line {i} é\n" for i in range(1000))
    pieces = list(split_lines(text, 1000))
    assert "".join(pieces) == text
    assert all(len(piece.encode()) <= 1000 and piece.endswith("\n") for piece in pieces)


def test_the_running_interpreter_has_enough(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.dataset", "--data", "python", "--num_shards", "1"],
        env={**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert (done.returncode, done.stderr) == (0, "")
    paths = sorted((tmp_path / "data/python").glob("*.parquet"))
    assert [path.name for path in paths] == ["shard_00000.parquet", "shard_00031.parquet"]
    for path in paths:
        texts = texts_of(path)
        assert 1_100_000 <= sum(len(text.encode()) for text in texts) < 1_200_001
        assert max(len(text.encode()) for text in texts) <= 100_000


def test_a_flipped_bit_makes_that_shard_again(roots: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    shards = make(roots, 2)
    whole = {path: path.read_bytes() for path in [*shards.train, shards.val]}
    damaged = shards.train[1]
    damaged.write_bytes(whole[damaged][:300] + bytes([whole[damaged][300] ^ 1]) + whole[damaged][301:])
    assert not python_text.is_there(2)
    unchanged = {path: path.stat().st_mtime_ns for path in whole if path != damaged}
    make(roots, 2)
    assert f"warning: {damaged}: its checksum" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in whole} == whole
    assert {path: path.stat().st_mtime_ns for path in unchanged} == unchanged
    assert python_text.is_there(2)
