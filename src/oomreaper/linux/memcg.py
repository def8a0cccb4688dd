"""The memory of control groups, v1 and v2: one sample of a group from a handful of kept descriptors.

What it knows: what a group may take, what is charged to it, and what of that the kernel would give back before anybody
dies. What it refuses to know: which groups matter (``memcg_tree`` finds them), and what is too little.

How it works: ``read`` opens nothing. The limits of the groups above are looked at by ``refresh`` only, which is
called every 10 s or so while there is no emergency. A group's sample speaks of its own use against the tightest limit
over it: that a sibling fills the parent shows in the parent's sample, and is no reason to kill in here.

A group that has been removed answers ENODEV for ever, and a new one of the same name is another: ``GroupGoneError``.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from oomreaper.linux import psi
from oomreaper.linux.kept import CHUNK_BYTES, KeptFiles, open_kept, read_int
from oomreaper.model.sample import ScopeSample

# v1 says "no limit" as the highest multiple of its page size below 2^63, whatever that page size is.
_UNLIMITED_BYTES = 1 << 62
_NUMBER_BYTES = 64
# memory.stat of v2 adds up what every CPU has counted, tens of microseconds and more on large machines. While more
# than this part of the limit is free, what could be reclaimed on top of it decides nothing.
_PLENTY = 4
# A v1 group "under oom" may be so for the sake of a limit above it. It counts as its own doing when less than this
# part of its own room is left: one that has plenty is a bystander of a sibling that fills the parent.
_NEARLY_FULL = 10
_GONE = frozenset({errno.ENODEV, errno.ENOENT})


class GroupGoneError(Exception):
    """The group was removed, or has no memory controller any more: it is no scope any longer."""


class _Files(NamedTuple):
    """What the files of one version are called, and the lines of its memory.stat."""

    current: str
    own_limits: tuple[str, ...]
    others: tuple[str, ...]
    stat_prefix: bytes


_CURRENT_WITH_SWAP = "memory.memsw.usage_in_bytes"
_LIMIT_WITH_SWAP = "memory.memsw.limit_in_bytes"
_FILES = {
    # "memory.high ... should be used in scenarios where an external process monitors the limited cgroup to alleviate
    # heavy reclaim pressure" (cgroup-v2.rst): that is what we are, so it counts as a limit.
    2: _Files(
        "memory.current",
        ("memory.max", "memory.high"),
        ("memory.stat", "memory.swap.current", "memory.swap.max", "memory.pressure", "memory.events"),
        b"\n",
    ),
    1: _Files(
        "memory.usage_in_bytes",
        ("memory.limit_in_bytes",),
        ("memory.stat", _CURRENT_WITH_SWAP, _LIMIT_WITH_SWAP, "memory.oom_control"),
        b"\ntotal_",
    ),
}


class GroupStat(NamedTuple):
    """What is taken from memory.stat, in bytes, all groups below included."""

    reclaimable_bytes: int
    shmem_bytes: int


class OomControl(NamedTuple):
    """What is taken from v1's memory.oom_control; ``oom_kills`` is None on kernels before 4.13."""

    is_under_oom: bool
    oom_kills: int | None


def parse_limit(content: bytes) -> int | None:
    """A limit in bytes; None for no limit ("max", or v1's number for it)."""
    if content.startswith(b"max"):
        return None
    limit_bytes = int(content)
    return limit_bytes if limit_bytes < _UNLIMITED_BYTES else None


