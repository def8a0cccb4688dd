"""The roster: which worker is idle, who does what and until when, who was lost, who must be replaced. Pure.

It knows nothing of victims: a ``subject`` is whatever a job is about. Workers are started before they are needed and
after a loss, never on the way to a kill: the crew calls ``restore_strength`` when the work has been given out.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from oomreaper.reaper.jobs import Hello, Job, JobKind

if TYPE_CHECKING:
    from collections.abc import Iterator

_MS = 1_000_000
# When no worker could be started (no memory, no pids), or one ended while idle, how soon to try again.
_RESTART_DELAY_NS = 100 * _MS
# The same while somebody waits for a worker: a fork costs 1 to 2 ms (2026-11), so that a worker which ends whenever it
# is started costs a third of a core at most, for as long as a victim has.
_URGENT_RESTART_DELAY_NS = 5 * _MS

S = TypeVar("S")


class Workers(Protocol):
    """The seam: who starts, feeds and ends workers. None of these may wait."""

    def start(self, *, can_release: bool) -> int | None:
        """Start a worker; its number, or None when none can be started now. It reports Hello when ready.

        ``can_release`` False: process_mrelease is known to end whoever calls it here, so it must not even be probed.
        """

    def assign(self, worker: int, job: Job, handle: int | None) -> bool:
        """Give an idle worker a job on the victim that ``handle`` names, if any; False when the worker is gone."""

    def dismiss(self, worker: int) -> None:
        """End a worker, whatever it stands in. Nothing more is heard of it."""

    def is_waiting(self, worker: int) -> bool:
        """Whether the worker sleeps in the kernel over its job: it neither runs nor awaits a CPU, nor has it answered.

        Who decides may have been kept from the CPU himself: then deadlines have passed whose answers lie there unread.
        """


class Assignment(NamedTuple, Generic[S]):
    """One worker's job, what it is about, since when and until when (monotonic ns)."""

    job: Job
    subject: S
    started_ns: int
    deadline_ns: int


class Service(NamedTuple):
    """What a worker has answered since it was started: looks before a decision (SCOUT), and strikes."""

    scouts: int = 0
    strikes: int = 0


class Roster(Generic[S]):
    """The workers of a crew.

    Args:
        workers: The seam.
        strength: How many workers there shall be.
    """

    def __init__(self, workers: Workers, strength: int) -> None:
        self._workers = workers
        self._strength = strength
        self._starting: set[int] = set()
        self._idle: deque[int] = deque()
        self._busy: dict[int, Assignment[S]] = {}
        self._restart_ns: int | None = None
        self.services: dict[int, Service] = {}  # of those that have reported for duty and live
        self.can_release = True  # until a worker finds out, or is killed for asking
        self.started = 0
        self.lost = 0

    # -- looking -------------------------------------------------------------------------------------------

    @property
    def idle(self) -> int:
        """How many have nothing to do."""
        return len(self._idle)

    @property
    def is_ready(self) -> bool:
        """Whether every worker has reported for duty."""
        return not self._starting and self._restart_ns is None

    @property
    def is_at_rest(self) -> bool:
        """Whether no job is out."""
        return not self._busy

    def find(self, kind: JobKind, subject: S) -> Iterator[tuple[int, Assignment[S]]]:
        """Who does a job of that kind on that subject."""
        for worker, assignment in list(self._busy.items()):
            if assignment.job.kind is kind and assignment.subject is subject:
                yield worker, assignment

    def overdue(self, now_ns: int) -> Iterator[tuple[int, Assignment[S]]]:
        """Whose deadline has passed, one by one; a job that was settled meanwhile is left out."""
        for worker, assignment in list(self._busy.items()):
            if assignment.deadline_ns <= now_ns and self._busy.get(worker) is assignment:
                yield worker, assignment

    def is_waiting(self, worker: int) -> bool:
        """Whether the worker sleeps in the kernel over its job."""
        return self._workers.is_waiting(worker)

    def next_deadline_ns(self) -> int | None:
        """When something of this is due."""
        due = [assignment.deadline_ns for assignment in self._busy.values()]
        if self._restart_ns is not None:
            due.append(self._restart_ns)
        return min(due, default=None)

    # -- changing ------------------------------------------------------------------------------------------

    def greet(self, worker: int, hello: Hello) -> None:
        """A worker is ready; it says whether process_mrelease is there."""
        if worker in self._starting:
            self._starting.discard(worker)
            self._idle.append(worker)
            self.services[worker] = Service()
            self.can_release = self.can_release and hello.mrelease_errno == errno.EBADF

    def assign(self, job: Job, subject: S, handle: int | None, *, now_ns: int, deadline_ns: int) -> int | None:
        """Give a job to the worker that has been idle longest; that worker when it is gone, else None."""
        worker = self._idle.popleft()
        self._busy[worker] = Assignment(job, subject, now_ns, deadline_ns)
        return None if self._workers.assign(worker, job, handle) else worker

    def take_back(self, worker: int) -> Assignment[S] | None:
        """A worker has answered: what it did; None when it was dismissed in the moment in which it answered."""
        assignment = self._busy.pop(worker, None)
        if assignment is not None:
            self._idle.append(worker)
            served, kind = self.services[worker], assignment.job.kind
            self.services[worker] = Service(
                served.scouts + (kind is JobKind.SCOUT), served.strikes + (kind is JobKind.STRIKE)
            )
        return assignment

    def extend(self, worker: int, assignment: Assignment[S]) -> None:
        """Replace a worker's assignment: the same job, other times."""
        self._busy[worker] = assignment

    def dismiss(self, worker: int, now_ns: int) -> None:
        """End a worker at work; it is to be replaced at once."""
        del self._busy[worker], self.services[worker]
        self._workers.dismiss(worker)
        self.lost += 1
        self._restart_ns = now_ns

    def strike_off(self, worker: int, now_ns: int, *, is_needed: bool) -> Assignment[S] | None:
        """A worker has ended by itself: what it was at. One that was idle is replaced later: the next may end too.

        ``is_needed``: somebody waits for a worker, or soon will; then not much later.
        """
        self.lost += 1
        self._starting.discard(worker)
        self.services.pop(worker, None)
        if worker in self._idle:
            self._idle.remove(worker)
        assignment = self._busy.pop(worker, None)
        delay_ns = 0 if assignment is not None else _URGENT_RESTART_DELAY_NS if is_needed else _RESTART_DELAY_NS
        due_ns = now_ns + delay_ns
        self._restart_ns = due_ns if self._restart_ns is None else min(self._restart_ns, due_ns)
        return assignment

    def restore_strength(self, now_ns: int) -> None:
        """Start as many workers as are missing, if that is due."""
        if self._restart_ns is None or self._restart_ns > now_ns:
            return
        self._restart_ns = None
        while len(self._starting) + len(self._idle) + len(self._busy) < self._strength:
            worker = self._workers.start(can_release=self.can_release)
            if worker is None:
                self._restart_ns = now_ns + _RESTART_DELAY_NS
                return
            self.started += 1
            self._starting.add(worker)

    def start(self, now_ns: int) -> None:
        """Start all of them."""
        self._restart_ns = now_ns
        self.restore_strength(now_ns)
