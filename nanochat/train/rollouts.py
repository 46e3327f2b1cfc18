"""Answers that a model gives while it learns, and what each of them is worth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from nanochat.common.console import warn
from nanochat.data.loader import Batch, Split, row_width
from nanochat.data.permutation import Permutation
from nanochat.engine.batch import generate_batch
from nanochat.engine.engine import Answer
from nanochat.evals.task_eval import judge_all
from nanochat.evals.tasks.task import ENDLESS, Examples, Task
from nanochat.model.loss import NO_TARGET
from nanochat.parallel.ranks import Ranks
from nanochat.tokenizer.conversation import Conversation, Renderer, parts_of, question_of, text_of
from nanochat.tokenizer.tokenizer import Tokenizer
from nanochat.train.rl_settings import RlSettings
from nanochat.train.stage import Learner


@dataclass(frozen=True)
class Questions:
    """The training questions of several tasks, in turn; question number i is a function of the seed and i."""

    tasks: list[Task]
    examples: list[Examples]
    seed: int

    def __getitem__(self, number: int) -> tuple[Task, Conversation]:
        """Question `number`, counted through all epochs, and the task that judges its answers."""
        place, which = divmod(number, len(self.tasks))
        examples = self.examples[which]
        if len(examples) != ENDLESS:
            epoch, at = divmod(place, len(examples))
            place = int(Permutation(len(examples), self.seed, epoch)(torch.tensor([at]).numpy())[0])
        return self.tasks[which], examples[place]

    def per_epoch(self, nominal: int) -> int:
        """Questions of an epoch; an endless task counts as `nominal`."""
        return sum(nominal if len(examples) == ENDLESS else len(examples) for examples in self.examples)


@dataclass
class Rollout:
    """One answer, as a row to learn from."""

    prompt: list[int]
    made: Answer
    reward: float
    advantage: float = 0.0

    def row(self, tokens: int, pad_id: int) -> tuple[list[int], list[int], list[float]]:
        """ids, targets and weights, each `tokens` long. Only what the model itself said is a target; its end counts as said.

        A prompt that leaves no room for an answer loses its end.
        """
        said, sampled = list(self.made.ids), list(self.made.sampled)
        if self.made.end is not None:
            said.append(self.made.end)
            sampled.append(True)
        ids = [*self.prompt, *said][: tokens + 1]
        learned = [False] * len(self.prompt) + sampled
        targets = [token if own else NO_TARGET for token, own in zip(ids[1:], learned[1:], strict=False)]
        space = tokens - len(targets)
        return (
            [*ids[:-1], *[pad_id] * space],
            [*targets, *[NO_TARGET] * space],
            [*[self.advantage] * len(targets), *[0.0] * space],
        )


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """Each reward of a question's answers less their mean.

    GRPO's group-relative advantage (arXiv 2402.03300) without the division by the deviation, which would weigh questions by their
    difficulty (Dr. GRPO, arXiv 2503.20783).
    """
    mean = sum(rewards) / len(rewards)
    return [reward - mean for reward in rewards]


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of k answers is right, estimated without bias from `correct` right ones among n (arXiv 2107.03374, eq. 1)."""
    if n - correct < k:
        return 1.0
    miss = 1.0
    for i in range(n - correct + 1, n + 1):
        miss *= 1 - k / i
    return 1 - miss


