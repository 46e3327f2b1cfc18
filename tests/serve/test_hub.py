"""A model goes to the hub and is talked to from there."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import World, wrong_request
from tests.serve.model_hub import ModelHub, serve


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    with serve() as one:
        yield one


def test_a_model_goes_to_the_hub_and_is_talked_to_from_there(talking: World, hub: ModelHub, tmp_path: Path) -> None:
    there = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": hub.token, "HF_HOME": str(tmp_path / "hf")}
    refused = talking.run("scripts.export", "--model_tag=talking", "--push_to_hub=me/talking", **{**there, "HF_TOKEN": "hf_wrong"})
    wrong_request(refused, "me/talking", "HF_TOKEN")
    nowhere = talking.run(
        "scripts.export", "--model_tag=talking", "--push_to_hub=me/talking", **{**there, "HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    wrong_request(nowhere, "cannot be reached")
    assert "HF_TOKEN" not in nowhere.stderr
    finished = talking.run("scripts.export", "--model_tag=talking", "--push_to_hub=me/talking", **there)
    assert finished.returncode == 0, finished.stderr
    files = hub.repositories["me/talking"]
    assert hub.private["me/talking"]
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"} <= set(files)
    card = files["README.md"].decode()
    for words in ("## How it was trained", "| sft | done |", "## Scores", "## Limits", "parameters"):
        assert words in card
    said = talking.run("scripts.chat_cli", "--model=me/talking", "-p", "What is 6*7?", "-t", "0", **there)
    assert "42!" in said.stdout, said.stderr
    wrong_request(talking.run("scripts.chat_cli", "--model=me/none", "-p", "x", **there), "me/none", "no such model")
    finished = talking.run("scripts.chat_cli", "--model=me/talking@refs/pr/1", "-p", "Say yes.", "-t", "0", **there)
    assert "yes!" in finished.stdout, finished.stderr
    assert "refs/pr/1" in hub.revisions
    hub.repositories["me/old"] = {"model_000650.pt": b"x", "meta_000650.json": b"{}", "tokenizer.pkl": b"x"}
    wrong_request(talking.run("scripts.chat_cli", "--model=me/old", "-p", "x", **there), "--from_nanochat")
