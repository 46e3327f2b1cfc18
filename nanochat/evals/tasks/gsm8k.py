"""GSM8K: sums in words, of grade school (arXiv 2110.14168); its calculator spans become tool calls."""

import re
from typing import Any

from nanochat.common.errors import UserError
from nanochat.evals.tasks.hub import HubDataset, HubExamples
from nanochat.evals.tasks.made import tool_call
from nanochat.evals.tasks.numbers import last_number
from nanochat.evals.tasks.task import Examples, Split, Task, TaskSource
from nanochat.tokenizer.conversation import Conversation

SPAN = re.compile(r"<<([^<>]*?)=([^<>=]*)>>")
FINAL = re.compile(r"####\s*(-?\$?[\d,.]+)")


class GSM8K(Task):
    """Right when the number after `####` is; where a reply has no `####`, when its last number is."""

    name = "GSM8K"
    kind = "answer"
    max_new_tokens = 512

    def __init__(self, source: TaskSource):
        self._sets = {
            split: HubDataset("openai/gsm8k", "main", split, ["question", "answer"], source.task_dir) for split in ("train", "test")
        }

    def examples(self, split: Split) -> Examples:
        """Problems of a split."""
        return HubExamples(self._sets[split], _problem)

    def fingerprint(self, split: Split) -> str | None:
        """See Task."""
        return self._sets[split].fingerprint()

    def correct(self, example: Conversation, reply: str) -> bool:
        """Whether the reply comes to the right number."""
        return final_number(reply) == final_number("#### " + example["answer"])


def final_number(text: str) -> float | None:
    """The number after the last `####`, else the last number; None where there is none."""
    found = FINAL.findall(text)
    return last_number(found[-1].rstrip(".")) if found else last_number(text)


def _problem(row: dict[str, Any]) -> Conversation:
    found = FINAL.search(row["answer"])
    if not found or last_number(found[1]) is None:
        raise UserError("the answer has no number after ####")
    messages = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": parts(row["answer"])}]
    return {"messages": messages, "answer": found[1]}


def parts(answer: str) -> list[dict[str, str]]:
    """The answer with each `<<expression=result>>` as a tool call and what the tool says to it."""
    out: list[dict[str, str]] = []
    at = 0
    for span in SPAN.finditer(answer):
        if span.start() > at:
            out.append({"type": "text", "text": answer[at : span.start()]})
        out.extend(tool_call(span[1], span[2]))
        at = span.end()
    if at < len(answer):
        out.append({"type": "text", "text": answer[at:]})
    return out
