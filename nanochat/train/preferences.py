"""Direct preference optimisation (DPO, arXiv 2305.18290): pairs of replies as weighted rows."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from nanochat.common.errors import UserError
from nanochat.common.files import atomic_path
from nanochat.data.conversation_file import PreferenceFile
from nanochat.data.loader import Batch, Split, row_width
from nanochat.data.permutation import Permutation
from nanochat.model.gpt import GPT
from nanochat.model.loss import NO_TARGET
from nanochat.parallel.ranks import Ranks
from nanochat.parallel.sharding import reshard
from nanochat.tokenizer.conversation import Conversation, Rendered, Renderer
from nanochat.train.stage import Learner

REFERENCE_FILE = "reference.npy"  # log-probabilities of all replies under the model that training starts from


def last_reply(renderer: Renderer, conversation: Conversation) -> Rendered:
    """The tokens of a conversation, of which only the last message is learned."""
    whole = renderer(conversation)
    start = len(renderer.prompt({"messages": conversation["messages"][:-1]}))
    return Rendered(whole.ids, [learned and place >= start for place, learned in enumerate(whole.mask)])


@dataclass
class Preferences:
    """The pairs of a file; reply number 2i is the chosen one of pair i, 2i + 1 the rejected one."""

    replies: list[Rendered]
    too_long: int
    """Pairs with a reply that is longer than a row; they are left out."""
    seq_len: int
    pad_id: int

    @classmethod
    def of(cls, file: PreferenceFile, renderer: Renderer, seq_len: int) -> "Preferences":
        """The pairs that fit a row. Raises UserError where none does."""
        replies: list[Rendered] = []
        too_long = 0
        for number in range(len(file)):
            pair = [last_reply(renderer, conversation) for conversation in file[number]]
            if max(len(each.ids) for each in pair) > seq_len + 1:
                too_long += 1
            else:
                replies += pair
        if not replies:
            raise UserError(f"{file.path}: every pair is longer than {seq_len} tokens: choose a larger --max_seq_len")
        return cls(replies, too_long, seq_len, renderer.tokenizer.bos_id)

    @property
    def pairs(self) -> int:
        """Pairs that are learned from."""
        return len(self.replies) // 2

    def rows(self, numbers: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and targets of replies by their numbers (n,), each (n, T) int64, T as the longest of them needs."""
        width = row_width((len(self.replies[number].ids) - 1 for number in numbers), self.seq_len)
        ids = torch.full((len(numbers), width), self.pad_id)
        targets = torch.full((len(numbers), width), NO_TARGET)
        for row, number in enumerate(numbers):
            reply = self.replies[number]
            last = len(reply.ids) - 1
            ids[row, :last] = torch.tensor(reply.ids[:-1])
            learned = [token if own else NO_TARGET for token, own in zip(reply.ids[1:], reply.mask[1:], strict=True)]
            targets[row, :last] = torch.tensor(learned)
        return ids, targets


@torch.no_grad()
def log_probabilities(
    model: GPT, preferences: Preferences, numbers: Sequence[int], micro_batch_size: int, device: torch.device
) -> list[float]:
    """Log-probability of each reply, in nats; every rank asks for as many."""
    sums: list[float] = []
    for start in range(0, len(numbers), micro_batch_size):
        ids, targets = preferences.rows(numbers[start : start + micro_batch_size])
        losses = model(ids.to(device), targets.to(device), per_token=True)
        sums += (-losses.double().sum(dim=1)).tolist()
    reshard(model)
    return sums


@dataclass
class Pairs:
    """Makes the micro-batches of each step.

    The gradient of DPO's loss is that of a weighted cross-entropy: with the margin m between the log-ratios of a pair, the chosen
    reply's tokens weigh β·σ(−β·m), the rejected one's as much with the other sign (eq. 7 of the paper).
    """

    preferences: Preferences
    beta: float
    pairs_per_step: int
    seed: int
    ranks: Ranks
    kept: Path
    """Where the reference's log-probabilities are kept."""
    figures: dict[str, float] = field(default_factory=dict)
    """Of the last step: the loss, the share of pairs in which the chosen reply gained more, the mean margin."""

    def _reference(self, learner: Learner) -> np.ndarray:
        """Log-probabilities of all replies under the model that training starts from, (2 · pairs,); made before the first step."""
        path, r = self.kept, self.ranks
        if not r.from_first(path.exists):
            if learner.step():
                raise UserError(f"{path} is missing, which was made when this run began: begin anew under another --model_tag")
            total = len(self.preferences.replies)
            each = -(-total // r.world_size)
            mine = [min(r.rank * each + i, total - 1) for i in range(each)]  # as many on every rank
            found = log_probabilities(learner.model, self.preferences, mine, learner.micro_batch_size(), r.device)
            every = dict(one for pairs in r.gather(list(zip(mine, found, strict=True))) for one in pairs)
            r.from_first(lambda: _write(path, np.array([every[number] for number in range(total)])))
        values: np.ndarray = r.from_first(lambda: np.load(path))
        return values

    def _pair(self, number: int) -> int:
        """The pair of a number that counts through all epochs."""
        epoch, at = divmod(number, self.preferences.pairs)
        return int(Permutation(self.preferences.pairs, self.seed, epoch)(np.array([at]))[0])

    def batches(self, learner: Learner, split: Split, first_sample: int) -> Iterator[Batch]:
        """Endless micro-batches; sample number n is a reply of pair number n // 2."""
        reference, device = self._reference(learner), self.ranks.device
        while True:
            samples = [int(n) for micro in range(split.grad_accum_steps) for n in split.numbers(first_sample, micro)]
            replies = {n: 2 * self._pair(n // 2) + n % 2 for n in samples}
            now = log_probabilities(learner.model, self.preferences, [replies[n] for n in samples], split.micro_batch_size, device)
            mine = {n: value - reference[replies[n]] for n, value in zip(samples, now, strict=True)}
            every: dict[int, float] = {}
            for one in self.ranks.gather(mine):
                every |= one
            margins = {n // 2: self.beta * (every[n] - every[n + 1]) for n in every if n % 2 == 0}
            self.figures = {
                "loss": sum(math.log1p(math.exp(-abs(m))) + max(-m, 0.0) for m in margins.values()) / len(margins),
                "preferred": sum(m > 0 for m in margins.values()) / len(margins),
                "margin": sum(margins.values()) / len(margins),
            }
            for start in range(0, len(samples), split.micro_batch_size):
                some = samples[start : start + split.micro_batch_size]
                ids, targets = self.preferences.rows([replies[n] for n in some])
                pulls = torch.tensor([(1 - 2 * (n % 2)) * self.beta / (1 + math.exp(min(margins[n // 2], 700.0))) for n in some])
                weights = pulls[:, None].expand(targets.shape).contiguous()
                yield Batch(ids.to(device), targets.to(device), self.pairs_per_step, weights.to(device))
            first_sample += split.samples_per_step


def _write(path: Path, values: np.ndarray) -> None:
    with atomic_path(path) as aside, aside.open("wb") as file:
        np.save(file, values)