def parse_stat(content: bytes, prefix: bytes = b"\n") -> GroupStat:
    """What of a group's memory the kernel would give back without swapping, and its shared memory.

    Its file cache can be dropped, all but what is dirty or being written: shared memory is not among it. Of the active
    half of it (read twice or more: the programs that run, too) and of the slab, half counts, since taking
    all of that makes the group read it again and again. MemAvailable holds back a half in the same way, up to
    the low watermark; a group has no watermark. ``prefix`` stands before the names: a newline, and total_ in v1.
    """
    content = b"\n" + content

    def find(name: bytes) -> int:
        start = content.find(prefix + name + b" ")
        if start < 0:
            return 0
        start += len(prefix) + len(name)
        return int(content[start : content.index(b"\n", start)])

    reclaimable_bytes = (
        find(b"inactive_file")
        + (find(b"active_file") + find(b"slab_reclaimable")) // 2
        - (find(b"file_dirty") + find(b"file_writeback") if prefix == b"\n" else find(b"dirty") + find(b"writeback"))
    )
    return GroupStat(max(0, reclaimable_bytes), find(b"shmem"))


def parse_oom_kills(events: bytes) -> int:
    """The processes of a group, and below it, that the kernel's own killer has killed (memory.events, oom_kill)."""
    return int(events.split(b"oom_kill ", 1)[1].split(b"\n", 1)[0])


def parse_oom_control(content: bytes) -> OomControl:
    """Parse v1's memory.oom_control."""
    fields = dict(line.split(b" ", 1) for line in content.split(b"\n") if line)
    oom_kills = fields.get(b"oom_kill")
    return OomControl(fields[b"under_oom"] != b"0", None if oom_kills is None else int(oom_kills))


def read_own_limit_bytes(directory: str, version: int) -> int | None:
    """The limit that a group sets itself; None when it sets none, or has gone.

    Raises:
        OSError: It cannot be told now (EMFILE, ENOMEM and the like).
    """
    limit_bytes = None
    for name in _FILES[version].own_limits:
        try:
            file = open_kept(f"{directory}/{name}")
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        try:
            limit_bytes = _tighter(limit_bytes, _read_limit(file))
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
        finally:
            os.close(file)
    return limit_bytes


class _Aside(NamedTuple):
    """What the two versions tell in different ways. ``room_with_swap_bytes`` is left of v1's limit on both together."""

    swap_total_bytes: int
    swap_free_bytes: int
    oom_kills: int | None
    room_with_swap_bytes: int = _UNLIMITED_BYTES
    is_under_oom: bool = False


