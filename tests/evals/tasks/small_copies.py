"""Small datasets of the schemas that the hub's have, with questions written for these tests."""

import json
from pathlib import Path
from typing import Any

LABELS = ["A", "B", "C", "D"]


def mmlu(number: int) -> dict[str, Any]:
    return {
        "question": f"What is {number} + {number}?",
        "subject": "elementary_mathematics",
        "choices": [str(2 * number + i) for i in (1, 0, 2, 3)],
        "answer": 1,
    }


def arc(number: int) -> dict[str, Any]:
    labels = LABELS if number % 2 else ["1", "2", "3"]
    texts = ["ice", "fire", "sand", "wood"][: len(labels)]
    return {
        "id": f"q{number}",
        "question": f"Case {number}: what is cold?",
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[0],
    }


def gsm8k(number: int) -> dict[str, Any]:
    reasoning = (
        f"She has {number}*2=<<{number}*2={2 * number}>>{2 * number} pens.\nThat is 1,000 more: <<{2 * number}+1000={2 * number + 1000}>>"
    )
    return {
        "question": f"Ann has {number} boxes of 2 pens and 1,000 loose ones. How many?",
        "answer": f"{reasoning}{2 * number + 1000} pens.\n#### {2 * number + 1000:,}",
    }


def smoltalk(number: int) -> dict[str, Any]:
    system = [{"role": "system", "content": "Be brief."}] if number % 3 == 0 else []
    talk = [{"role": "user", "content": f"Say {number}."}, {"role": "assistant", "content": f"{number}"}]
    return {
        "messages": [*system, *talk, {"role": "user", "content": "Thanks."}, {"role": "assistant", "content": "Welcome."}],
        "source": "tests",
    }


def humaneval(number: int) -> dict[str, Any]:
    return {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def add_{number}(x):\n    """Add {number} to x."""\n',
        "canonical_solution": f"    return x + {number}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {number + 1}\n",
        "entry_point": f"add_{number}",
    }


FILES = {
    "HuggingFaceTB/smol-smoltalk": {"data/train-00000-of-00001": smoltalk, "data/test-00000-of-00001": smoltalk},
    "cais/mmlu": {"all/auxiliary_train-00000-of-00001": mmlu, "all/test-00000-of-00001": mmlu},
    "allenai/ai2_arc": {f"{config}/{split}-00000-of-00001": arc for config in ("ARC-Easy", "ARC-Challenge") for split in ("train", "test")},
    "openai/gsm8k": {"main/train-00000-of-00001": gsm8k, "main/test-00000-of-00001": gsm8k},
    "openai/openai_humaneval": {"openai_humaneval/test-00000-of-00001": humaneval},
}
CONFIGS: dict[str, list[str]] = {
    "HuggingFaceTB/smol-smoltalk": ["data"],
    "cais/mmlu": ["all"],
    "allenai/ai2_arc": ["ARC-Challenge", "ARC-Easy"],
    "openai/gsm8k": ["main"],
    "openai/openai_humaneval": ["openai_humaneval"],
}


def write_copies(root: Path, rows: int = 20) -> None:
    """Every dataset as the hub holds it: parquet files and a card that lists them. The test split goes on where the other ends."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for repo, files in FILES.items():
        card = ["---", "configs:"]
        for config in CONFIGS[repo]:
            card += [f"- config_name: {'default' if config == 'data' else config}", "  data_files:"]
            for name in files:
                if name.startswith(f"{config}/"):
                    split = name.split("/")[1].split("-")[0]
                    card += [f"  - split: {split}", f"    path: {config}/{split}-*"]
        for name, make in files.items():
            path = root / repo / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            first = rows if "/test" in name else 0
            pq.write_table(pa.Table.from_pylist([make(first + number) for number in range(rows)]), path)
        (root / repo / "README.md").write_text("\n".join([*card, "---", ""]))


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
