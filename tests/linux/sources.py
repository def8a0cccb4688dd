"""What the tests of the watcher's sources share: recorded trees, calls that fail once, children in small groups."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from tests.victims.processes import wait_for_pidfd
from tests.victims.program import END_TIMEOUT_S, MIB

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

# Well above what an interpreter takes, and small enough to be full at once.
LIMIT_BYTES = 32 * MIB

_ENTER = """
import mmap, os, sys
for directory in sys.argv[1].split(":"):
    with open(directory + "/cgroup.procs", "w") as file:
        file.write(str(os.getpid()))
"""

# Reads a file of twice the limit over and over: every page of it has to push out another.
_SQUEEZED = (
    _ENTER
    + """
with open(sys.argv[2], "w+b") as file:
    os.unlink(sys.argv[2])
    for _ in range(64):
        file.write(bytes(1 << 20))
    file.flush()
    os.fsync(file.fileno())
    while True:
        file.seek(0)
        while file.read(1 << 20):
            pass
"""
)

# Touches anonymous memory until something stops it.
_FILLING = (
    _ENTER
    + """
memory = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for start in range(0, len(memory), 4096):
    memory[start] = 1
while True:
    sys.stdin.read(1)
"""
)


class Fault:
    """Whether the call that was to fail was made at all."""

    def __init__(self) -> None:
        self.was_reached = False


@contextlib.contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, call: str, number: int, turn: int) -> Iterator[Fault]:
    """The ``turn``-th ``os.<call>`` in here, counted from 0, answers this errno; all others are the kernel's."""
    fault = Fault()
    left = turn
    real = getattr(os, call)

    def stand_in(*arguments: Any, **keywords: Any) -> Any:
        nonlocal left
        left -= 1
        if left == -1:
            fault.was_reached = True
            raise OSError(number, os.strerror(number))
        return real(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, stand_in)
        yield fault


def count_descriptors() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def write_tree(top: Path, files: dict[str, str]) -> None:
    """A recorded tree: each file by its path below ``top``."""
    for name, content in files.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="ascii")


@contextlib.contextmanager
def _child(script: str, *arguments: str) -> Iterator[int]:
    child = subprocess.Popen([sys.executable, "-I", "-S", "-c", script, *arguments], stdin=subprocess.PIPE)
    pidfd = os.pidfd_open(child.pid)
    try:
        yield pidfd
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert wait_for_pidfd(pidfd, END_TIMEOUT_S)
        os.close(pidfd)
        assert child.stdin is not None
        child.stdin.close()
        child.wait()


@contextlib.contextmanager
def squeezed_child(memory: Path, *groups: Path, file: Path) -> Iterator[int]:
    """The pidfd of a child that waits for memory most of its time, in ``groups`` and a memory group that it fills."""
    limit = memory / "memory.max"
    if not limit.exists():
        limit = memory / "memory.limit_in_bytes"
    limit.write_text(str(LIMIT_BYTES), encoding="ascii")
    with _child(_SQUEEZED, ":".join(map(str, (memory, *groups))), str(file)) as pidfd:
        yield pidfd


@contextlib.contextmanager
def filling_child(memory: Path) -> Iterator[int]:
    """The pidfd of a child that takes 64 MiB of anonymous memory in a v1 group, whatever its limit, and keeps it."""
    with _child(_FILLING, str(memory)) as pidfd:
        yield pidfd
