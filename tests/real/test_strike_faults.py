"""Every call of a strike failing once: the victim dies all the same, no worker is lost, and nothing is made up."""

from __future__ import annotations

import errno
import os
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from oomreaper.errors import KernelError
from oomreaper.linux import look, proc, syscalls
from oomreaper.model.identity import Identity
from oomreaper.model.outcome import OutcomeKind
from oomreaper.policy.protection import Ourselves
from oomreaper.reaper.jobs import CouldNotLook, Job, JobKind, Probed, Struck
from oomreaper.reaper.worker import child
from oomreaper.reaper.worker.child import WorkerChild
from oomreaper.watch import errand
from tests.victims import stage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.victims.staged import StagedVictim

FAULTS = (errno.ENOMEM, errno.EMFILE, errno.EIO)
NOBODY_OF_US = Ourselves(frozenset(), frozenset(), 0, 0)
# A strike makes fewer calls than this, also with a sharer to look for among every process; the test says if not.
MOST_CALLS = 60


class FaultyOs:
    """The module os, of which one call of open, read or listdir fails, or so many in a row."""

    def __init__(self, fail_at: int, number: int, *, times: int = 1) -> None:
        self._failing = range(fail_at, fail_at + times)
        self._number = number
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in ("open", "read", "listdir"):
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            if self.calls - 1 in self._failing:
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
    """Whatever of the look at a known sharer fails once, he and the victim are signalled, in this attempt."""
    for fail_at in range(MOST_CALLS):
        with stage.plain(sharers=1, size_bytes=1 << 20) as victim:
            job, sharer = strike_at_shared(victim, can_wait=False)
            faulty = FaultyOs(fail_at, number)
            with monkeypatch.context() as patch:
                patch.setattr(proc, "os", faulty)
                patch.setattr(look, "os", faulty)
                struck = worker.do(job, victim.pidfd)

            assert isinstance(struck, Struck)
            assert struck.signal_errno == 0
            assert victim.has_pending_sigkill() or victim.state() in (None, "Z", "X") or victim.is_gone(timeout_s=2)
            assert struck.sharers_killed == (sharer,)
            assert struck.missed == ()
        if faulty.calls <= fail_at:
            return
    pytest.fail("a strike makes more calls than were made to fail")


def strike_at_shared(victim: StagedVictim, *, can_wait: bool) -> tuple[Job, Identity]:
    """A strike at a victim that shares its memory with one other, and who that is."""
    (pid,) = set(victim.pids) - {victim.pid}
    started = []
    for each in (victim.pid, pid):
        with open(f"/proc/{each}/stat", "rb") as file:
            started.append(proc.parse_stat(file.read()).starttime)
    sharer = Identity(pid, started[1])
    return Job(JobKind.STRIKE, victim.pid, started[0], (sharer,), can_wait=can_wait), sharer


class NoPidfd:
    """The module syscalls, of which pidfd_open fails for one process, so many times."""

    def __init__(self, pid: int, number: int, times: int) -> None:
        self._pid = pid
        self._number = number
        self.times_left = times

    def __getattr__(self, name: str) -> Any:
        real = getattr(syscalls, name)
        if name != "pidfd_open":
            return real

        def pidfd_open(pid: int) -> int:
            if pid == self._pid and self.times_left:
                self.times_left -= 1
                raise OSError(self._number, os.strerror(self._number))
            return syscalls.pidfd_open(pid)

        return pidfd_open


