"""Pidfds: of the life that was meant, closed once, and one to be had when descriptors have run out."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import proc
from oomreaper.model.identity import Identity
from oomreaper.watch.handles import Handles

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def handles() -> Iterator[Handles]:
    """With a /proc of its own."""
    root = proc.open_root()
    made = Handles(root)
    yield made
    made.close_all()
    os.close(root)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A process of our own."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(60)"]) as process:
        yield process
        process.kill()


def _identity(pid: int) -> Identity:
    root = proc.open_root()
    directory = proc.open_process(root, pid)
    assert directory is not None
    stat = proc.read_stat(directory)
    os.close(directory)
    os.close(root)
    assert stat is not None
    return stat.identity


def test_a_life_is_opened_and_another_of_its_pid_is_not(handles: Handles, child: subprocess.Popen[bytes]) -> None:
    """The start time decides: the same pid with another one gives no handle, and leaves none open."""
    identity = _identity(child.pid)
    before = len(os.listdir("/proc/self/fd"))
    other = handles.open_life(Identity(identity.pid, identity.start_time_ticks + 1))
    after = len(os.listdir("/proc/self/fd"))
    handle = handles.open_life(identity)

    assert other is None
    assert before == after
    assert handle is not None
    signal.pidfd_send_signal(handle, 0)


def test_who_has_gone_has_no_handle(handles: Handles) -> None:
    """A pid that was waited for gives None, not an error."""
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", ""]) as process:
        process.wait()

    assert handles.open(process.pid) is None
    assert handles.open_life(Identity(process.pid, 1)) is None


def test_closing_twice_closes_nobody_elses(handles: Handles, child: subprocess.Popen[bytes]) -> None:
    """The second close of a number that stands for another file by now does nothing."""
    handle = handles.open(child.pid)
    assert handle is not None
    handles.watch(handle)
    handles.close(handle)
    other = os.open("/dev/null", os.O_RDONLY)
    taken = os.dup2(other, handle)
    handles.close(handle)

    assert handle not in handles.watched
    os.fstat(taken)
    os.close(taken)
    if other != taken:
        os.close(other)


def test_the_lives_of_a_number_are_told_apart(handles: Handles, child: subprocess.Popen[bytes]) -> None:
    """The same number, given again by the kernel, has another serial; one that is not ours has none."""
    first = handles.open(child.pid)
    assert first is not None
    serial = handles.serial_of(first)
    handles.close(first)
    assert handles.serial_of(first) == 0
    second = handles.open(child.pid)
    assert second is not None

    assert handles.serial_of(second) > serial > 0


def test_a_reserve_gives_a_pidfd_when_there_are_no_descriptors(
    handles: Handles, child: subprocess.Popen[bytes]
) -> None:
    """With every number taken 16 pidfds are to be had, then None; one that is closed can be had again."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limits)
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                stack.callback(os.close, os.dup(0))
        had = [handles.open(child.pid) for _ in range(20)]
        opened = [handle for handle in had if handle is not None]
        handles.close(opened[0])
        again = handles.open(child.pid)

    assert len(opened) == 16
    assert had[16:] == [None] * 4
    assert again is not None
