"""CORE: bundles, scores, and their agreement with another implementation."""

import functools
import http.server
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.common.errors import UserError
from nanochat.evals.core.bundle import SMALL, CoreTask, Question, open_bundle
from nanochat.evals.core.core import evaluate_core_task, is_right
from nanochat.evals.core.fetch import bundle_directory
from nanochat.evals.core.score import Scored, item, items_of, score
from nanochat.model.directory import load_model
from nanochat.parallel.ranks import Ranks
from tests.conftest import TINY, World, wrong_request
from tests.processes import run_ranks

CPU = torch.device("cpu")


def test_the_small_bundle_has_every_kind_of_task() -> None:
    tasks = open_bundle(SMALL)
    assert {task.kind for task in tasks} == {"multiple_choice", "schema", "language_modeling"}
    assert all(len(task.questions) >= 40 for task in tasks)
    assert all(task.chance == pytest.approx(1 / len(task.questions[0].contexts)) for task in tasks if task.kind != "language_modeling")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    shutil.copytree(SMALL, tmp_path / "bundle")
    return tmp_path / "bundle"


def change(path: Path, line: int, **fields: Any) -> None:
    lines = path.read_text().splitlines()
    lines[line - 1] = json.dumps({**json.loads(lines[line - 1]), **fields})
    path.write_text("\n".join(lines) + "\n")


def test_what_is_wrong_in_a_bundle_is_named(bundle: Path) -> None:
    data = bundle / "eval_data" / "opposites.jsonl"
    change(data, 3, gold=4)
    with pytest.raises(UserError, match=r"opposites\.jsonl, line 3: answer key 4 is out of range, there are 4 choices"):
        open_bundle(bundle)
    for wrong in ({"gold": "secret"}, {"gold": 1.5}, {"gold": float("inf")}, {"gold": None}, {"choices": "secret"}, {"query": 5}):
        original = data.read_text()
        change(data, 3, **{"gold": 0, **wrong})
        with pytest.raises(UserError, match=r"opposites\.jsonl, line 3: no question of type multiple_choice$"):
            open_bundle(bundle)
        data.write_text(original)
    data.write_text(data.read_text().replace(data.read_text().splitlines()[4], "{half"))
    change(data, 3, gold=0)
    with pytest.raises(UserError, match=r"opposites\.jsonl, line 5: no JSON"):
        open_bundle(bundle)
    good = data.read_text().splitlines()[0]
    for line, word in (
        (good.encode() + b"\xff", "no text in UTF-8"),
        (b"[" * 100_000, "no question"),
        (b'{"gold": 0}', "no question of type multiple_choice, 'choices' is missing"),
        (json.dumps({**json.loads(good), "query": "\ud800"}).encode(), "no text in UTF-8"),
    ):
        data.write_bytes(good.encode() + b"\n" + line + b"\n")
        with pytest.raises(UserError, match=rf"opposites\.jsonl, line 2: {word}") as refused:
            open_bundle(bundle)
        assert len(str(refused.value)) < 400
    data.unlink()
    with pytest.raises(UserError, match=r"not whole: .*opposites\.jsonl is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize(
    ("file", "old", "new", "word"),
    [
        ("core.yaml", "schema", "essay", "'essay'"),
        ("core.yaml", "icl_tasks", "tasks", "icl_tasks"),
        ("core.yaml", "num_fewshot: [2]", "num_fewshot: [99]", "too few"),
        ("core.yaml", "num_fewshot: [2]", "num_fewshot: []", "num_fewshot of"),
        ("core.yaml", "num_fewshot: [2]", "num_fewshot: few", "num_fewshot of .* 'few'"),
        ("core.yaml", "dataset_uri: opposites.jsonl", "dataset_uri: ''", "dataset_uri of"),
        ("core.yaml", "dataset_uri: opposites.jsonl", "dataset_uri: " + "x" * 300, "x: File name too long"),
        ("core.yaml", "dataset_uri: opposites.jsonl", 'dataset_uri: "a\\0"', "damaged"),
        ("core.yaml", "continuation_delimiter: ' '", "continuation_delimiter: null", "continuation_delimiter of opposites is None"),
        ("core.yaml", "label: opposites", "name: opposites", "'label' is missing"),
        ("core.yaml", "label: opposites", "label: 2020-99-99", r"core\.yaml is damaged"),
        ("eval_meta_data.csv", "opposites,", "x" * 200_000 + ",", r"eval_meta_data\.csv is damaged"),
        ("core.yaml", "icl_tasks:", "icl_tasks: []\nothers:", "no list of tasks"),
        ("core.yaml", "icl_tasks:", "icl_tasks: " + "[" * 5_000, "damaged"),
        ("eval_meta_data.csv", "opposites,", "opposites\n", "is no number"),
        ("eval_meta_data.csv", "opposites", "apposites", "no line for opposites"),
        ("eval_meta_data.csv", "Random baseline", "Baseline", "no columns"),
    ],
)
def test_what_is_wrong_in_its_lists_is_named(file: str, old: str, new: str, word: str, bundle: Path) -> None:
    text = (bundle / file).read_text()
    assert old in text
    (bundle / file).write_text(text.replace(old, new))
    with pytest.raises(UserError, match=word):
        open_bundle(bundle)
    (bundle / file).unlink()
    with pytest.raises(UserError, match=f"{file} is missing"):
        open_bundle(bundle)
    (bundle / file).mkdir()
    with pytest.raises(UserError, match=rf"{file}: Is a directory"):
        open_bundle(bundle)


