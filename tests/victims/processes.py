"""What /proc says about processes, for tests: read independently of the code under test.

Only files that take no lock of the address space are read (status, stat, children, exe): a victim whose
mmap_lock is held for write must not take the tests down with it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Between two looks at a condition that has no event to wait for; well under what the tests measure.
POLL_INTERVAL_S = 0.002

DEAD_STATES = frozenset("ZX")

# What a file of /proc/PID answers once the process has gone, also between open and read.
_GONE = (FileNotFoundError, ProcessLookupError)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether the condition came true in time; it is asked at least once, and a last time at the end."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline_s:
            return condition()
        time.sleep(POLL_INTERVAL_S)
    return True


def wait_for_pidfd(pidfd: int, timeout_s: float) -> bool:
    """Whether the process ended in time: its last thread has gone, waited for or not."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def thread_ids(pid: int) -> tuple[int, ...]:
    """The threads of a process, in ascending order; none when it has gone."""
    try:
        return tuple(sorted(int(name) for name in os.listdir(f"/proc/{pid}/task")))
    except _GONE:
        return ()


def _stat_fields(path: str) -> list[str] | None:
    """The fields of a stat file after the name, which may hold spaces and parentheses; None when gone."""
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except _GONE:
        return None


def states(pid: int) -> dict[int, str]:
    """The state letter of every thread, by thread id, as ps spells them: R S D T t Z X."""
    letters = {}
    for tid in thread_ids(pid):
        fields = _stat_fields(f"/proc/{pid}/task/{tid}/stat")
        if fields:
            letters[tid] = fields[0]
    return letters


def start_time_ticks(pid: int) -> int | None:
    """When the process started (field 22 of stat), which tells it from a later owner of its pid."""
    fields = _stat_fields(f"/proc/{pid}/stat")
    return int(fields[19]) if fields else None


def parent_of(pid: int) -> int | None:
    """The parent's pid; None when the process has gone."""
    fields = _stat_fields(f"/proc/{pid}/stat")
    return int(fields[1]) if fields else None


def cpu_ticks(pid: int) -> int:
    """CPU time it has used, in clock ticks of 10 ms; 0 when it has gone."""
    fields = _stat_fields(f"/proc/{pid}/stat")
    return int(fields[11]) + int(fields[12]) if fields else 0


def status_fields(pid: int, tid: int | None = None) -> dict[str, str]:
    """The status file of a process or of one of its threads, empty when it has gone."""
    path = f"/proc/{pid}/status" if tid is None else f"/proc/{pid}/task/{tid}/status"
    try:
        lines = Path(path).read_text(encoding="ascii", errors="replace").splitlines()
    except _GONE:
        return {}
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def status_of_mm(pid: int) -> dict[str, str]:
    """The status of the first thread that still has an address space; empty when none has.

    All threads of a process have one address space between them, so one thread tells all, and a sum over the
    threads would count it many times. The first thread may be a zombie, which shows none.
    """
    for tid in thread_ids(pid):
        fields = status_fields(pid, tid)
        if "RssAnon" in fields:
            return fields
    return {}


def _bytes_of(fields: dict[str, str], *names: str) -> int:
    return sum(int(fields.get(name, "0 kB").split()[0]) * 1024 for name in names)


def anon_bytes(pid: int) -> int:
    """Anonymous memory that the process holds, resident or swapped out."""
    return _bytes_of(status_of_mm(pid), "RssAnon", "VmSwap")


def shmem_bytes(pid: int) -> int:
    """Shared memory that the process has resident: shmem, tmpfs, memfd."""
    return _bytes_of(status_of_mm(pid), "RssShmem")


def is_gone(pid: int, start_time: int | None) -> bool:
    """Whether the process that started then has ended: no thread of it is left but zombies."""
    if start_time is None or start_time_ticks(pid) != start_time:
        return True
    return all(letter in DEAD_STATES for letter in states(pid).values())


def kill_exactly(pid: int, start_time: int | None) -> None:
    """SIGKILL the process that started then, and no later owner of its pid; nothing when it has gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The descriptor is open, so what is compared now is what will be killed.
        if start_time is not None and start_time_ticks(pid) == start_time:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)


def all_pids() -> Iterator[int]:
    """Every process that /proc shows now."""
    for name in os.listdir("/proc"):
        if name.isdigit():
            yield int(name)


def children_of(pid: int) -> tuple[int, ...]:
    """The processes whose parent it is, zombies included."""
    return tuple(sorted(child for child in all_pids() if parent_of(child) == pid))
