"""A rehearsal: every worker kills for real before it has to, so that nothing is touched for the first time in need.

A worker that was only started has never received a descriptor, walked /proc or read a dead process: the kernel
allocates for each of these at the first time. In a control group with 128 KiB left a fresh crew sent 0 of 10 signals
and one that had worked before 10 of 10 (2026-11).

So children of our own are forked, which do nothing but wait, and go the whole way through the real crew: scouted,
submitted, signalled, reaped, accounted for. They are known by our own fork, hold descriptors of nothing, and end with
us. Afterwards they are waited for, their marks are cleared and the crew's counts begin at 0. What was told of them is
told to nobody. It is bounded in time; a crew that is not warm by then is a warning and no error.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from typing import TYPE_CHECKING, NoReturn

from oomreaper.linux import syscalls
from oomreaper.model.event import EventKind
from oomreaper.reaper.handoff import Entry
from oomreaper.reaper.roster import Service

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.model.identity import Identity
    from oomreaper.reaper.crew import Crew
    from oomreaper.reaper.worker.pool import Pool

# Of each kind of job: the first finds what is to be touched, the second finds it touched.
ROUNDS = 2
# Enough for three workers, who take turns; the rest are for one that came late or was lost.
_FIRST_CHILDREN = 8
_MORE_CHILDREN = 4
_MOST_CHILDREN = 24
_LIMIT_NS = 2_000_000_000
# One turn of whoever drives the crew; the ends of our children are looked for between the turns.
_TURN_NS = 2_000_000
# How long the end of a child that was killed is waited for; 1 ms is usual.
_END_LIMIT_MS = 500
_HIGHEST_FD = 1 << 30  # NR_OPEN_MAX; close_range(2) takes it as "all"
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _Child:
    """One of our own children, by its pidfd."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.identity: Identity | None = None
        self.is_scouted = False
        self.has_ended = False


def rehearse(
    crew: Crew,
    pool: Pool,
    wait: Callable[[int | None], object],
    *,
    now: Callable[[], int] = time.monotonic_ns,
) -> tuple[str, ...]:
    """Have every worker scout and strike at least twice; what is not warm afterwards, in words.

    Args:
        crew: Ready, and without a victim.
        pool: Its workers.
        wait: One turn of whoever drives the crew, for at most so many ns: waits until a worker speaks and tells the
            crew of it. It must not collect what the crew has to say.
        now: The clock, CLOCK_MONOTONIC in ns.
    """
    return Rehearsal(crew, pool, wait, now).run()


class Rehearsal:
    """One rehearsal; ``rehearse`` makes one and runs it."""

    def __init__(self, crew: Crew, pool: Pool, wait: Callable[[int | None], object], now: Callable[[], int]) -> None:
        self._crew = crew
        self._pool = pool
        self._wait = wait
        self._now = now
        self._children: dict[int, _Child] = {}  # by pidfd
        self._notes: list[str] = []

    def run(self) -> tuple[str, ...]:
        """Do it; what is not warm, in words."""
        limit_ns = self._now() + _LIMIT_NS
        try:
            self._fork(_FIRST_CHILDREN)
            while self._now() < limit_ns and not self._notes:
                self._turn()
                if not self._is_done:
                    continue
                if not self._find_cold() or len(self._children) >= _MOST_CHILDREN:
                    break
                self._fork(_MORE_CHILDREN)
        finally:
            self._end()
        return (*self._notes, *self._find_cold())

    @property
    def _is_done(self) -> bool:
        is_through = all(child.has_ended and child.is_scouted for child in self._children.values())
        return is_through and self._crew.is_quiet

    def _find_cold(self) -> list[str]:
        services = self._crew.services()
        cold = []
        for worker in self._pool.filenos():
            scouts, strikes = services.get(worker, Service())
            if scouts < ROUNDS or strikes < ROUNDS:
                cold.append(f"worker {worker} has looked {scouts} times and struck {strikes} times in rehearsal")
        return cold

    def _turn(self) -> None:
        self._wait(_TURN_NS)
        self._crew.on_time(self._now())
        self._collect()
        for child in self._find_ended():
            child.has_ended = True
            if child.identity is not None:
                self._crew.on_victim_exit(child.identity, self._now())

    def _collect(self) -> None:
        for pidfd, scouted in self._crew.take_scouted():
            child = self._children.get(pidfd)
            if child is None:
                continue
            child.is_scouted = True
            if scouted.scouting is None:
                self._notes.append(f"a look at a child of our own failed: {scouted.problem or 'it is not seen'}")
                continue
            identity = scouted.scouting.process.identity
            if self._crew.submit(scouted.scouting, pidfd, self._now()) is Entry.QUEUED:
                child.identity = identity
        for event in self._crew.take_events():
            if event.kind is EventKind.WARNING and event.identity is None:
                self._notes.append(f"in rehearsal: {event.text}")

    def _find_ended(self) -> list[_Child]:
        poll = select.poll()
        for pidfd, child in self._children.items():
            if not child.has_ended:
                poll.register(pidfd, select.POLLIN)
        return [self._children[pidfd] for pidfd, _ in poll.poll(0)]

    # -- children ------------------------------------------------------------------------------------------

    def _fork(self, count: int) -> None:
        for _ in range(count):
            try:
                child = _fork_one()
            except OSError as error:
                self._notes.append(f"no child could be had for the rehearsal: {error.strerror}")
                return
            self._children[child.pidfd] = child
            self._crew.scout(child.pid, child.pidfd, self._now())

    def _end(self) -> None:
        """Leave nothing behind: every child killed and waited for, the crew as it was."""
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                syscalls.pidfd_send_signal(child.pidfd, signal.SIGKILL)
        limit_ns = self._now() + _END_LIMIT_MS * 1_000_000
        while not self._is_done and self._now() < limit_ns:
            self._turn()
        for child in self._children.values():
            _wait_for(child)
            if child.identity is not None:
                self._crew.forget(child.identity)
            if self._crew.is_quiet:  # a job that is out names the victim by it
                os.close(child.pidfd)
        self._crew.take_events()
        self._crew.reset_statistics()


def _fork_one() -> _Child:
    """A child that waits to be killed; signals that are for us do not reach it."""
    parent = os.getpid()
    unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        pid = os.fork()
        if pid == 0:
            _be_a_child(parent)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)
    try:
        return _Child(pid, syscalls.pidfd_open(pid))
    except OSError:
        os.kill(pid, signal.SIGKILL)  # our own child, not waited for: the pid cannot have been recycled
        os.waitpid(pid, 0)
        raise


def _be_a_child(parent: int) -> NoReturn:
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        os.closerange(0, _HIGHEST_FD)
        while os.getppid() == parent:
            signal.pause()
    finally:
        os._exit(0)


def _wait_for(child: _Child) -> None:
    """Wait for a child that was killed; one that cannot die (none is known to) is left to the kernel."""
    poll = select.poll()
    poll.register(child.pidfd, select.POLLIN)
    if poll.poll(_END_LIMIT_MS):
        with contextlib.suppress(ChildProcessError):  # SIGCHLD is ignored here: the kernel has waited for it
            os.waitpid(child.pid, 0)