@pytest.fixture
def served(bundle: Path, tmp_path: Path) -> Iterator[str]:
    """A server that holds the bundle as a zip, in a directory inside it as the real one does."""
    place = tmp_path / "served"
    place.mkdir()
    with zipfile.ZipFile(place / "eval_bundle.zip", "w") as archive:
        for path in sorted(bundle.rglob("*")):
            archive.write(path, f"eval_bundle/{path.relative_to(bundle)}")
    (place / "half.zip").write_bytes((place / "eval_bundle.zip").read_bytes()[:-500])

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(place)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_the_bundle_is_fetched_once_and_a_bad_one_leaves_nothing(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tmp_path / "base"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base))
    monkeypatch.setenv("NANOCHAT_DOWNLOAD_FIRST_WAIT_S", "0.01")
    for name, word in (("none.zip", "404"), ("half.zip", "no whole zip"), ("", "no whole zip")):
        monkeypatch.setenv("NANOCHAT_BUNDLE_URL", f"{served}/{name}")
        with pytest.raises(UserError, match=word):
            bundle_directory("")
        assert not (base / "eval_bundle").exists()
        assert [path.name for path in base.glob(".*")] == [".eval_bundle.lock"]
    monkeypatch.setenv("NANOCHAT_BUNDLE_URL", f"{served}/eval_bundle.zip")
    assert len(open_bundle(bundle_directory(""))) == 6
    questions = base / "eval_bundle/eval_bundle/eval_data/opposites.jsonl"
    whole = questions.read_text()
    questions.write_text(whole.replace("a", "e", 1))
    assert len(open_bundle(bundle_directory(""))) == 6
    assert questions.read_text() == whole
    questions.write_text(whole.replace("a", "e", 1))
    monkeypatch.setenv("NANOCHAT_BUNDLE_URL", f"{served}/half.zip")
    for _ in range(2):
        with pytest.raises(UserError, match="no whole zip"):
            bundle_directory("")
        assert questions.exists()
    monkeypatch.setenv("NANOCHAT_BUNDLE_URL", f"{served}/eval_bundle.zip")
    assert len(open_bundle(bundle_directory(""))) == 6
    assert questions.read_text() == whole
    monkeypatch.setenv("NANOCHAT_BUNDLE_URL", "http://127.0.0.1:9/")
    assert len(open_bundle(bundle_directory(""))) == 6
    shutil.rmtree(base)
    with pytest.raises(UserError, match="--bundle"):
        bundle_directory("")


def test_a_damaged_zip_is_no_traceback(served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    plain = (tmp_path / "served/eval_bundle.zip").read_bytes()
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(tmp_path / "served/eval_bundle.zip") as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    whole, refused = packed.read_bytes(), 0
    assert len(whole) < len(plain)
    for number in range(60):
        at = 7919 * number % len(whole)
        packed.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << number % 8]) + whole[at + 1 :])
        os.utime(packed, ns=(number, number))
        try:
            open_bundle(bundle_directory(str(packed)))
        except UserError:
            refused += 1
    assert refused > 30
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_BZIP2) as new:
        new.writestr("core.yaml", "icl_tasks: []")
    with pytest.raises(UserError, match="packed in a way"):
        bundle_directory(str(packed))


