"""A /proc that was written rather than mounted: as many processes as a test wants, each with the numbers it wants.

Files are rewritten in place, so that a descriptor that is kept open shows what stands there now, as in procfs. What a
recorded tree cannot do is forget: a kept file of a removed process still reads. Real children are for that.
"""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from oomreaper.model.identity import Identity

KIB = 1024
PAGE_KIB = 4
PAGE_BYTES = PAGE_KIB * KIB
TICKS_PER_SECOND = 100


class Recorded(NamedTuple):
    """What one process shows. ``thread`` is the one whose files show the memory when the leader is a zombie."""

    pid: int
    anon_kib: int = 0
    file_kib: int = 0
    shmem_kib: int = 0
    swap_kib: int = 0
    page_table_kib: int = 0
    comm: bytes = b"recorded"
    state: str = "S"
    parent_pid: int = 1
    threads: int = 1
    start_ticks: int = 500
    uid: int = 1000
    oom_score_adj: int = 0
    is_kernel_thread: bool = False
    is_thread: bool = False
    thread: int | None = None

    @property
    def statm(self) -> bytes:
        """The line of a living thread."""
        resident = self.anon_kib + self.file_kib + self.shmem_kib
        shared = self.file_kib + self.shmem_kib
        return b"9999 %d %d 1 0 99 0\n" % (resident // PAGE_KIB, shared // PAGE_KIB)

    @property
    def stat(self) -> bytes:
        """The line with every field of Linux 6."""
        fields: list[object] = [0] * 50
        fields[0] = self.state
        fields[1:4] = [self.parent_pid, self.pid, self.pid]
        fields[6] = 0x00200000 if self.is_kernel_thread else 0x00400000
        fields[17] = self.threads
        fields[19] = self.start_ticks
        fields[35] = -1 if self.is_thread else 17
        return b"%d (" % self.pid + self.comm + b") " + " ".join(map(str, fields)).encode() + b"\n"

    def status(self, *, has_memory: bool) -> bytes:
        """The lines that are read."""
        lines = [f"Name:\tx\nTgid:\t{self.pid}\nUid:\t{self.uid}\t0\t0\t0\n"]
        if has_memory:
            lines.append(
                f"RssAnon:\t{self.anon_kib} kB\nRssFile:\t{self.file_kib} kB\nRssShmem:\t{self.shmem_kib} kB\n"
                f"VmPTE:\t{self.page_table_kib} kB\nVmSwap:\t{self.swap_kib} kB\n"
            )
        return "".join(lines).encode()


class RecordedMachine:
    """The tree, below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._processes: dict[int, Recorded] = {}
        directory.mkdir(exist_ok=True)
        (directory / "self").mkdir()  # names that are no pids stand among the others
        self.set_last_pid(0)
        self.root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)

    def set_last_pid(self, pid: int) -> None:
        """What /proc/loadavg tells."""
        (self.directory / "loadavg").write_bytes(b"0.00 0.02 0.00 2/102 %d\n" % pid)

    def put(self, pid: int, **shows: Any) -> Recorded:
        """Add a process, or change what it shows."""
        before = self._processes.get(pid, Recorded(pid))
        process = before._replace(**shows)
        self._processes[pid] = process
        place = self.directory / str(pid)
        place.mkdir(exist_ok=True)
        has_memory = process.state != "Z" and not process.is_kernel_thread
        (place / "stat").write_bytes(process.stat)
        (place / "statm").write_bytes(process.statm if has_memory else b"0 0 0 0 0 0 0\n")
        (place / "status").write_bytes(process.status(has_memory=has_memory))
        (place / "oom_score_adj").write_bytes(b"%d\n" % process.oom_score_adj)
        if process.thread is not None:
            for thread, memory in ((pid, has_memory), (process.thread, True)):
                task = place / "task" / str(thread)
                task.mkdir(parents=True, exist_ok=True)
                (task / "statm").write_bytes(process.statm if memory else b"0 0 0 0 0 0 0\n")
                (task / "status").write_bytes(process.status(has_memory=memory))
        return process

    def put_many(self, count: int, *, first_pid: int = 1000, **shows: Any) -> None:
        """Add ``count`` alike."""
        for pid in range(first_pid, first_pid + count):
            self.put(pid, **shows)

    def remove(self, pid: int) -> None:
        """End a process."""
        del self._processes[pid]
        shutil.rmtree(self.directory / str(pid))

    def identity(self, pid: int) -> Identity:
        """Who holds ``pid``."""
        from oomreaper.model.identity import Identity

        return Identity(pid, self._processes[pid].start_ticks)

    def close(self) -> None:
        """Let go of the root."""
        os.close(self.root)


class CountingOs:
    """``os`` for a module under test: counts the calls that reach the kernel, and fails the one it is told to."""

    _COUNTED = ("open", "pread", "read", "fstat", "listdir", "scandir")

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._failing = range(0)
        self._errno = 0

    def fail(self, call: int | None, number: int = 0, *, times: int = 1) -> None:
        """Count from 0 again; let the ``call``-th from now, and so many in all, answer ``number``."""
        self.calls = []
        self._failing = range(call, call + times) if call is not None else range(0)
        self._errno = number

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self._COUNTED:
            return real

        def counted(*operands: Any, **options: Any) -> Any:
            self.calls.append(name)
            if len(self.calls) - 1 in self._failing:
                raise OSError(self._errno, os.strerror(self._errno))
            return real(*operands, **options)

        return counted
