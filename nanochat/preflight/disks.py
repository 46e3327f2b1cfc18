"""The disks: room for what the run will write, files that may still be made, and how fast they take what is written."""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from nanochat.common.errors import UserError
from nanochat.common.paths import base_dir
from nanochat.plan.answer import Answer
from nanochat.plan.disk import Room, rooms, still_needed
from nanochat.plan.tables import amount
from nanochat.preflight.check import GREEN, RED, YELLOW, Finding
from nanochat.preflight.settings import PreflightSettings

LEAST_BYTES, PIECE_BYTES = 4096, 2**20
FIRST_BYTES, MOST_BYTES = 16 * 2**20, 256 * 2**20
WRITERS = 4  # a save has one a rank
ENOUGH_S = 1.0  # that tell how fast a disk is
SHARE_OF_FREE = 0.1  # that the test may fill
OTHER_FILES = 1000  # checkpoints, models, logs: hundreds at eight ranks
SHARE_OF_INTERVAL = 0.5  # of the time between two checkpoints that writing one may take


def check(settings: PreflightSettings) -> list[Finding]:
    """For each disk that the run writes to: its room, its files, its speed."""
    try:
        base = base_dir()
    except UserError as error:
        return [Finding("disk", RED, str(error))]
    answer = settings.answer()
    needs = still_needed(answer.disk, settings.data, settings.depth)
    found = []
    for room in rooms(needs) if needs else [Room.of(base, ())]:
        suffix = "" if room.directory == base else f" of {room.directory}"
        found += [_room(room, suffix), *_files(room, answer, suffix), _speed(settings, room, answer, suffix)]
    return found


def _room(room: Room, suffix: str) -> Finding:
    if room.is_enough:
        return Finding(f"disk{suffix}", GREEN, room.sentence)
    if Room(room.directory, room.free_gb, tuple(need for need in room.needs if not need.later)).is_enough:
        return Finding(f"disk{suffix}", YELLOW, room.sentence, "base training fits: make room before it ends, for the stages after it")
    return Finding(f"disk{suffix}", RED, room.sentence, "make room, or set NANOCHAT_BASE_DIR to a directory on a larger disk")


def _files(room: Room, answer: Answer, suffix: str) -> list[Finding]:
    """Only where too few can be made."""
    status = os.statvfs(room.directory)
    wanted = 2 * (answer.disk.text_shards + 1) + OTHER_FILES
    if status.f_files == 0 or status.f_favail >= wanted:  # some file systems do not count them
        return []
    value = f"{room.directory} takes {status.f_favail:,} files more, and this run makes up to {wanted:,}"
    return [Finding(f"files{suffix}", RED, value, "remove small files, or set NANOCHAT_BASE_DIR to another disk")]


def _speed(settings: PreflightSettings, room: Room, answer: Answer, suffix: str) -> Finding:
    name = f"disk speed{suffix}"
    try:
        bytes_per_s = write_speed(room.directory, room.free_gb * 1e9 * SHARE_OF_FREE)
    except OSError as error:
        return Finding(
            name, RED, f"{room.directory} cannot be written: {error.strerror}", "mend it, or set NANOCHAT_BASE_DIR to another disk"
        )
    gb = answer.disk.one_checkpoint_gb
    write_s, interval_s = gb * 1e9 / bytes_per_s, settings.save_every * answer.run.plan.time.total
    value = f"{bytes_per_s / 1e6:,.0f} MB/s: a checkpoint of {amount(gb)} GB in {amount(write_s)} s"
    if settings.node.is_this_machine and 0 < SHARE_OF_INTERVAL * interval_s < write_s:
        value += f", every {interval_s:,.0f} s"
        return Finding(name, YELLOW, value, "training will wait for it: take a faster disk, or save less often (--save_every)")
    return Finding(name, GREEN, value)


def write_speed(directory: Path, most_bytes: float = MOST_BYTES) -> float:
    """Bytes a second that reach the disk, written as a checkpoint is: by several writers that flush once, at their end.

    Ever more is written, to files that are removed again, until it takes a while.
    """
    most = int(min(most_bytes, MOST_BYTES))
    size, piece = FIRST_BYTES, os.urandom(PIECE_BYTES)  # what cannot be packed smaller

    def write(n_bytes: int) -> None:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            while n_bytes > 0:
                n_bytes -= file.write(piece[:n_bytes])
            os.fsync(file.fileno())

    with ThreadPoolExecutor(WRITERS) as pool:
        while True:
            share = max(min(size, most) // WRITERS, LEAST_BYTES)
            began = time.perf_counter()
            list(pool.map(write, [share] * WRITERS))
            took = time.perf_counter() - began
            if took > ENOUGH_S or size >= most:
                return WRITERS * share / took
            size *= 2