def test_a_bundle_is_given_as_a_directory_or_a_zip(bundle: Path, served: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    assert bundle_directory(str(bundle)) == bundle
    assert len(open_bundle(bundle_directory(str(tmp_path / "served/eval_bundle.zip")))) == 6
    for wrong in ("nowhere", str(bundle / "eval_data"), str(bundle / "core.yaml")):
        with pytest.raises(UserError):
            bundle_directory(wrong)


def test_scores_are_sums_of_log_probabilities_whatever_the_batch(trained: Path) -> None:
    model, tokenizer = load_model(trained, CPU)
    texts = [("The list is", " empty"), ("A", " b c d e f"), ("x" * 40, " and then some more of it"), ("", "alone")]
    items = [item(tokenizer, context, continuation, 64) for context, continuation in texts]
    together = score(model, items, tokenizer.bos_id, 4096, greedy=True)
    for one, scored in zip(items, together, strict=True):
        logits = model(torch.tensor([one.ids[:-1]])).double().log_softmax(dim=-1)[0]
        expected = sum(float(logits[place - 1, one.ids[place]]) for place in range(one.start, len(one.ids)))
        assert scored.log_likelihood == pytest.approx(expected, abs=1e-4)
        assert scored.greedy == all(int(logits[place - 1].argmax()) == one.ids[place] for place in range(one.start, len(one.ids)))
    alone = score(model, items, tokenizer.bos_id, 1, greedy=True)
    for a, b in zip(alone, together, strict=True):
        assert (a.tokens, a.greedy) == (b.tokens, b.greedy)
        assert a.log_likelihood == pytest.approx(b.log_likelihood, abs=1e-4)


def test_what_the_model_would_say_counts_as_greedy(trained: Path) -> None:
    model, tokenizer = load_model(trained, CPU)
    context = [tokenizer.bos_id, *tokenizer.encode("The")]
    likeliest = int(model(torch.tensor([context]))[0, -1].argmax())
    other = (likeliest + 1) % tokenizer.bos_id
    from nanochat.evals.core.score import Item

    scored = score(
        model, [Item([*context, token], len(context), False) for token in (likeliest, other)], tokenizer.bos_id, 999, greedy=True
    )
    assert [one.greedy for one in scored] == [True, False]


def test_a_long_question_loses_its_beginning_and_keeps_its_answer(trained: Path) -> None:
    _, tokenizer = load_model(trained, CPU)
    short, long = item(tokenizer, "The", " end", 64), item(tokenizer, "word" + " word" * 200, " end", 64)
    assert not short.was_cut
    assert long.was_cut
    assert len(long.ids) == 65
    assert tokenizer.decode(long.ids[long.start :]) == " end"


def test_the_right_answer_is_the_likeliest_per_token() -> None:
    choice = CoreTask("x", "multiple_choice", 0, " ", 0.5, [])
    assert is_right(choice, 1, [Scored(-3.0, 1, False), Scored(-4.0, 2, False)])
    assert not is_right(choice, 0, [Scored(-3.0, 1, False), Scored(-4.0, 2, False)])
    assert is_right(CoreTask("x", "language_modeling", 0, " ", 0.0, []), 0, [Scored(-9.0, 1, True)])


def test_solved_questions_come_first_and_never_the_one_that_is_asked(trained: Path) -> None:
    _, tokenizer = load_model(trained, CPU)
    questions = [Question((f"question {i}",) * 2, (f"yes {i}", f"no {i}"), i % 2) for i in range(6)]
    task = CoreTask("x", "multiple_choice", 3, " -> ", 0.5, questions)
    for number in range(6):
        made = items_of(task, number, tokenizer, 10_000)
        text = tokenizer.decode(made[0].ids[1:])
        *solved, asked = text.split("\n\n")
        assert asked == f"question {number} -> yes {number}"
        assert len(solved) == 3
        for one in solved:
            other = int(one.split()[1])
            assert other != number
            assert one == f"question {other} -> {'no' if other % 2 else 'yes'} {other}"
        assert items_of(task, number, tokenizer, 10_000) == made


def _correct(ranks: Ranks, directory: str, tokens_at_once: int) -> list[tuple[int, int]]:
    model, tokenizer = load_model(Path(directory), CPU)
    results = [evaluate_core_task(model, tokenizer, task, ranks, 15, tokens_at_once) for task in open_bundle(SMALL)]
    return [(result.correct, result.total) for result in results]


def test_the_result_is_the_same_on_any_number_of_ranks_and_in_any_batch(trained: Path) -> None:
    (alone,) = run_ranks(1, _correct, str(trained), 4096)
    both = run_ranks(2, _correct, str(trained), 300)
    assert both == [alone, alone]
    assert all(total == 15 for _, total in alone)


LM_EVAL_CHOICE = """\
task: own_choice
dataset_path: json
dataset_kwargs:
  data_files: {file}
output_type: multiple_choice
test_split: train
doc_to_text: "{{{{query}}}}"
doc_to_target: gold
doc_to_choice: choices
target_delimiter: " "
metric_list:
  - metric: acc
"""
LM_EVAL_WORDS = """\
task: own_words
dataset_path: json
dataset_kwargs:
  data_files: {file}
output_type: loglikelihood
test_split: train
doc_to_text: "{{{{context}}}}"
doc_to_target: " {{{{continuation}}}}"
metric_list:
  - metric: perplexity
  - metric: acc
"""
LM_EVAL_PROGRAM = """
import json, sys
import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
directory, tasks, out = sys.argv[1:]
model = HFLM(pretrained=directory, dtype="float32", device="cpu", batch_size=8, add_bos_token=True, max_length=64)
results = lm_eval.simple_evaluate(
    model, tasks=["own_choice", "own_words"], num_fewshot=0, log_samples=True, bootstrap_iters=0,
    task_manager=TaskManager(include_path=tasks, include_defaults=False),
)
found = {
    name: [[list(pair) for pair in (one["filtered_resps"] if name == "own_choice" else one["filtered_resps"][:1])] for one in samples]
    for name, samples in results["samples"].items()
}
json.dump(found, open(out, "w"))
"""


def test_log_likelihoods_agree_with_lm_eval(trained: Path, tmp_path: Path) -> None:
    tasks = {task.name: task for task in open_bundle(SMALL)}
    for name, template, source in (("own_choice", LM_EVAL_CHOICE, "opposites"), ("own_words", LM_EVAL_WORDS, "python_words")):
        (tmp_path / f"{name}.yaml").write_text(template.format(file=SMALL / "eval_data" / f"{source}.jsonl"))
    program, out = tmp_path / "program.py", tmp_path / "out.json"
    program.write_text(LM_EVAL_PROGRAM)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(program), str(trained), str(tmp_path), str(out)]
    finished = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, timeout=180)
    assert finished.returncode == 0, finished.stderr[-3000:]
    theirs = json.loads(out.read_text())
    model, tokenizer = load_model(trained, CPU)
    compared = 0
    for name, source in (("own_choice", "opposites"), ("own_words", "python_words")):
        task = tasks[source]
        for question, answers in zip(task.questions, theirs[name], strict=True):
            items = [item(tokenizer, c + " ", w, 64) for c, w in zip(question.contexts, question.continuations, strict=True)]
            ours = score(model, items, tokenizer.bos_id, 2048, greedy=True)
            for mine, (log_likelihood, is_greedy) in zip(ours, answers, strict=True):
                assert math.isclose(mine.log_likelihood, log_likelihood, abs_tol=2e-3), (question, mine, log_likelihood)
                assert mine.greedy == is_greedy
                compared += 1
    assert compared == 40 * 4 + 40


