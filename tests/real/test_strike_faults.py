"""Every call of a strike failing once: the victim dies all the same, no worker is lost, and nothing is made up."""

from __future__ import annotations

import errno
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from oomreaper.linux import look, proc, syscalls
from oomreaper.policy.protection import Ourselves
from oomreaper.reaper.jobs import CouldNotLook, Job, JobKind, Probed, Struck
from oomreaper.reaper.worker.child import WorkerChild
from tests.victims import stage

if TYPE_CHECKING:
    from collections.abc import Iterator

FAULTS = (errno.ENOMEM, errno.EMFILE, errno.EIO)
NOBODY_OF_US = Ourselves(frozenset(), frozenset(), 0, 0)
# A strike makes fewer calls than this, also with a sharer to look for among every process; the test says if not.
MOST_CALLS = 60


class FaultyOs:
    """The module os, of which one call of open, read or listdir fails."""

    def __init__(self, fail_at: int, number: int) -> None:
        self._fail_at = fail_at
        self._number = number
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("open", "read", "listdir"):
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls - 1 == self._fail_at:
                raise OSError(self._number, os.strerror(self._number))
            return real(*arguments, **options)

        return call


@pytest.fixture
def worker() -> Iterator[WorkerChild]:
    """A worker's work, in this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    root = proc.open_root()
    child = WorkerChild(theirs, root, NOBODY_OF_US)
    try:
        yield child
    finally:
        for descriptor in (root, *child._reserve):
            os.close(descriptor)
        ours.close()
        theirs.close()


def sleeper() -> tuple[int, int]:
    """A child of ours that does nothing, and its pidfd."""
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.die_with_parent(signal.SIGKILL)
            signal.pause()
        finally:
            os._exit(0)
    return pid, syscalls.pidfd_open(pid)


@pytest.mark.parametrize("number", FAULTS, ids=errno.errorcode.get)
def test_a_strike_of_which_any_call_fails_still_kills(
    worker: WorkerChild, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Each open, read and listdir fails in turn: SIGKILL is sent, and unread memory is said to be unread."""
    unknown = 0
    for fail_at in range(MOST_CALLS):
        pid, pidfd = sleeper()
        with open(f"/proc/{pid}/stat", "rb") as file:
            started = proc.parse_stat(file.read()).starttime
        faulty = FaultyOs(fail_at, number)
        with monkeypatch.context() as patch:
            patch.setattr(proc, "os", faulty)
            patch.setattr(look, "os", faulty)
            struck = worker.do(Job(JobKind.STRIKE, pid, started), pidfd)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)

        assert isinstance(struck, Struck)
        assert struck.signal_errno == 0
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert struck.memory is None or struck.memory_problem is None
        unknown += struck.memory_problem is not None
        if faulty.calls <= fail_at:
            break
    else:
        pytest.fail("a strike makes more calls than were made to fail")

    assert (unknown > 0) == (number != errno.EMFILE)  # the reserve makes up for one that lacks a descriptor
    assert len(worker._reserve) == 4


@pytest.mark.needs("cc", "kcmp")
@pytest.mark.parametrize("number", FAULTS, ids=errno.errorcode.get)
def test_a_strike_at_a_sharer_of_which_any_call_fails_still_kills(
    worker: WorkerChild, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Whatever of the look at a known sharer fails, the victim itself is signalled."""
    for fail_at in range(MOST_CALLS):
        with stage.plain(sharers=1, size_bytes=1 << 20) as victim:
            (sharer,) = set(victim.pids) - {victim.pid}
            with open(f"/proc/{victim.pid}/stat", "rb") as file:
                started = proc.parse_stat(file.read()).starttime
            faulty = FaultyOs(fail_at, number)
            with monkeypatch.context() as patch:
                patch.setattr(proc, "os", faulty)
                patch.setattr(look, "os", faulty)
                struck = worker.do(Job(JobKind.STRIKE, victim.pid, started, (sharer,)), victim.pidfd)

            assert isinstance(struck, Struck)
            assert struck.signal_errno == 0
            assert victim.has_pending_sigkill() or victim.state() in (None, "Z", "X") or victim.is_gone(timeout_s=2)
        if faulty.calls <= fail_at:
            return
    pytest.fail("a strike makes more calls than were made to fail")


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EIO], ids=errno.errorcode.get)
def test_a_look_that_fails_is_said_and_ends_nobody(
    worker: WorkerChild, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """PROBE and SCOUT answer that they could not look; nothing is left open."""
    pid, pidfd = sleeper()
    before = len(os.listdir("/proc/self/fd"))
    for kind, started in ((JobKind.PROBE, 1), (JobKind.SCOUT, None), (JobKind.ACCOUNT, 1), (JobKind.INQUEST, 1)):
        with monkeypatch.context() as patch:
            patch.setattr(proc, "os", FaultyOs(0, number))
            answer = worker.do(Job(kind, pid, started), pidfd)

        assert answer == CouldNotLook(f"{errno.errorcode[number]}, {os.strerror(number)}")
    no_pidfd = worker.do(Job(JobKind.STRIKE, pid, 1), None)
    after = len(os.listdir("/proc/self/fd"))
    syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(pidfd)

    assert isinstance(no_pidfd, CouldNotLook)
    assert before == after


def test_a_look_without_a_descriptor_takes_the_reserve(worker: WorkerChild, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE once: looked at again with the reserve given up, and the reserve is taken back."""
    pid, pidfd = sleeper()
    with monkeypatch.context() as patch:
        patch.setattr(proc, "os", FaultyOs(0, errno.EMFILE))
        answer = worker.do(Job(JobKind.PROBE, pid, None), pidfd)
    syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(pidfd)

    assert isinstance(answer, Probed)
    assert answer.memory is not None
    assert len(worker._reserve) == 4