class GroupMemory:
    """The memory of one group, eight descriptors at most. ``lost`` tells which file gives no number now, and why.

    ``scope`` is what its samples call it: plan.MACHINE for a group that stands for the machine. The limits of the
    groups between it and the directory ``top`` count too; without one, its own only.

    Raises:
        GroupGoneError: There is no such group, or it has no memory controller.
        OSError: It cannot be opened (EMFILE, EACCES and the like).
    """

    def __init__(self, directory: str, scope: str, version: int, *, top: str | None = None) -> None:
        self.directory = directory
        self.scope = scope
        self.version = version
        self._top = top
        self._names = _FILES[version]
        self._limit_above_bytes: int | None = None
        self._kept = KeptFiles()
        self._stands_on: list[int] = []
        try:
            # Without its first limit (v2: the root of all groups has none) a group is no scope.
            for name in (self._names.current, self._names.own_limits[0]):
                self._stands_on.append(open_kept(f"{directory}/{name}"))
            self.refresh()
        except OSError as error:
            self.close()
            raise _translated(error, directory) from error
        except BaseException:
            self.close()
            raise

    @property
    def lost(self) -> dict[str, str]:
        """The reason by the file's name; empty when all that exists is read."""
        return self._kept.lost

    def read(self, now_ns: int, machine: ScopeSample) -> ScopeSample:
        """The sample of this moment; opens nothing. ``machine`` gives what a group without a limit of its own shares.

        While more than a quarter of its limit is free, ``available_bytes`` is a lower bound (what could be reclaimed
        is not looked at) and ``shmem_bytes`` is None.

        Raises:
            GroupGoneError: The group was removed.
            OSError: It cannot be read now. Files that it does not stand on cost their own number only.
        """
        current_bytes, limit_bytes = self._read_use()
        if limit_bytes is not None and limit_bytes >= machine.total_bytes:
            limit_bytes = None  # a limit that the machine cannot reach is none
        aside = self._read_v1(machine, current_bytes, limit_bytes) if self.version == 1 else self._read_v2(machine)
        available_bytes, shmem_bytes = machine.available_bytes, None
        if limit_bytes is not None:
            available_bytes = min(limit_bytes - current_bytes, aside.room_with_swap_bytes)
            is_hanging = aside.is_under_oom and available_bytes < limit_bytes // _NEARLY_FULL
            if available_bytes < limit_bytes // _PLENTY:
                stat = self._kept.read("memory.stat", self._read_stat)
                if stat is not None:
                    available_bytes, shmem_bytes = available_bytes + stat.reclaimable_bytes, stat.shmem_bytes
            available_bytes = 0 if is_hanging else max(0, min(available_bytes, limit_bytes))
            if is_hanging:
                aside = aside._replace(swap_free_bytes=0)  # whatever swap is free, it has not kept them from hanging
        some_us, full_us = self._kept.read("memory.pressure", psi.read_totals) or (None, None)
        return ScopeSample(
            scope=self.scope,
            monotonic_ns=now_ns,
            total_bytes=machine.total_bytes if limit_bytes is None else limit_bytes,
            available_bytes=available_bytes,
            swap_total_bytes=aside.swap_total_bytes,
            swap_free_bytes=max(0, aside.swap_free_bytes),
            current_bytes=current_bytes,
            limit_bytes=limit_bytes,
            shmem_bytes=shmem_bytes,
            psi_some_us=some_us,
            psi_full_us=full_us,
            oom_kills=aside.oom_kills,
        )

    def refresh(self) -> None:
        """Look at the limits above, and open what could not be opened before; not for the hot path.

        Raises:
            GroupGoneError: The group was removed (v1 only; v2 shows it at the next reading).
            OSError: A limit above cannot be told now; the one that was known stays in force.
        """
        for name in (*self._names.own_limits[1:], *self._names.others):
            self._kept.add(name, f"{self.directory}/{name}")
        limit_bytes = self._read_limit_of_hierarchy() if self.version == 1 else None
        directory = self.directory
        while self._top is not None and directory.startswith(f"{self._top}/"):
            directory = directory.rpartition("/")[0]
            limit_bytes = _tighter(limit_bytes, read_own_limit_bytes(directory, self.version))
        self._limit_above_bytes = limit_bytes

    def close(self) -> None:
        """Give all descriptors up."""
        self._kept.close()
        while self._stands_on:
            os.close(self._stands_on.pop())

    def _read_use(self) -> tuple[int, int | None]:
        if not self._stands_on:
            raise OSError(errno.EBADF, f"{self.directory} is closed")
        current, limit = self._stands_on
        try:
            current_bytes = read_int(current)
            limit_bytes = _tighter(self._limit_above_bytes, _read_limit(limit))
        except OSError as error:
            raise _translated(error, self.directory) from error
        except ValueError as error:
            raise OSError(errno.EIO, f"{self.directory} has no numbers") from error
        for name in self._names.own_limits[1:]:
            limit_bytes = _tighter(limit_bytes, self._kept.read(name, _read_limit))
        return current_bytes, limit_bytes

    def _read_limit_of_hierarchy(self) -> int | None:
        """The limit that v1 has worked out over all groups above, those that our mount does not show included.

        The group's own limit is part of it, and is read at each reading: what is no tighter comes from there.
        """
        hierarchy_bytes = self._kept.read("memory.stat", _read_hierarchical_limit)
        if hierarchy_bytes is None:
            return self._limit_above_bytes
        try:
            own_bytes = _read_limit(self._stands_on[1])
        except OSError as error:
            raise _translated(error, self.directory) from error
        return None if hierarchy_bytes >= (own_bytes or _UNLIMITED_BYTES) else hierarchy_bytes

    def _read_v2(self, machine: ScopeSample) -> _Aside:
        total_bytes, free_bytes = machine.swap_total_bytes, machine.swap_free_bytes
        swap_bytes = self._kept.read("memory.swap.current", read_int)
        limit_bytes = self._kept.read("memory.swap.max", _read_limit)
        if swap_bytes is not None and limit_bytes is not None and limit_bytes < total_bytes:
            total_bytes, free_bytes = limit_bytes, min(free_bytes, limit_bytes - swap_bytes)
        oom_kills = self._kept.read("memory.events", _read_oom_kills)
        return _Aside(total_bytes, free_bytes, oom_kills)

    def _read_v1(self, machine: ScopeSample, current_bytes: int, limit_bytes: int | None) -> _Aside:
        total_bytes, free_bytes = machine.swap_total_bytes, machine.swap_free_bytes
        room_bytes = _UNLIMITED_BYTES
        with_swap_bytes = self._kept.read(_CURRENT_WITH_SWAP, read_int)
        most_bytes = self._kept.read(_LIMIT_WITH_SWAP, _read_limit)
        if with_swap_bytes is not None and most_bytes is not None and limit_bytes is not None:
            room_bytes = most_bytes - with_swap_bytes
            total_bytes = min(total_bytes, max(0, most_bytes - limit_bytes))
            free_bytes = min(free_bytes, total_bytes - max(0, with_swap_bytes - current_bytes))
        control = self._kept.read("memory.oom_control", _read_oom_control) or OomControl(
            is_under_oom=False, oom_kills=None
        )
        return _Aside(total_bytes, free_bytes, control.oom_kills, room_bytes, control.is_under_oom)

    def _read_stat(self, file: int) -> GroupStat:
        return parse_stat(os.pread(file, CHUNK_BYTES, 0), self._names.stat_prefix)


