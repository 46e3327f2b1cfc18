"""The model card: README.md of a model directory."""

from nanochat.data.sources import CLIMBMIX, FINEWEB_EDU
from nanochat.plan import sizes
from nanochat.train.checkpoint import RunState

LICENCES = {source.name: source.licence for source in (CLIMBMIX, FINEWEB_EDU)}


def model_card(tag: str, depth: int, data: str, state: RunState, seq_len: int, vocab_size: int) -> str:
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
