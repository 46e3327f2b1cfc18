"""The evaluation of chat models: right by an independent count, the same on any ranks and in any batch, nothing silently left out."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.engine.engine import Engine
from nanochat.engine.sample import Sampling
from nanochat.evals.intervals import wilson
from nanochat.evals.task_eval import Asking, evaluate_task
from nanochat.evals.tasks.hub import letter_question
from nanochat.evals.tasks.made import Made, MadeTask
from nanochat.evals.tasks.task import Examples, Split, Task
from nanochat.model.checksums import weights_digest
from nanochat.model.directory import load_model
from nanochat.parallel.ranks import Ranks
from nanochat.sandbox.run import SandboxUnavailable
from nanochat.tokenizer.conversation import Conversation, Renderer, question_of
from tests.conftest import ROOT, World, wrong_request
from tests.evals.tasks.small_copies import write_copies, write_jsonl
from tests.processes import run_ranks

CPU = torch.device("cpu")


class Choices(Task):
    """Which of the letters, some questions longer than the context."""

    name = "Choices"
    kind = "choice"
    chance = 0.25

    def examples(self, split: Split) -> Examples:
        questions: list[Conversation] = []
        for number in range(14):
            rng = random.Random(number)
            long = "word " * 100 if number == 5 else ""
            questions.append(letter_question(f"{long}q{number}", [str(rng.randint(0, 9)) for _ in "ABCD"], "ABCD", number % 4))
        return questions


class Echo(MadeTask):
    """Right when the reply has an even number of characters: what a model says by itself decides."""

    name = "Echo"

    def make(self, rng: random.Random) -> Made:
        text = "".join(rng.choice("abc ") for _ in range(rng.randint(1, 30))) + "x"
        return Made(text, text, "ok", "ok")

    def correct(self, example: Conversation, reply: str) -> bool:
        return len(reply) % 2 == 0


def _evaluate(ranks: Ranks, directory: str, batch_size: int) -> list[dict[str, Any]]:
    model, tokenizer = load_model(Path(directory), CPU)
    asking = Asking(batch_size=batch_size, max_problems=14, max_new_tokens=10)
    results = [evaluate_task(model, tokenizer, task, ranks, asking).to_json() for task in (Choices(), Echo())]
    return [{key: value for key, value in result.items() if key != "seconds"} for result in results]


WHILE_IT_IS_EVALUATED = """
from pathlib import Path
from nanochat.common.checksums import write_checksums
from nanochat.evals import base_eval, base_loss, bits_per_byte, chat_eval

def then(function):
    def evaluate(*args):
        write_checksums(Path("{model}"), {{"model.safetensors": "0" * 64}})
        return function(*args)
    return evaluate

if "{module}" == "chat_eval":
    chat_eval.evaluate_task = then(chat_eval.evaluate_task)
    settings = chat_eval.ChatEvalSettings(source="base", model_tag="trained", task_name="SpellingBee", max_problems=2, max_new_tokens=2)
    chat_eval.chat_eval(settings)
elif "{module}" == "base_eval":
    base_eval.evaluate_core_task = then(base_eval.evaluate_core_task)
    base_eval.base_eval(base_eval.BaseEvalSettings(model_tag="trained", bundle="small", max_per_task=2))
else:
    bits_per_byte.bits_per_byte = then(bits_per_byte.bits_per_byte)
    base_loss.base_loss(base_loss.BaseLossSettings(model_tag="trained", eval_tokens=500))