def combine(machine: ScopeSample, group: ScopeSample) -> ScopeSample:
    """The sample of a machine for which a group stands: the container's, or that of ``within``.

    It has the group's memory, swap, pressure and kills, and no more available than the machine itself has. What a group
    is not told of stays the machine's.
    """
    return machine._replace(
        total_bytes=group.total_bytes,
        available_bytes=min(machine.available_bytes, group.available_bytes),
        swap_total_bytes=group.swap_total_bytes,
        swap_free_bytes=group.swap_free_bytes,
        current_bytes=group.current_bytes,
        limit_bytes=group.limit_bytes,
        shmem_bytes=group.shmem_bytes,
        psi_some_us=machine.psi_some_us if group.psi_some_us is None else group.psi_some_us,
        psi_full_us=machine.psi_full_us if group.psi_full_us is None else group.psi_full_us,
        oom_kills=machine.oom_kills if group.oom_kills is None else group.oom_kills,
    )


def _tighter(first_bytes: int | None, second_bytes: int | None) -> int | None:
    if first_bytes is None or second_bytes is None:
        return second_bytes if first_bytes is None else first_bytes
    return min(first_bytes, second_bytes)


def _read_limit(file: int) -> int | None:
    try:
        return parse_limit(os.pread(file, _NUMBER_BYTES, 0))
    except ValueError as error:
        raise OSError(errno.EIO, "a limit that is no number") from error


def _read_oom_kills(file: int) -> int:
    return parse_oom_kills(os.pread(file, CHUNK_BYTES, 0))


def _read_oom_control(file: int) -> OomControl:
    return parse_oom_control(os.pread(file, CHUNK_BYTES, 0))


def _read_hierarchical_limit(file: int) -> int:
    return int(os.pread(file, CHUNK_BYTES, 0).split(b"hierarchical_memory_limit ", 1)[1].split(b"\n", 1)[0])


def _translated(error: OSError, directory: str) -> Exception:
    return GroupGoneError(directory) if error.errno in _GONE else error
