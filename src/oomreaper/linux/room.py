"""How much memory may still be taken: on the machine, and within the control groups that this process stands in."""

from __future__ import annotations

from typing import NamedTuple

from oomreaper.linux import cgroup, proc

# Reclaimable at once, so not counted as taken: what Kubernetes calls the working set leaves it out too.
_INACTIVE_FILE = (b"total_inactive_file", b"inactive_file")
# v1 says "no limit" as the highest multiple of its page size below 2^63, whatever that page size is.
_UNLIMITED_BYTES = 1 << 62


class Room(NamedTuple):
    """Bytes. ``below_limits_bytes`` is what the tightest control group still lets in; None where none limits us."""

    available_bytes: int
    below_limits_bytes: int | None


def read_room(proc_root: int) -> Room:
    """Room for the process that asks; ``proc_root`` as ``proc.open_root`` gives it."""
    meminfo = proc.parse_meminfo(proc.read_file(proc_root, "meminfo") or b"")
    rooms = [room for directory in _own_groups(proc_root) if (room := _read_room_of_group(directory)) is not None]
    return Room(meminfo.get("MemAvailable", meminfo.get("MemFree", 0)), min(rooms, default=None))


def _own_groups(proc_root: int) -> list[str]:
    """The directories of our memory control group and of all above it that this mount namespace shows."""
    memberships = cgroup.parse_memberships(proc.read_file(proc_root, "self/cgroup") or b"")
    directories = []
    for mount in cgroup.read_mounts(proc_root):
        for membership in memberships:
            is_of_mount = not membership.controllers if mount.version == 2 else "memory" in membership.controllers  # noqa: PLR2004 - v2
            if not is_of_mount or (mount.version == 1 and "memory" not in mount.controllers):
                continue
            directory = mount.path_of(membership.group)
            while directory is not None and directory.startswith(mount.directory):
                directories.append(directory)
                directory = directory.rpartition("/")[0]
    return directories


def _read_room_of_group(directory: str) -> int | None:
    limits = [
        limit
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes")
        if (limit := _read_int(f"{directory}/{name}")) is not None and limit < _UNLIMITED_BYTES
    ]
    used_bytes = _read_int(f"{directory}/memory.current")
    if used_bytes is None:
        used_bytes = _read_int(f"{directory}/memory.usage_in_bytes")
    if not limits or used_bytes is None:
        return None
    return max(0, min(limits) - used_bytes + _read_inactive_file_bytes(directory))


def _read_inactive_file_bytes(directory: str) -> int:
    table = dict(line.split(b" ", 1) for line in _read(f"{directory}/memory.stat").splitlines() if b" " in line)
    return next((int(table[name]) for name in _INACTIVE_FILE if name in table), 0)


def _read_int(path: str) -> int | None:
    word = _read(path).strip()
    return int(word) if word.isdigit() else None  # "max", or no such file


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
