"""Model directories: weights in one file or in several, written by one process or by many, opened by transformers and by us."""

import errno
import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh

from nanochat.common.checksums import CHECKSUMS_FILE
from nanochat.common.errors import UserError
from nanochat.model.config import GPTConfig
from nanochat.model.directory import INDEX_FILE, WEIGHTS_FILE, load_model, save_model, weight_files
from nanochat.model.gpt import GPT
from nanochat.parallel.ranks import Ranks
from nanochat.parallel.sharding import shard
from nanochat.tokenizer.tokenizer import Tokenizer
from tests.processes import run_ranks

LIMIT = 300_000  # bytes; the embedding of 265 × 128 takes 135,680 in float32, a matrix of the MLP 262,144
CPU = torch.device("cpu")


def a_model() -> tuple[GPT, Tokenizer]:
    """A model of random weights, the same every time, and its tokenizer."""
    tokenizer = Tokenizer.from_ranks({bytes([byte]): byte for byte in range(256)})
    model = GPT(GPTConfig.from_depth(2, tokenizer.vocab_size, 32))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model, tokenizer


@pytest.fixture
def in_several(tmp_path: Path) -> Path:
    """A directory whose weights lie in several files."""
    save_model(tmp_path / "model", *a_model(), torch.float32, "card", bytes_per_file=LIMIT)
    return tmp_path / "model"


