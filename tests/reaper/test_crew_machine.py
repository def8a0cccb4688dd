"""The crew under whatever order of events Hypothesis can think of."""

from __future__ import annotations

import errno

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from oomreaper.model.event import EventKind
from oomreaper.model.identity import Identity
from oomreaper.model.memory import VictimMemory
from oomreaper.model.outcome import OutcomeKind
from oomreaper.reaper.crew import Crew
from oomreaper.reaper.handoff import Entry
from oomreaper.reaper.jobs import Helped, Inquired, Job, JobKind, Probed, Report
from oomreaper.reaper.settings import Settings
from tests.reaper.fakes import HELLO, MS, FakeWorkers, accounted, memory, scouting, struck

PIDS = st.integers(500, 505)
LEFT = st.sampled_from([None, memory(0), memory(256), memory(512)])
MRELEASE = st.sampled_from([0, errno.ESRCH, errno.EINVAL, errno.EAGAIN, errno.ENOSYS, errno.EPERM])
SIGNAL = st.sampled_from([0, 0, 0, 0, errno.ESRCH, errno.EPERM])
# The last of all outcomes comes no later than this after the last event: the budget, the inquest, the time-out.
PATIENCE_MS = 3_000


class CrewMachine(RuleBasedStateMachine):
    """Victims come; workers answer anything, late or never, or die; victims die; forks fail; time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.workers = FakeWorkers()
        self.crew = Crew(self.workers, Settings(timeout_ns=2_000 * MS, queue_limit=4))
        self.now_ns = 1_000 * MS
        self.entered: list[Identity] = []
        self.settled: list[Identity] = []
        self.served: list[Identity] = []  # something was done to them
        self.crew.start(self.now_ns)

    @rule(pid=PIDS, sharer=st.none() | PIDS)
    def submit(self, pid: int, sharer: int | None) -> None:
        """A victim is handed in, alone or with a sharer; a life that was served is never let in again."""
        sharers = () if sharer in (None, pid) else (sharer,)
        was_served = any(self.crew.has_served(Identity(each, 7)) for each in (pid, *sharers))
        entry = self.crew.submit(scouting(pid, sharers=sharers), pid, self.now_ns)
        assert entry is not Entry.QUEUED or not was_served
        if entry is Entry.QUEUED:
            self.entered.append(Identity(pid, 7))

    @precondition(lambda self: self.workers.jobs)
    @rule(data=st.data(), left=LEFT, mrelease=MRELEASE, signal=SIGNAL)
    def answer(self, data: st.DataObject, left: VictimMemory | None, mrelease: int, signal: int) -> None:
        """Some worker answers with anything that the kernel could say."""
        worker = data.draw(st.sampled_from(sorted(self.workers.jobs)))
        job = self.workers.finish(worker)
        self.crew.on_report(worker, self._report(job, left, mrelease, signal), self.now_ns)

    def _report(self, job: Job, left: VictimMemory | None, mrelease: int, signal: int) -> Report:
        match job.kind:
            case JobKind.STRIKE:
                return struck(None if signal else mrelease, left, signal=signal, at_ns=self.now_ns)
            case JobKind.PROBE:
                return Probed(left)
            case JobKind.ACCOUNT:
                return accounted(1000 if mrelease else 400, left, orphan_mib=512 if job.deep and signal else None)
            case JobKind.HELP:
                return Helped((), ("refused",) if signal else ())
            case _:
                return Inquired(())

    @precondition(lambda self: self.workers.alive)
    @rule(data=st.data(), is_sandboxed=st.booleans())
    def lose_worker(self, data: st.DataObject, is_sandboxed: bool) -> None:  # noqa: FBT001 - drawn by name
        """A worker ends by itself, idle or at work."""
        worker = data.draw(st.sampled_from(sorted(self.workers.alive)))
        self.workers.alive.discard(worker)
        self.workers.jobs.pop(worker, None)
        self.crew.on_worker_exit(worker, self.now_ns, why="by SIGKILL", is_sandboxed=is_sandboxed)

    @rule(pid=PIDS)
    def lose_victim(self, pid: int) -> None:
        """A victim, or somebody whom nobody asked about, dies."""
        self.crew.on_victim_exit(Identity(pid, 7), self.now_ns)

    @rule()
    def greet(self) -> None:
        """New workers report for duty."""
        for worker in sorted(self.workers.alive - set(self.workers.jobs)):
            self.crew.on_report(worker, HELLO, self.now_ns)

    @rule(can_start=st.booleans())
    def fork(self, can_start: bool) -> None:  # noqa: FBT001 - drawn by name
        """The machine has, or has not, what a fork needs."""
        self.workers.can_start = can_start

    @rule(data=st.data())
    def run_worker(self, data: st.DataObject) -> None:
        """Some workers run rather than wait in the kernel."""
        if self.workers.alive:
            self.workers.running = set(data.draw(st.lists(st.sampled_from(sorted(self.workers.alive)))))

    @rule(milliseconds=st.integers(0, 250))
    def wait(self, milliseconds: int) -> None:
        """Time passes."""
        self.now_ns += milliseconds * MS
        self.crew.on_time(self.now_ns)

    @invariant()
    def every_victim_has_at_most_one_outcome(self) -> None:
        """Settled as often as let in, never one that was not; let in again only when nothing was done to it."""
        for event in self.crew.take_events():
            if event.kind is EventKind.SETTLED:
                assert event.identity is not None
                assert event.outcome is not None
                self.settled.append(event.identity)
                assert self.settled.count(event.identity) <= self.entered.count(event.identity)
                assert event.outcome.attempts <= 40
                if event.outcome.kind not in (OutcomeKind.REFUSED, OutcomeKind.GONE):
                    assert event.identity not in self.served
                    self.served.append(event.identity)

    @invariant()
    def hands_are_bounded(self) -> None:
        """Never more workers than wanted, whatever was lost."""
        assert len(self.workers.alive) <= 3

    def teardown(self) -> None:
        """Left to itself, with forks that succeed and silent workers, every victim has its outcome in time."""
        self.workers.can_start = True
        self.workers.running.clear()
        end_ns = self.now_ns + PATIENCE_MS * MS * (1 + len(self.entered))
        while sorted(self.settled) != sorted(self.entered) and self.now_ns < end_ns:
            self.greet()
            due_ns = self.crew.next_deadline_ns()
            assert due_ns is not None, "a victim is open and nothing is due"
            self.now_ns = max(self.now_ns + MS, due_ns)
            self.crew.on_time(self.now_ns)
            self.every_victim_has_at_most_one_outcome()
            self.hands_are_bounded()

        assert sorted(self.settled) == sorted(self.entered)


CrewMachine.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestCrewMachine = CrewMachine.TestCase
