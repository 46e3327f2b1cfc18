"""What the system allows: memory, open files, shared memory."""

import os
import resource
from pathlib import Path

from nanochat.plan.answer import Answer
from nanochat.plan.memory import pinned_copy_bytes
from nanochat.preflight.check import GREEN, RED, YELLOW, Finding
from nanochat.preflight.settings import PreflightSettings

GB = 1e9
PROCESS_GB = 0.5  # resident, of a rank on a CPU that trains a model of hardly any size
ENOUGH_FILES, FEW_FILES = 1024, 256
ENOUGH_SHM_BYTES = 2**30
NEVER_OVERCOMMIT = "2"
CGROUP_V2 = ("memory.max", "memory.current", "inactive_file")
CGROUP_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def check(settings: PreflightSettings) -> list[Finding]:
    """Memory for processes and for the copy that a checkpoint is written from, descriptors, /dev/shm, overcommit."""
    return [memory(settings, settings.answer()), open_files(), *shared_memory(settings), *overcommit()]


def memory(settings: PreflightSettings, answer: Answer) -> Finding:
    """Of the node, not of its GPUs."""
    node = settings.node
    # A checkpoint is written from a copy of all that training holds; without a GPU that and its gradients are in the same memory.
    if node.is_this_machine:
        copies_gb = node.count * pinned_copy_bytes(answer.run.plan.job.shape, node.count) / GB
    else:
        copies_gb = 3 * answer.disk.one_checkpoint_gb
    needed_gb = copies_gb + node.count * PROCESS_GB
    system, group = available_bytes() / GB, cgroup_room_bytes() / GB
    free_gb, whose = (group, " that this container may have") if group < system else (system, "")
    value = f"{free_gb:,.1f} GB free{whose}; this run needs {needed_gb:,.1f}"
    if free_gb < needed_gb:
        return Finding("memory", RED, value, "end other programs, raise the container's limit, or ask for a node with more")
    return Finding("memory", GREEN, value)


def available_bytes() -> float:
    """What the system can still give; unlimited where it does not say."""
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return float(line.split()[1]) * 1024
    return float("inf")


def cgroup_room_bytes(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """What the control groups of this process leave it, caches that can be given up not counted; unlimited where there is no limit."""
    room = float("inf")
    for line in _text(own).splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds not in ("", "memory"):
            continue
        top, names = (root / "memory", CGROUP_V1) if kinds else (root, CGROUP_V2)
        group = top / path.lstrip("/")
        for directory in [group, *group.parents, top]:  # top: what a container sees of itself, whatever its path is outside
            if directory == top or top in directory.parents:
                room = min(room, _room_in(directory, *names))
    return room


def _room_in(group: Path, limit: str, used: str, cache: str) -> float:
    try:
        most, taken = int(_text(group / limit)), int(_text(group / used))
    except ValueError:  # "max", or no such file
        return float("inf")
    caches = [int(line.split()[1]) for line in _text(group / "memory.stat").splitlines() if line.startswith(f"{cache} ")]
    return float(most - taken + sum(caches))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def open_files() -> Finding:
    """Descriptors that a process may have open at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    value = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,} a process"
    if soft == resource.RLIM_INFINITY or soft >= ENOUGH_FILES:
        return Finding("open files", GREEN, value)
    can = hard == resource.RLIM_INFINITY or hard >= ENOUGH_FILES
    advice = f"ulimit -n {ENOUGH_FILES} in the shell that starts the run" if can else "raise nofile in /etc/security/limits.conf"
    return Finding("open files", RED if soft < FEW_FILES else YELLOW, value, advice)


def shared_memory(settings: PreflightSettings, path: Path = Path("/dev/shm")) -> list[Finding]:
    """What processes of a node may share; NCCL wants it where GPUs do not reach each other, and containers have little."""
    if not path.is_dir():
        return []
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    value = f"{free / GB:,.1f} GB in {path}"
    node = settings.node
    if node.is_this_machine and node.count > 1 and free < ENOUGH_SHM_BYTES:
        return [Finding("shared memory", YELLOW, value, "start the container with --ipc=host or --shm-size=8g")]
    return [Finding("shared memory", GREEN, value)]


def overcommit(path: Path = Path("/proc/sys/vm/overcommit_memory")) -> list[Finding]:
    """Only where the system refuses what is asked for but not used, as GPUs' drivers do in terabytes."""
    if _text(path).strip() != NEVER_OVERCOMMIT:
        return []
    return [Finding("overcommit", YELLOW, "vm.overcommit_memory is 2", "sysctl vm.overcommit_memory=0, should memory be refused")]
