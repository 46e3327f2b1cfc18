"""SmolTalk: general conversations (arXiv 2502.02737), here the selection made for small models."""

from typing import Any

from nanochat.evals.tasks.hub import HubDataset, HubExamples
from nanochat.evals.tasks.task import Examples, Split, Task, TaskSource
from nanochat.tokenizer.conversation import Conversation


class SmolTalk(Task):
    """Conversations to learn from; nothing is asked of them."""

    name = "SmolTalk"
    kind = "talk"

    def __init__(self, source: TaskSource):
        self._sets = {
            split: HubDataset("HuggingFaceTB/smol-smoltalk", None, split, ["messages"], source.task_dir) for split in ("train", "test")
        }

    def examples(self, split: Split) -> Examples:
        """Conversations of a split."""
        return HubExamples(self._sets[split], _conversation)

    def fingerprint(self, split: Split) -> str | None:
        """See Task."""
        return self._sets[split].fingerprint()


def _conversation(row: dict[str, Any]) -> Conversation:
    return {"messages": [{"role": message["role"], "content": message["content"]} for message in row["messages"]]}