@pytest.mark.parametrize("limit", [LIMIT, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_transformers_and_we_open_one_file_and_several(tmp_path: Path, limit: int, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    model, tokenizer = a_model()
    save_model(tmp_path / "model", model, tokenizer, dtype, "card", bytes_per_file=limit)
    files = sorted(path.name for path in (tmp_path / "model").glob("model*"))
    if limit > 10**6:
        assert files == [WEIGHTS_FILE]
    else:
        count = len(files) - 1
        assert count > 3
        assert files == [*(f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)), INDEX_FILE]
        assert all((tmp_path / "model" / file).stat().st_size < limit + 2000 for file in files)
        index = json.loads((tmp_path / "model" / INDEX_FILE).read_text())
        assert index["metadata"]["total_size"] == sum(p.numel() for p in model.parameters()) * dtype.itemsize
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ours, _ = load_model(tmp_path / "model", CPU, dtype)
    opened = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.dtype == dtype
        assert torch.equal(parameter, opened[name]), name
        assert torch.equal(parameter, model.get_parameter(name).to(dtype)), name
    ids = torch.arange(64).view(2, 32)
    with torch.no_grad():
        wanted = theirs.float()(ids).logits
        assert wanted.std() > 0.5
        torch.testing.assert_close(ours(ids), wanted, atol=1e-4 if dtype == torch.float32 else 0.2, rtol=0)


def test_files_are_filled_in_order_up_to_the_limit() -> None:
    weights = {name: torch.empty(size, device="meta") for name, size in (("a", 3), ("b", 2), ("c", 1), ("d", 9), ("e", 1))}
    assert list(weight_files(weights, torch.float32, 20).values()) == [["a", "b"], ["c"], ["d"], ["e"]]
    assert list(weight_files(weights, torch.bfloat16, 20).values()) == [["a", "b", "c"], ["d", "e"]]
    assert weight_files(weights, torch.bfloat16, 32) == {WEIGHTS_FILE: ["a", "b", "c", "d", "e"]}


def save_sharded(ranks: Ranks, directory: Path, mesh: tuple[int, ...], limit: int) -> None:
    """Save it right after a forward pass, which leaves some weights whole and rounded."""
    model, tokenizer = a_model()
    shard(model, init_device_mesh("cpu", mesh, mesh_dim_names=("replicate", "shard")[-len(mesh) :]), torch.bfloat16, False)
    with torch.no_grad():
        model(torch.arange(32)[None])
    save_model(directory, model, tokenizer, torch.float32, "card", ranks, limit)


@pytest.mark.parametrize(("world_size", "mesh", "limit"), [(3, (3,), LIMIT), (4, (2, 2), 10**9), (1, (1,), LIMIT)])
def test_sharded_weights_are_saved_to_the_bit(tmp_path: Path, world_size: int, mesh: tuple[int, ...], limit: int) -> None:
    run_ranks(world_size, save_sharded, tmp_path / "model", mesh, limit)
    save_model(tmp_path / "wanted", *a_model(), torch.float32, "card", bytes_per_file=limit)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "wanted"]
    wanted = {path.name: path.read_bytes() for path in (tmp_path / "wanted").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == wanted


def save_to_a_failing_disk(ranks: Ranks, directory: Path, limit: int) -> tuple[int | None, list[str]]:
    if ranks.is_first:
        resource.setrlimit(resource.RLIMIT_FSIZE, (140_000, 140_000))  # the first file fits, the second does not
    try:
        save_sharded(ranks, directory, (2,), limit)
    except OSError as error:
        ranks.barrier()
        return error.errno, os.listdir(directory.parent)
    return None, []


@pytest.mark.parametrize("limit", [LIMIT // 2, 10**9])
def test_a_disk_that_fails_is_an_error_of_every_rank_and_leaves_nothing(tmp_path: Path, limit: int) -> None:
    assert run_ranks(2, save_to_a_failing_disk, tmp_path / "model", limit) == [(errno.EFBIG, [])] * 2


def save_into_a_file(ranks: Ranks, directory: Path) -> str:
    try:
        save_sharded(ranks, directory, (2,), LIMIT)
    except OSError as error:
        return type(error).__name__
    return ""


def test_a_directory_that_cannot_be_made_is_an_error_of_every_rank(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert len(set(run_ranks(2, save_into_a_file, tmp_path / "file/model")) - {""}) == 1


def edit_index(directory: Path, value: Any) -> None:
    (directory / INDEX_FILE).write_text(value if isinstance(value, str) else json.dumps(value))


def first_part(directory: Path) -> Path:
    return min(directory.glob("model-*.safetensors"))


def lead_elsewhere(directory: Path) -> None:
    part, value = first_part(directory), json.loads((directory / INDEX_FILE).read_text())
    part.rename(directory.parent / part.name)
    value["weight_map"] = {name: f"../{file}" if file == part.name else file for name, file in value["weight_map"].items()}
    edit_index(directory, value)


BREAKS = {
    "a part is elsewhere": (lead_elsewhere, [INDEX_FILE, "is no file of this directory"]),
    "a part is missing": (lambda d: first_part(d).unlink(), ["model-00001-of", "missing or damaged"]),
    "a part is cut off": (lambda d: first_part(d).write_bytes(first_part(d).read_bytes()[:-9]), ["model-00001-of", "missing or damaged"]),
    "a part is another": (lambda d: first_part(d).write_bytes(max(d.glob("model-*.safetensors")).read_bytes()), ["has no tensor"]),
    "the index is cut off": (lambda d: edit_index(d, '{"weight_map": {'), [INDEX_FILE, "damaged"]),
    "the index is no index": (lambda d: edit_index(d, [1]), [INDEX_FILE, "damaged"]),
    "the index is empty": (lambda d: edit_index(d, {"weight_map": {}}), [INDEX_FILE, "has no tensor"]),
    "all weights are missing": (lambda d: [path.unlink() for path in d.glob("model*")], [WEIGHTS_FILE, "missing or damaged"]),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_directory_is_one_clear_error(in_several: Path, what: str) -> None:
    break_it, words = BREAKS[what]
    (in_several / CHECKSUMS_FILE).unlink()  # as in a model from elsewhere
    break_it(in_several)
    with pytest.raises(UserError) as error:
        load_model(in_several, CPU)
    assert all(word in str(error.value) for word in words), error.value


def flip(path: Path, at: int) -> bytes:
    """Flip a bit of a file; what it was."""
    whole = path.read_bytes()
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
    return whole


@pytest.mark.parametrize("name", ["model-00001-of-00008.safetensors", "config.json", "tokenizer.json", "ranks.tiktoken"])
def test_a_flipped_bit_is_found_and_named(in_several: Path, name: str) -> None:
    load_model(in_several, CPU)
    whole = flip(in_several / name, 20)
    with pytest.raises(UserError, match=rf"{name} is missing or damaged .*copy or fetch the model again|config.json is damaged"):
        load_model(in_several, CPU)
    (in_several / name).write_bytes(whole)
    load_model(in_several, CPU)


def test_what_a_person_edits_is_not_damaged(in_several: Path) -> None:
    for name in ("README.md", "generation_config.json", "chat_template.jinja"):
        (in_several / name).write_text("{}")
    load_model(in_several, CPU)


@pytest.mark.parametrize("size", [384, 10**12])  # the second is more than any machine has
def test_weights_of_another_shape_are_named(in_several: Path, size: int) -> None:
    (in_several / CHECKSUMS_FILE).unlink()
    config = json.loads((in_several / "config.json").read_text())
    (in_several / "config.json").write_text(json.dumps(config | {"intermediate_size": size}))
    with pytest.raises(UserError, match=rf"fc1.weight has shape \(512, 128\), config.json says \({size}, 128\)"):
        load_model(in_several, CPU)