@pytest.mark.needs("cc", "kcmp")
@pytest.mark.parametrize("can_wait", [True, False])
def test_a_victim_whose_sharer_cannot_be_opened_is_spared_while_that_may_wait(
    worker: WorkerChild,
    monkeypatch: pytest.MonkeyPatch,
    can_wait: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """ENOMEM for good: nobody is signalled and it is said who was missed; in the last resort the victim is."""
    with stage.plain(sharers=1, size_bytes=1 << 20) as victim:
        job, sharer = strike_at_shared(victim, can_wait=can_wait)
        monkeypatch.setattr(child, "syscalls", NoPidfd(sharer.pid, errno.ENOMEM, 1_000))
        struck = worker.do(job, victim.pidfd)

        assert isinstance(struck, Struck)
        assert struck.missed == (sharer.pid,)
        assert struck.sharers_killed == ()
        assert struck.signal_errno == (None if can_wait else 0)
        assert can_wait == (look.errno_of_signal(victim.pidfd) == 0 and not victim.has_pending_sigkill())


@pytest.mark.needs("cc", "kcmp")
def test_a_sharer_that_cannot_be_opened_once_or_twice_is_killed_in_the_same_strike(
    worker: WorkerChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call is made again at once; nothing waits for the next attempt."""
    with stage.plain(sharers=1, size_bytes=1 << 20) as victim:
        job, sharer = strike_at_shared(victim, can_wait=True)
        faulty = NoPidfd(sharer.pid, errno.ENOMEM, 2)
        monkeypatch.setattr(child, "syscalls", faulty)
        struck = worker.do(job, victim.pidfd)

        assert isinstance(struck, Struck)
        assert faulty.times_left == 0
        assert struck.sharers_killed == (sharer,)
        assert struck.missed == ()
        assert struck.signal_errno == 0


@pytest.mark.needs("cc", "kcmp")
@pytest.mark.parametrize(("held_part", "is_killed"), [(1, True), (4, False)], ids=["holds it", "has its own"])
def test_a_victim_that_has_gone_is_struck_in_who_holds_its_memory(
    worker: WorkerChild,
    held_part: int,
    is_killed: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    """A sharer that holds what the victim held is killed and reaped; one that holds less has left it by exec."""
    size_bytes = 64 << 20
    pid, pidfd = sleeper()
    with open(f"/proc/{pid}/stat", "rb") as file:
        started = proc.parse_stat(file.read()).starttime
    syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitpid(pid, 0)
    with stage.plain(size_bytes=size_bytes) as heir:
        with open(f"/proc/{heir.pid}/stat", "rb") as file:
            sharer = Identity(heir.pid, proc.parse_stat(file.read()).starttime)
        job = Job(JobKind.STRIKE, pid, started, (sharer,), held_bytes=size_bytes * held_part)
        struck = worker.do(job, pidfd)
        recycled = worker.do(job._replace(sharers=(sharer._replace(start_time_ticks=1),)), pidfd)

        assert isinstance(struck, Struck)
        assert struck.signal_errno == (0 if is_killed else errno.ESRCH)
        assert struck.sharers_killed == ((sharer,) if is_killed else ())
        assert is_killed == (heir.has_pending_sigkill() or heir.state() in (None, "Z", "X"))
        assert isinstance(recycled, Struck)
        assert recycled.signal_errno == errno.ESRCH
    os.close(pidfd)


def test_a_victim_whose_pid_has_become_ours_is_over_and_no_fault(worker: WorkerChild) -> None:
    """It was waited for, and a worker that was just started got its pid: the strike says that it has gone.

    Found by the simulator (seed 1677): the retry ended the worker as a bug of ours.
    """
    pid, pidfd = sleeper()
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    try:
        worker._ourselves = NOBODY_OF_US._replace(pids=frozenset({pid}))
        report = worker.do(Job(JobKind.STRIKE, pid, 1), pidfd)
    finally:
        os.close(pidfd)

    assert isinstance(report, Struck)
    assert report.signal_errno == errno.ESRCH


def test_a_shortage_in_the_rehearsal_is_no_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOMEM twice is tried again; for good, the worker does not start; EPERM is what the sandbox says."""
    own_pid = os.getpid()
    answers = []
    for number, times in ((errno.ENOMEM, 2), (errno.EMFILE, 2), (errno.EPERM, 1), (errno.ENOSYS, 1)):
        monkeypatch.setattr(child, "syscalls", NoPidfd(own_pid, number, times))
        answers.append(child._rehearse(own_pid))
    monkeypatch.setattr(child, "syscalls", NoPidfd(own_pid, errno.ENOMEM, 1_000))

    with pytest.raises(OSError, match="memory"):
        child._rehearse(own_pid)
    assert answers[:2] == [None, None]
    assert all(answer is not None and "refuses pidfd_open" in answer for answer in answers[2:])


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EIO], ids=errno.errorcode.get)
def test_a_look_that_fails_is_said_and_ends_nobody(
    worker: WorkerChild, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """PROBE and SCOUT answer that they could not look; nothing is left open."""
    pid, pidfd = sleeper()
    before = len(os.listdir("/proc/self/fd"))
    for kind, started in ((JobKind.PROBE, 1), (JobKind.SCOUT, None), (JobKind.ACCOUNT, 1), (JobKind.INQUEST, 1)):
        with monkeypatch.context() as patch:
            patch.setattr(proc, "os", FaultyOs(0, number, times=MOST_CALLS))
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


def test_an_errand_without_memory_for_one_pidfd_refuses_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOMEM twice is tried again; for good, this target is refused and others are not; ENOSYS ends the errand."""
    pid, pidfd = sleeper()
    target = errand.Target(pid)
    made = errand.Errand([target], errand.make_settings(timeout_seconds=1, coredump="abort"))
    monkeypatch.setattr(errand, "syscalls", NoPidfd(pid, errno.ENOMEM, 2))
    made._open(target)
    opened = list(made._opened)
    monkeypatch.setattr(errand, "syscalls", NoPidfd(pid, errno.ENOMEM, 1_000))
    made._open(target)
    monkeypatch.setattr(errand, "syscalls", NoPidfd(pid, errno.ENOSYS, 1))
    with pytest.raises(KernelError, match="sandbox"):
        made._open(target)
    syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.waitpid(pid, 0)
    for descriptor in (pidfd, *opened, made._proc):
        os.close(descriptor)

    assert len(opened) == 1
    assert made._outcomes[target].kind is OutcomeKind.REFUSED
    assert made._outcomes[target].reason == f"no pidfd can be had for it now: {os.strerror(errno.ENOMEM)}"