def test_base_eval_writes_its_scores(world: World, trained: Path) -> None:
    finished = world.run("scripts.base_eval", "--bundle=small", "--max_per_task=10", "--model_tag=trained")
    assert finished.returncode == 0, finished.stderr
    value = json.loads((trained.parent / "core.json").read_text())
    assert f"CORE {value['core']:.4f}" in finished.stdout
    assert value["core"] == pytest.approx(sum(one["centered"] for one in value["tasks"].values()) / 6)
    for one in value["tasks"].values():
        assert one["total"] == 10
        assert one["low"] <= one["accuracy"] <= one["high"]
        assert one["centered"] == pytest.approx((one["accuracy"] - one["chance"]) / (1 - one["chance"]))
    assert value["overlap"]["questions"] + value["overlap"]["too_short"] == sum(len(task.questions) for task in open_bundle(SMALL))


def test_base_eval_refuses_what_is_not_there(world: World, trained: Path) -> None:
    wrong_request(world.run("scripts.base_eval", "--bundle=/no/such/bundle"), "/no/such/bundle", "small")
    wrong_request(world.run("scripts.base_eval", "--bundle=small", "--model_tag=none"), "none")
    wrong_request(world.run("scripts.base_eval", "--bundle=small", "--max_per_task=0"), "--max_per_task=0")


def test_base_training_measures_core_on_the_way_on_any_number_of_ranks(world: World) -> None:
    flags = (*TINY, "--num_iterations=4", "--core_metric_every=2", "--core_metric_max_per_task=5", "--bundle=small")
    found = []
    for ranks in (0, 2):
        finished = world.run("scripts.base_train", *flags, f"--model_tag=core{ranks}", nproc=ranks)
        assert finished.returncode == 0, finished.stderr
        rows = [json.loads(line) for line in (world.base / f"runs/core{ranks}/base/metrics.jsonl").read_text().splitlines()]
        found.append({row["step"]: row["core"] for row in rows if "core" in row})
    assert found[0].keys() == {2, 4}
    assert found[0] == pytest.approx(found[1])
    wrong_request(world.run("scripts.base_train", *flags[:-1], "--bundle=/no/such", "--model_tag=core9"), "/no/such")
