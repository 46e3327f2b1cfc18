"""A model goes to the hub and is talked to from there."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, World, wrong_request
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


PROGRAM = """
import sys
from nanochat.common.errors import UserError
from nanochat.serve.load import _from_hub
try:
    print((_from_hub("me/small", "") / "model.safetensors").read_text())
except UserError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(("times", "said"), [(1, "the weights\n"), (9, "")])
def test_a_model_that_arrives_wrong_is_fetched_again_and_at_last_given_up(hub: ModelHub, tmp_path: Path, times: int, said: str) -> None:
    hub.repositories["me/small"] = {"config.json": b"{}", "model.safetensors": b"the weights"}
    hub.damaged = ["model.safetensors"] * times
    there = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **there, "HF_HUB_OFFLINE": "0", "NANOCHAT_BASE_DIR": str(tmp_path / "base")}
    finished = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120)
    assert finished.stdout == said, finished.stderr
    assert "model.safetensors is not what the hub publishes: it is fetched again" in finished.stderr
    assert ("--model=me/small: model.safetensors arrived wrong 3 times" in finished.stderr) == (not said)
