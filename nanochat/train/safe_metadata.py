"""The `.metadata` of a checkpoint, which torch writes as a pickle, read without trusting it: only what lists tensors is made of it."""

import pickle
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import torch
from torch.distributed.checkpoint import metadata as names
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.serialization import _get_layout

METADATA_MODULE = names.__name__
STORAGE_MODULE = _StorageInfo.__module__
CLASSES = ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex", "StorageMeta")


def _member(of: Any, name: str) -> Any:
    """What stands for `getattr`, by which the first releases of Python 3.11 pickle a member of an enumeration."""
    return names._MEM_FORMAT_ENCODING[name]


ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    **{(METADATA_MODULE, name): getattr(names, name) for name in CLASSES},
    (METADATA_MODULE, "_MEM_FORMAT_ENCODING"): names._MEM_FORMAT_ENCODING,
    (STORAGE_MODULE, "_StorageInfo"): _StorageInfo,
    ("torch", "Size"): torch.Size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("builtins", "getattr"): _member,
    **{(module, name): PurePosixPath for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath")},
}
"""All that a metadata file may name, besides torch's dtypes, and what is made of it. None of them opens, imports or starts anything."""


class _OnlyTensors(pickle.Unpickler):
    """Makes what `ALLOWED` names and nothing else; what is refused is never imported."""

    def find_class(self, module: str, name: str) -> Any:
        if found := ALLOWED.get((module, name)):
            return found
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no list of tensors needs: it was refused, nothing of it ran")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("it names something outside itself")


def load_metadata(path: Path) -> Metadata:
    """What a checkpoint directory holds, and where, from its `.metadata`; only tensors, in files of that very directory.

    Raises OSError, and ValueError when it is damaged or names anything else.
    """
    with (path / ".metadata").open("rb") as file:
        try:
            metadata = _OnlyTensors(file).load()
        except (OSError, MemoryError):  # of a disk or a machine that fails now, and may not later
            raise
        except Exception as error:  # unpickling damaged bytes raises anything
            raise ValueError(f".metadata cannot be read ({error})") from error
    parts = (getattr(metadata, name, None) for name in ("state_dict_metadata", "storage_data"))
    if not isinstance(metadata, Metadata) or not all(isinstance(part, dict) for part in parts):
        raise ValueError(".metadata is not a checkpoint's")
    for name, kept in metadata.state_dict_metadata.items():
        if not isinstance(kept, TensorStorageMetadata):
            raise ValueError(f".metadata: {name} is no tensor")
    for stored in metadata.storage_data.values():
        if not isinstance(stored, _StorageInfo) or not _is_plain_name(stored.relative_path) or stored.transform_descriptors:
            raise ValueError(f".metadata: {stored!r} is no part of a file beside it")
    return metadata


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and "/" not in name and "\0" not in name
