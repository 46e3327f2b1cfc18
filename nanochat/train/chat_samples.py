"""What a chat model in training answers to a few questions, with its tool calls: for the log and for the report."""

from nanochat.common.console import say
from nanochat.common.files import write_json
from nanochat.engine.batch import generate_batch
from nanochat.tokenizer.conversation import Renderer, parts_of
from nanochat.train.run_directory import StageDirectory
from nanochat.train.stage import Learner
from nanochat.train.trainer import Evaluation

QUESTIONS = (
    "Hello! Who are you?",
    "How many r are in strawberry?",
    "What is 1234 + 4321?",
    "Write this in capital letters: dog",
    "Ben has 12 apples and buys 7 more. How many apples does Ben have now?",
)
SAMPLE_TOKENS = 96
TRANSCRIPT_FILE = "transcript.json"


def chat_samples(stage: StageDirectory, learner: Learner, every: int) -> Evaluation:
    """The evaluation that asks the questions every so many steps, and at the end."""

    def run() -> dict[str, float]:
        keep_chat_samples(stage, learner)
        return {}

    return Evaluation("", every, run)


def keep_chat_samples(stage: StageDirectory, learner: Learner) -> None:
    """Ask the questions, print the answers, and keep them as conversations in transcript.json. Every rank calls it."""
    renderer = Renderer(learner.tokenizer)
    asked = [{"messages": [{"role": "user", "content": question}]} for question in QUESTIONS]
    prompts = [renderer.prompt(conversation) for conversation in asked]
    with learner.whole_weights():
        replies = generate_batch(
            learner.model, learner.tokenizer, prompts, SAMPLE_TOKENS, temperature=0, top_k=0, seeds=list(range(len(prompts)))
        )
    conversations = [
        {"messages": [*conversation["messages"], {"role": "assistant", "content": parts_of(learner.tokenizer, reply.ids)}]}
        for conversation, reply in zip(asked, replies, strict=True)
    ]
    learner.ranks.from_first(lambda: write_json(stage.path / TRANSCRIPT_FILE, conversations))
    for question, reply in zip(QUESTIONS, replies, strict=True):
        say(f"sample: {question} → {learner.tokenizer.decode(reply.ids)}".replace("\n", "\\n"))