"""


@pytest.fixture(scope="module")
def one_by_one(trained: Path) -> list[dict[str, Any]]:
    answers: list[dict[str, Any]] = run_ranks(1, _evaluate, str(trained), 1)[0]
    return answers


def test_any_batch_and_any_ranks_give_the_same(trained: Path, one_by_one: list[dict[str, Any]]) -> None:
    assert run_ranks(1, _evaluate, str(trained), 32)[0] == one_by_one
    assert run_ranks(2, _evaluate, str(trained), 3) == [one_by_one, one_by_one]


def test_the_counts_are_those_of_a_plain_loop(trained: Path, one_by_one: list[dict[str, Any]]) -> None:
    model, tokenizer = load_model(trained, CPU)
    renderer = Renderer(tokenizer)
    right = 0
    examples = Choices().examples("test")
    for number in range(14):
        ids = renderer.prompt(question_of(examples[number]))
        if len(ids) <= model.config.max_seq_len:
            logits = model(torch.tensor([ids]))[0, -1]
            letters = "ABCD"
            best = max(letters, key=lambda letter: float(logits[tokenizer.encode(letter)[0]]))
            right += best == examples[number]["answer"]
    choice, answer = one_by_one
    assert choice["correct"] == right
    assert choice["too_long"] == 1
    assert choice["best_constant"] == pytest.approx(4 / 14)
    task, even = Echo(), 0
    specials = set(tokenizer.special_tokens.values())
    stops = frozenset({tokenizer.bos_id, tokenizer.special_id("<|assistant_end|>")})
    for number in range(14):
        example = task.examples("test")[number]
        ids = renderer.prompt(question_of(example))
        engine = Engine(model, tokenizer)
        one = engine.add(ids, 10, Sampling(temperature=0), stops=stops)
        engine.run()
        said = one.ids
        assert not set(said) & specials
        even += len(tokenizer.decode(said)) % 2 == 0
    assert answer["correct"] == even
    assert (answer["low"], answer["high"]) == wilson(even, 14)


class Broken(Echo):
    """Judges nothing on the last rank."""

    def __init__(self, is_broken: bool):
        self.is_broken = is_broken

    def correct(self, example: Conversation, reply: str) -> bool:
        if self.is_broken:
            raise SandboxUnavailable("no room")
        return True


def _evaluate_broken(ranks: Ranks, directory: str) -> tuple[str, int]:
    model, tokenizer = load_model(Path(directory), CPU)
    asking = Asking(max_problems=4, max_new_tokens=2)
    with pytest.raises(SandboxUnavailable) as refused:
        evaluate_task(model, tokenizer, Broken(ranks.rank == 1), ranks, asking)
    return str(refused.value), evaluate_task(model, tokenizer, Broken(False), ranks, asking).total


def test_a_task_that_one_rank_cannot_judge_is_left_out_by_all(trained: Path) -> None:
    assert run_ranks(2, _evaluate_broken, str(trained)) == [("no room", 4)] * 2


def test_several_answers_to_each_question(trained: Path) -> None:
    model, tokenizer = load_model(trained, CPU)

    class Alone:
        rank, world_size = 0, 1

        def from_first(self, make: Any) -> Any:
            return make()

        def gather(self, value: Any) -> list[Any]:
            return [value]

    asking = Asking(temperature=1.0, num_samples=4, max_problems=8, max_new_tokens=6)
    result = evaluate_task(model, tokenizer, Echo(), Alone(), asking)  # type: ignore[arg-type]
    assert result.num_samples == 4
    assert 4 * result.correct == round(4 * result.correct)
    assert result.to_json()["pass_at_k"] >= result.accuracy


def test_intervals_are_wilsons() -> None:
    low, high = wilson(8, 10)
    assert (low, high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)  # Newcombe 1998, method 3
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == 1.0


def test_the_command_keeps_results_and_says_what_is_skipped(world: World, trained: Path, tmp_path: Path) -> None:
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    args = ("-i", "base", "--model_tag=trained", "-x", "4", "-m", "4")
    finished = world.run("scripts.chat_eval", *args, "-a", "GSM8K|SpellingBee", **away)
    assert finished.returncode == 0, finished.stderr
    assert "warning: GSM8K is skipped" in finished.stderr
    path = trained.parent / "chat_eval.json"
    value = json.loads(path.read_text())
    assert set(value["tasks"]) == {"SpellingBee"}
    assert "openai/gsm8k" in value["skipped"]["GSM8K"]
    assert value["chatcore"] == value["tasks"]["SpellingBee"]["centered"]
    write_copies(tmp_path / "copies")
    finished = world.run("scripts.chat_eval", *args, "-a", "GSM8K,MMLU,HumanEval", f"--task_dir={tmp_path / 'copies'}", **away, nproc=2)
    assert finished.returncode == 0, finished.stderr
    value = json.loads(path.read_text())
    assert set(value["tasks"]) == {"SpellingBee", "GSM8K", "MMLU", "HumanEval"}
    assert value["skipped"] == {}
    assert value["chatcore"] == pytest.approx(sum(one["centered"] for one in value["tasks"].values()) / 4)
    path.unlink()


@pytest.mark.parametrize("module", ["chat_eval", "base_eval", "base_loss"])
def test_a_result_is_of_the_weights_that_were_loaded(module: str, world: World, trained: Path, tmp_path: Path) -> None:
    """A model that is written anew while it is evaluated is another one."""
    base = world.copy(tmp_path / "base").base
    model = base / trained.relative_to(world.base)
    (model / "checksums.json").unlink()
    program = WHILE_IT_IS_EVALUATED.format(module=module, model=model)
    environment = world.environment(NANOCHAT_BASE_DIR=str(base))
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr
    result = {"chat_eval": "chat_eval.json", "base_eval": "core.json", "base_loss": "base_loss.json"}[module]
    assert json.loads((model.parent / result).read_text())["weights"] == weights_digest(trained) != weights_digest(model)


def test_a_system_without_linuxs_terminal_calls_can_evaluate() -> None:
    program = "import fcntl, termios; del termios.TCGETS, fcntl.F_DUPFD_CLOEXEC; import nanochat.evals.chat_eval"
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_wrong_requests(world: World, trained: Path, tmp_path: Path) -> None:
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    for args, words in (
        (("-a", "NoSuchTask"), ("NoSuchTask", "SpellingBee", "HumanEval")),
        (("-a", "SmolTalk"), ("SmolTalk",)),
        (("-i", "sft", "--model_tag=trained"), ("sft", "trained")),
        (("-i", "base", "-a", "GSM8K"), ("no task could be asked", "openai/gsm8k")),
        (("-n", "4"), ("--num_samples=4", "--temperature")),
        (("-b", "0"), ("--batch_size=0",)),
        (("--task_dir=/no/such",), ("/no/such",)),
        (("-i", "wrong"), ("wrong",)),
    ):
        wrong_request(world.run("scripts.chat_eval", *args, **away), *words)
    write_jsonl(tmp_path / "cais/mmlu/all/test.jsonl", [{"question": "q", "subject": "s", "choices": ["a", "b"], "answer": 2}])
    wrong_request(
        world.run("scripts.chat_eval", "-i", "base", "-a", "MMLU", f"--task_dir={tmp_path}"), "row 0", "answer key 2 is out of range"
    )
    shutil.rmtree(tmp_path / "cais")