@dataclass
class Rollouts:
    """Makes the micro-batches of each step: questions, answers, rewards, advantages."""

    settings: RlSettings
    questions: Questions
    tokenizer: Tokenizer
    ranks: Ranks
    figures: dict[str, float] = field(default_factory=dict)
    """Of the last step: reward, pass@k, tokens of an answer, share of answers that came to an end, share of questions that taught
    something (some answers right, some wrong)."""
    _said_no_room: bool = False

    def step(self, learner: Learner, split: Split, first_sample: int) -> list[Rollout]:
        """This rank's answers of the step that begins with answer number `first_sample`; all ranks call it together.

        Answer number n is to question n // num_samples; a rank answers those that the split gives it, with a seed of each answer's own.
        """
        s, renderer = self.settings, Renderer(self.tokenizer)
        numbers = [int(n) for micro in range(split.grad_accum_steps) for n in split.numbers(first_sample, micro)]
        asked = {question: self.questions[question] for question in sorted({n // s.num_samples for n in numbers})}
        prompts = {question: renderer.prompt(question_of(example)) for question, (_, example) in asked.items()}
        made: list[Answer] = []
        at_once = 4 * split.micro_batch_size
        with learner.whole_weights():
            for start in range(0, len(numbers), at_once):
                some = numbers[start : start + at_once]
                made += generate_batch(
                    learner.model,
                    self.tokenizer,
                    [prompts[n // s.num_samples] for n in some],
                    s.max_new_tokens,
                    temperature=s.temperature,
                    top_k=s.top_k,
                    seeds=[s.seed + n for n in some],
                    max_len=s.max_seq_len,
                )
        no_room = sum(len(prompt) >= s.max_seq_len for prompt in prompts.values())
        if no_room and not self._said_no_room:
            self._said_no_room = True
            warn(f"questions of {s.max_seq_len} tokens and more leave no room for an answer: nothing is learned from them")
        rollouts = []
        for n, each in zip(numbers, made, strict=True):
            task, example = asked[n // s.num_samples]
            right = judge_all(task, [(example, text_of(parts_of(self.tokenizer, each.ids)))])[0]
            rollouts.append(Rollout(prompts[n // s.num_samples], each, float(right and each.finished)))
        self._judge(numbers, rollouts)
        return rollouts

    def _judge(self, numbers: list[int], rollouts: list[Rollout]) -> None:
        """Advantages from the rewards of all answers to the same question, on whichever rank they are; and the step's figures."""
        s = self.settings
        mine = [(n, r.reward, len(r.made.ids), float(r.made.finished)) for n, r in zip(numbers, rollouts, strict=True)]
        every = sorted(one for each in self.ranks.gather(mine) for one in each)
        advantages: dict[int, float] = {}
        solved = []
        for start in range(0, len(every), s.num_samples):
            group = every[start : start + s.num_samples]
            rewards = [reward for _, reward, _, _ in group]
            advantages |= dict(zip((n for n, *_ in group), group_advantages(rewards), strict=True))
            solved.append(int(sum(rewards)))
        for n, rollout in zip(numbers, rollouts, strict=True):
            rollout.advantage = advantages[n]
        self.figures = {
            "reward": sum(one[1] for one in every) / len(every),
            "answer_tokens": sum(one[2] for one in every) / len(every),
            "finished": sum(one[3] for one in every) / len(every),
            "mixed_questions": sum(0 < correct < s.num_samples for correct in solved) / len(solved),
        }
        for k in (1, 4, 16):
            if k <= s.num_samples:
                self.figures[f"pass_at_{k}"] = sum(pass_at_k(s.num_samples, correct, k) for correct in solved) / len(solved)

    def batches(self, learner: Learner, split: Split, first_sample: int) -> Iterator[Batch]:
        """Endless micro-batches, no wider than the longest row in them needs.

        The loss is the sum of −advantage × log-probability over the tokens that the model said, over their number in the whole step:
        REINFORCE with a group's mean as its baseline, without a reference model. It takes answers as drawn from the model as it is:
        true of --temperature=1 and --top_k=0, nearly so of a --top_k that leaves out only what is hardly ever said.
        """
        while True:
            rollouts = self.step(learner, split, first_sample)
            device = self.ranks.device
            said = sum(sum(rollout.made.sampled) + (rollout.made.end is not None) for rollout in rollouts)
            divisor = max(1.0, float(self.ranks.sum_(torch.tensor(float(said), dtype=torch.float64, device=device))))
            for start in range(0, len(rollouts), split.micro_batch_size):
                some = rollouts[start : start + split.micro_batch_size]
                width = row_width((len(rollout.prompt) + len(rollout.made.ids) for rollout in some), self.settings.max_seq_len)
                rows = [rollout.row(width, self.tokenizer.bos_id) for rollout in some]
                ids, targets, weights = zip(*rows, strict=True)
                yield Batch(
                    torch.tensor(ids, device=device), torch.tensor(targets, device=device), divisor, torch.tensor(weights, device=device)
                )
            first_sample += split.samples_per_step
