"""Which processes there are: of the machine, or of one control group and all below it.

It knows pids and nothing else of them. Listing /proc takes 1 us a process, 10 ms at 10,000 (2026-11, Linux 6.18), which
is too much for each look. But the kernel hands pids out in rising order and tells the last one: those born since are
among the numbers between, and trying a number that nobody holds costs 2 us. What goes round that order
(a restored checkpoint, a pid set by hand, a wrap) is found when all are listed, now and then.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Protocol

from oomreaper.linux import cgroup

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# Threads take numbers too. 1,000 numbers are tried in 2 ms when they are free, in 10 when all are held, which is what
# listing 10,000 processes costs.
_TRIED_PIDS = 1024
_LOADAVG_BYTES = 128


class Population(Protocol):
    """Who is there. Errors of the kernel come out as OSError; what was known before then still stands."""

    def pids(self) -> list[int]:
        """Every process that is there now."""

    def newcomers(self) -> Sequence[int] | None:
        """The pids that may have been given out since this or ``pids`` was last called; None: not told, list them.

        Some may be threads, some free again, and some not to be seen yet: a process gets its pid first.
        """

    def close(self) -> None:
        """Let go of what is kept open."""


class MachinePopulation:
    """Every process that the /proc opened as ``proc_root`` shows."""

    def __init__(self, proc_root: int) -> None:
        self._proc_root = proc_root
        self._last_pid: int | None = None
        try:
            self._loadavg = os.open("loadavg", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_root)
        except OSError:
            self._loadavg = -1  # hidden from us: every look lists

    def pids(self) -> list[int]:
        """Every pid that is listed."""
        # First the mark, then the list: whoever is born between is tried once too often rather than missed.
        last_pid = self._read_last_pid()
        pids = [int(name) for name in os.listdir(self._proc_root) if name.isdigit()]
        self._last_pid = last_pid
        return pids

    def newcomers(self) -> Sequence[int] | None:
        """The numbers after the last known pid; None when there are too many, or they began again from below."""
        last_pid = self._read_last_pid()
        before = self._last_pid
        if last_pid is None or before is None or not 0 <= last_pid - before <= _TRIED_PIDS:
            return None
        self._last_pid = last_pid
        return range(before + 1, last_pid + 1)

    def close(self) -> None:
        """Close /proc/loadavg."""
        if self._loadavg >= 0:
            os.close(self._loadavg)
            self._loadavg = -1

    def _read_last_pid(self) -> int | None:
        """Field 5 of /proc/loadavg: the pid given out last in our namespace, a thread's or a process's."""
        if self._loadavg < 0:
            return None
        content = os.pread(self._loadavg, _LOADAVG_BYTES, 0)
        return int(content.rpartition(b" ")[2]) if content else None


class GroupPopulation:
    """The processes of some control groups and of all groups below them.

    ``directories`` may be a function, for groups that come and go. The files are opened anew each time: a
    cgroup.procs of v1 that is kept open goes on showing the list it first showed.
    """

    def __init__(self, directories: Sequence[str] | Callable[[], Sequence[str]]) -> None:
        self._directories = directories

    def pids(self) -> list[int]:
        """Every member once; those of another pid namespace show as 0 and are nobody that we could reach."""
        directories = self._directories() if callable(self._directories) else self._directories
        return list({pid for directory in directories for pid in cgroup.read_group_pids(directory) if pid > 0})

    def newcomers(self) -> Sequence[int] | None:
        """Never told: a process may also move into a group, which shows nowhere but in the list."""
        return None

    def close(self) -> None:
        """Nothing is kept."""
