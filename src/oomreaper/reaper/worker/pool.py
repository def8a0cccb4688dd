"""The crew's other end: forks workers, gives them jobs over a socket, ends them. Never waits for one.

Each worker has one SOCK_SEQPACKET pair; a job travels with the victim's pidfd beside it. Who drives the crew
watches ``filenos`` and calls ``read`` when one is readable.
"""

from __future__ import annotations

import os
import select
import signal
import socket
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.linux import proc
from oomreaper.policy.protection import Ourselves
from oomreaper.reaper.parts import Parts
from oomreaper.reaper.wire import MESSAGE_LIMIT_BYTES, decode_report, encode_job
from oomreaper.reaper.worker import child

if TYPE_CHECKING:
    from oomreaper.reaper.jobs import Job, Report

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A killed worker leaves within 1 ms (2026-11); one that does not is the kernel's to keep, and not waited for.
_LAST_WAIT_MS = 100
# How often a worker that has closed its socket is found still leaving before it is left to the kernel.
_LAST_LOOKS = 10_000


class Ended(NamedTuple):
    """A worker has ended by itself. ``is_sandboxed``: by SIGSYS, from a seccomp filter."""

    worker: int
    why: str
    is_sandboxed: bool


class Answered(NamedTuple):
    """A worker has answered."""

    worker: int
    report: Report


class Pool:
    """Worker processes by number (their pid). Implements ``oomreaper.reaper.roster.Workers``.

    Args:
        proc_root: A descriptor of /proc, kept open by the caller.
        ancestors: The pids that this process descends from; no worker will signal one of them.
    """

    def __init__(self, proc_root: int, ancestors: frozenset[int]) -> None:
        self._proc = proc_root
        self._ancestors = ancestors
        self._connections: dict[int, socket.socket] = {}
        self._parts = Parts()
        self._dismissed: set[int] = set()
        self._last_looks: dict[int, int] = {}

    # -- the seam of the crew ------------------------------------------------------------------------------

    def start(self, *, can_release: bool) -> int | None:
        """Fork a worker; None when there is no memory, no pid or no descriptor for it now."""
        self.reap_dismissed()
        ourselves = self.ourselves()
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            return None
        # A Ctrl-C goes to the whole group. In the child, before it has its own handlers, it would unwind *our* finally
        # blocks there and end its siblings; in us, between fork and the books, it would leave a worker unknown.
        unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        try:
            pid = os.fork()
            if pid == 0:
                child.run(theirs, ourselves=ourselves, can_release=can_release)
            ours.setblocking(False)
            self._connections[pid] = ours
        except OSError:
            ours.close()
            return None
        finally:
            theirs.close()
            signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)
        return pid

    def assign(self, worker: int, job: Job, handle: int | None) -> bool:
        """Send a job with the victim's pidfd, if any; False when the worker is gone or does not take it."""
        try:
            if handle is None:
                self._connections[worker].send(encode_job(job))
            else:
                socket.send_fds(self._connections[worker], [encode_job(job)], [handle])
        except OSError:
            return False
        return True

    def dismiss(self, worker: int) -> None:
        """SIGKILL a worker; one that stands in process_mrelease dies of it within a millisecond."""
        os.kill(worker, signal.SIGKILL)  # our own child, not waited for: the pid cannot have been recycled
        self._forget(worker)
        self._dismissed.add(worker)

    def is_waiting(self, worker: int) -> bool:
        """Whether the worker sleeps in the kernel and has not answered (nor ended)."""
        try:
            self._connections[worker].recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return proc.is_asleep(self._proc, worker)
        except OSError:
            pass  # it has ended: to be read as that
        return False

    # -- for who drives the crew ---------------------------------------------------------------------------

    def ourselves(self) -> Ourselves:
        """Who must never be a victim: this process and its workers; and where it stands."""
        return Ourselves(frozenset({os.getpid(), *self._connections}), self._ancestors, os.getpgrp(), os.getsid(0))

    def filenos(self) -> dict[int, int]:
        """The descriptor to watch (for input) of each worker, by worker."""
        return {worker: connection.fileno() for worker, connection in self._connections.items()}

    def read(self, worker: int) -> Answered | Ended | None:
        """What a worker has to say; None when that is only a part, or nothing."""
        connection = self._connections[worker]
        try:
            message = connection.recv(MESSAGE_LIMIT_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            message = b""
        if not message:
            return self._on_end(worker)
        report = self._parts.join(worker, decode_report(message))
        return None if report is None else Answered(worker, report)

    def reap_dismissed(self) -> None:
        """Wait, without waiting, for workers that were ended."""
        for worker in list(self._dismissed):
            pid, _status = os.waitpid(worker, os.WNOHANG)
            if pid:
                self._dismissed.discard(worker)

    def close(self) -> None:
        """End all workers and wait a moment for them; each has nothing left to do."""
        for worker in list(self._connections):
            self.dismiss(worker)
        poll = select.poll()
        for _ in range(_LAST_WAIT_MS):
            self.reap_dismissed()
            if not self._dismissed:
                return
            poll.poll(1)

    def _on_end(self, worker: int) -> Ended | None:
        """A worker closed its end: it has ended, or is about to; its socket stays readable until we know how."""
        os.kill(worker, signal.SIGKILL)
        pid, status = os.waitpid(worker, os.WNOHANG)
        looks = self._last_looks[worker] = self._last_looks.get(worker, 0) + 1
        if not pid and looks < _LAST_LOOKS:
            return None
        self._forget(worker)
        if not pid:
            self._dismissed.add(worker)
            return Ended(worker, "and has not left the kernel yet", is_sandboxed=False)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return Ended(worker, f"by {signal.Signals(number).name}", number == signal.SIGSYS)
        return Ended(worker, f"with exit status {os.WEXITSTATUS(status)}", is_sandboxed=False)

    def _forget(self, worker: int) -> None:
        self._connections.pop(worker).close()
        self._parts.drop(worker)
        self._last_looks.pop(worker, None)
