"""The tokenizer in the format of Hugging Face's tokenizers library, so that transformers, vLLM and others open it.

Written as plain JSON: neither library is needed for it. The ids equal tiktoken's.
"""

from itertools import pairwise
from typing import Any

from nanochat.common.errors import UserError
from nanochat.tokenizer.special import SPECIAL_TOKENS, SPLIT_PATTERN

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
HASH_KEY = "nanochat_hash"

UNLIMITED_LENGTH = 10**30
"""transformers' own number for a tokenizer whose model has no stated limit."""


def tokenizer_json(mergeable_ranks: dict[bytes, int], special_tokens: dict[str, int]) -> dict[str, Any]:
    """The contents of tokenizer.json: byte-level BPE after the split pattern, special tokens as added tokens."""
    spelling = _byte_spelling()
    spelled = {token: "".join(spelling[byte] for byte in token) for token in mergeable_ranks}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": id, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for name, id in special_tokens.items()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False},
                byte_level,
            ],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            # tiktoken takes a piece that is an entry whole, before any merging.
            "ignore_merges": True,
            "vocab": {spelled[token]: rank for token, rank in sorted(mergeable_ranks.items(), key=lambda item: item[1])},
            "merges": [[spelled[left], spelled[right]] for left, right in merges(mergeable_ranks)],
        },
    }


def ranks_of(value: dict[str, Any]) -> dict[bytes, int]:
    """The ranks in the contents of a tokenizer.json. Raises UserError where it splits or merges otherwise, or has other special tokens."""
    byte_of = {character: byte for byte, character in enumerate(_byte_spelling())}
    try:
        added = {each["content"]: each["id"] for each in value["added_tokens"]}
        vocab = {token: rank for token, rank in value["model"]["vocab"].items() if token not in added}
        ranks = {bytes(byte_of[character] for character in token): rank for token, rank in vocab.items()}
        splits = [each["pattern"].get("Regex") for each in _pretokenizers(value["pre_tokenizer"]) if each["type"] == "Split"]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"it is no byte-level BPE ({error!r})") from None
    if splits != [SPLIT_PATTERN]:
        raise UserError("it splits text otherwise than nanochat does")
    if added != {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)}:
        raise UserError(f"its special tokens are not nanochat's nine after the {len(ranks):,} others")
    return ranks


def _pretokenizers(value: dict[str, Any]) -> list[dict[str, Any]]:
    return list(value["pretokenizers"]) if value["type"] == "Sequence" else [value]


def tokenizer_config(tokenizer_hash: str, model_max_length: int | None) -> dict[str, Any]:
    """The contents of tokenizer_config.json; `tokenizer_hash` lets us notice ranks that were damaged."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|bos|>",
        "eos_token": "<|assistant_end|>",
        "pad_token": "<|assistant_end|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length or UNLIMITED_LENGTH,
        HASH_KEY: tokenizer_hash,
    }


def merges(mergeable_ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair of entries that each entry longer than a byte was merged from, by rank.

    Ranks hold only the result of a merge. Its pair is what BPE leaves of the entry's bytes with the earlier merges alone.
    """
    pairs = []
    for token, rank in sorted(mergeable_ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _split_by_lower_ranks(token, rank, mergeable_ranks)
            if len(parts) == 2:
                pairs.append((parts[0], parts[1]))
    return pairs


def _split_by_lower_ranks(token: bytes, rank: int, mergeable_ranks: dict[bytes, int]) -> list[bytes]:
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        lowest, at = min((mergeable_ranks.get(left + right, rank), i) for i, (left, right) in enumerate(pairwise(parts)))
        if lowest >= rank:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _byte_spelling() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE files, a convention since GPT-2."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
