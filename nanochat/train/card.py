"""The model card: README.md of a model directory."""

from collections.abc import Sequence

from nanochat.data.sources import CLIMBMIX, FINEWEB_EDU
from nanochat.model.config import GPTConfig
from nanochat.plan import sizes
from nanochat.train.checkpoint import RunState
from nanochat.train.run_directory import StageDirectory
from nanochat.train.source import SourceModel

LICENCES = {source.name: source.licence for source in (CLIMBMIX, FINEWEB_EDU)}


def base_card(tag: str, depth: int, data: str, state: RunState, seq_len: int, vocab_size: int) -> str:
    """A base model's card in Markdown: sizes, text and its licence, what was measured, how to open it."""
    bpb = f"{state.extra['val_bpb']:.4f} bits per byte on held-out text" if "val_bpb" in state.extra else "not measured"
    licence = f" ({LICENCES[data]})" if data in LICENCES else ""
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {tag}

A base language model: it continues text, and has not been taught to converse.

| | |
|---|---|
| parameters | {sizes.parameters(depth, vocab_size):,} |
| depth, width | {depth}, {sizes.model_dim(depth)} |
| vocabulary | {vocab_size:,} |
| context | {seq_len:,} tokens |
| text | {data}{licence} |
| training tokens | {state.samples * seq_len:,} in {state.step:,} steps |
| training time | {state.elapsed_s / 3600:.2f} h |
| validation | {bpb} |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_TO_THIS_DIRECTORY")
tokenizer = AutoTokenizer.from_pretrained("PATH_TO_THIS_DIRECTORY")
```
"""


def chat_card(stage: StageDirectory, config: GPTConfig, source: SourceModel, name: str, learned: Sequence[str], state: RunState) -> str:
    """A chat model's card in Markdown: what it is called, sizes, what it learned from, how to talk to it."""
    data = str(source.identity.get("data", ""))
    licence = f" ({LICENCES[data]})" if data in LICENCES else ""
    val = f"{state.extra['val_loss']:.4f} nats a token on held-out conversations" if "val_loss" in state.extra else "not measured"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---
# {stage.tag}, {stage.stage}

A chat model that calls itself {name}. It can be wrong, and says so rarely.

| | |
|---|---|
| parameters | {sizes.parameters(config.num_layers, config.vocab_size):,} |
| depth, width | {config.num_layers}, {config.hidden_size} |
| vocabulary | {config.vocab_size:,} |
| context | {config.max_seq_len:,} tokens |
| base text | {data or "see the model that it was trained from"}{licence} |
| started from | {source.name} |
| learned from | {", ".join(learned)} |
| steps | {state.step:,} |
| training time | {state.elapsed_s / 3600:.2f} h |
| validation | {val} |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH_TO_THIS_DIRECTORY")
tokenizer = AutoTokenizer.from_pretrained("PATH_TO_THIS_DIRECTORY")
messages = [{{"role": "user", "content": "How many r are in strawberry?"}}]
ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
print(tokenizer.decode(model.generate(**ids, max_new_tokens=64)[0]))
```

A tool call stands between `<|python_start|>` and `<|python_end|>`; whoever runs the model answers it between `<|output_start|>` and
`<|output_end|>`.
"""
