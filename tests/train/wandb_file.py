"""Reading what wandb wrote offline: LevelDB's log format, one protobuf record after the other."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32_768
FILE_HEADER, RECORD_HEADER = 7, 7
FULL, LAST = 1, 4


def chunks(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file, put together from their pieces."""
    data, place, whole = path.read_bytes(), FILE_HEADER, b""
    while place + RECORD_HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < RECORD_HEADER:
            place += left
            continue
        _checksum, length, kind = struct.unpack_from("<IHB", data, place)
        if kind == 0:
            return
        whole += data[place + RECORD_HEADER : place + RECORD_HEADER + length]
        place += RECORD_HEADER + length
        if kind in (FULL, LAST):
            yield whole
            whole = b""


def read_run(directory: Path) -> tuple[str, list[dict[str, Any]]]:
    """The display name and the logged rows of the offline run in a directory."""
    from wandb.proto import wandb_internal_pb2

    name, rows = "", []
    for chunk in chunks(next(directory.glob("run-*.wandb"))):
        record = wandb_internal_pb2.Record.FromString(chunk)
        name = record.run.display_name or name
        if record.history.item:
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
    return name, rows
