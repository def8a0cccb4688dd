"""The crew with workers that answer as a test says: every row of the errno table, every loss, every deadline."""

from __future__ import annotations

import errno

import pytest

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.event import Event, EventKind
from oomreaper.model.identity import Identity
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.model.process import Scouting, ThreadReport
from oomreaper.reaper.crew import Crew, Settings
from oomreaper.reaper.handoff import Entry
from oomreaper.reaper.jobs import Helped, Inquired, Job, JobKind, Probed, Report, Scouted
from tests.reaper.fakes import HELLO, MIB, MS, FakeWorkers, accounted, memory, scouting, struck

START_NS = 1000 * MS


class Stage:
    """A crew, its workers and the time, in a test's hands."""

    def __init__(self, **settings: object) -> None:
        self.workers = FakeWorkers()
        self.crew = Crew(self.workers, Settings(**settings))  # type: ignore[arg-type] # each test names its fields
        self.now_ns = START_NS
        self.events: list[Event] = []
        self.crew.start(self.now_ns)
        self.greet()

    def greet(self) -> None:
        """Every new worker reports for duty."""
        for worker in sorted(self.workers.alive):
            if worker not in self.workers.jobs:
                self.crew.on_report(worker, HELLO, self.now_ns)

    def submit(self, victim: Scouting | None = None) -> Entry:
        """Hand a victim in."""
        return self.crew.submit(victim or scouting(), 9, self.now_ns)

    def who_has(self, kind: JobKind) -> int | None:
        """The worker that has a job of that kind."""
        return next((worker for worker, (job, _) in self.workers.jobs.items() if job.kind is kind), None)

    def job(self, kind: JobKind) -> Job:
        """The job of that kind that is out."""
        worker = self.who_has(kind)
        assert worker is not None, f"no {kind} is out"
        return self.workers.jobs[worker][0]

    def answer(self, kind: JobKind, report: Report) -> None:
        """Let the worker that has such a job answer."""
        worker = self.who_has(kind)
        assert worker is not None, f"no {kind} is out"
        self.workers.finish(worker)
        self.crew.on_report(worker, report, self.now_ns)
        self.pass_ms(0)

    def die(self, pid: int) -> None:
        """The victim's last thread ends."""
        self.crew.on_victim_exit(Identity(pid, 7), self.now_ns)
        self.pass_ms(0)

    def pass_ms(self, milliseconds: float) -> None:
        """Let time pass, stopping at each deadline."""
        end_ns = self.now_ns + int(milliseconds * MS)
        while True:
            due_ns = self.crew.next_deadline_ns()
            if due_ns is None or due_ns > end_ns:
                break
            self.now_ns = max(self.now_ns, due_ns)
            self.crew.on_time(self.now_ns)
            self.greet()
        self.now_ns = end_ns
        self.crew.on_time(self.now_ns)
        self.greet()

    def outcome(self) -> Outcome:
        """The one outcome so far."""
        (outcome,) = self.outcomes()
        return outcome

    def outcomes(self) -> list[Outcome]:
        """All outcomes so far."""
        self.events += self.crew.take_events()
        return [event.outcome for event in self.events if event.outcome is not None]


def test_a_healthy_victim_is_reaped_at_the_first_attempt() -> None:
    """Announced before the signal, killed, settled: in this order, with the figures of the worker's clock."""
    stage = Stage()
    assert stage.submit() is Entry.QUEUED
    stage.answer(JobKind.STRIKE, struck(0, None, at_ns=START_NS))

    outcome = stage.outcome()

    assert [event.kind for event in stage.events] == [EventKind.ANNOUNCE, EventKind.KILLED, EventKind.SETTLED]
    assert outcome.kind is OutcomeKind.REAPED
    assert outcome.attempts == 1
    assert outcome.freed_bytes == outcome.anon_before_bytes == 512 * MIB
    assert outcome.elapsed_ms == pytest.approx(2.0)


def test_the_record_counts_what_was_held_at_the_signal() -> None:
    """A victim that grew after the look at it: the record has what it held right before the signal, and its moment."""
    stage = Stage()
    stage.submit()
    stage.pass_ms(50)
    stage.answer(JobKind.STRIKE, struck(0, None, at_ns=START_NS)._replace(before=memory(900)))

    outcome = stage.outcome()
    killed = next(event for event in stage.events if event.kind is EventKind.KILLED)

    assert outcome.freed_bytes == outcome.anon_before_bytes == 900 * MIB
    assert killed.monotonic_ns == START_NS


def test_zero_with_memory_still_held_is_no_success() -> None:
    """The return code is never believed: 0 ten times over held memory is UNREAPABLE, at 100 ms each."""
    stage = Stage()
    stage.submit()
    begun_ns = stage.now_ns
    for attempt in range(1, 11):
        assert stage.crew.statistics().attempts == attempt
        stage.answer(JobKind.STRIKE, struck(0, memory(512)))
        if attempt < 10:
            stage.pass_ms(99)
            assert stage.who_has(JobKind.STRIKE) is None
            stage.pass_ms(1)
    stage.answer(JobKind.INQUEST, Inquired((ThreadReport(500, b"victim", "D", "rwsem_down", None, ()),)))

    outcome = stage.outcome()

    assert outcome.kind is OutcomeKind.UNREAPABLE
    assert outcome.attempts == 10
    assert outcome.freed_bytes == 0
    assert outcome.threads[0].wchan == "rwsem_down"
    assert stage.now_ns - begun_ns == 900 * MS


def test_memory_that_still_moves_extends_the_budget() -> None:
    """A big victim that is coming back slowly is not given up after ten attempts."""
    stage = Stage()
    stage.submit(scouting(mib=64 * 1024))
    for attempt in range(1, 16):
        stage.answer(JobKind.STRIKE, struck(errno.EAGAIN, memory(64 * 1024 - attempt * 1024)))
        stage.pass_ms(100)

    assert stage.outcomes() == []
    stage.answer(JobKind.STRIKE, struck(0, memory(0)))
    assert stage.outcome().kind is OutcomeKind.REAPED
    assert stage.outcome().attempts == 16


def test_the_timeout_ends_a_victim_that_moves_for_ever() -> None:
    """However its memory moves, a victim has an outcome when the time allowed is over."""
    stage = Stage(timeout_ns=500 * MS)
    stage.submit(scouting(mib=64 * 1024))
    for attempt in range(1, 5):
        stage.answer(JobKind.STRIKE, struck(errno.EAGAIN, memory(64 * 1024 - attempt * 1024), at_ns=START_NS))
        stage.pass_ms(100)
    stage.pass_ms(200)
    stage.pass_ms(300)

    assert stage.outcome().kind is OutcomeKind.UNREAPABLE
    assert "time allowed" in stage.outcome().reason


@pytest.mark.parametrize("answer", [errno.EINVAL, errno.EAGAIN])
def test_einval_and_eagain_are_tried_again(answer: int) -> None:
    """A sharer that lives or a range that is busy: the next attempt, 100 ms later, may do it."""
    stage = Stage()
    stage.submit()
    stage.answer(JobKind.STRIKE, struck(answer, memory(512)))
    stage.pass_ms(100)
    assert stage.job(JobKind.STRIKE).rescan == (answer == errno.EINVAL)
    stage.answer(JobKind.STRIKE, struck(0, memory(0)))

    assert stage.outcome().kind is OutcomeKind.REAPED
    assert stage.outcome().attempts == 2


def test_esrch_and_memory_back_is_exited() -> None:
    """A victim that won the race is waited for: its death and the fall of the charge make it EXITED."""
    stage = Stage()
    stage.submit()
    stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None))
    stage.answer(JobKind.ACCOUNT, accounted(900))  # on its way
    assert stage.outcomes() == []
    stage.die(500)
    stage.answer(JobKind.ACCOUNT, accounted(480))

    assert stage.outcome().kind is OutcomeKind.EXITED
    assert stage.outcome().freed_bytes == 512 * MIB
    assert not stage.outcome().still_dying


def test_esrch_and_memory_still_charged_is_lost() -> None:
    """An address space that is detached and whose memory stays charged to nobody alive is LOST, its holder named."""
    stage = Stage()
    stage.submit()
    stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None))
    stage.die(500)
    for _ in range(12):
        while (worker := stage.who_has(JobKind.ACCOUNT)) is not None:
            is_deep = stage.workers.jobs[worker][0].deep
            stage.answer(JobKind.ACCOUNT, accounted(1000, orphan_mib=512 if is_deep else None))
        stage.pass_ms(100)

    assert stage.outcome().kind is OutcomeKind.LOST
    assert stage.outcome().freed_bytes == 0
    assert "77 (gdb)" in stage.outcome().reason


def test_esrch_with_memory_taken_up_by_others_is_exited() -> None:
    """A charge that did not fall is no proof: without orphaned memory the victim's has come back and was taken."""
    stage = Stage()
    stage.submit()
    stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None))
    stage.die(500)
    for _ in range(12):
        while (worker := stage.who_has(JobKind.ACCOUNT)) is not None:
            is_deep = stage.workers.jobs[worker][0].deep
            stage.answer(JobKind.ACCOUNT, accounted(1000, orphan_mib=3 if is_deep else None))
        stage.pass_ms(100)

    assert stage.outcome().kind is OutcomeKind.EXITED
    assert "others took" in stage.outcome().reason


def test_a_blocked_worker_is_replaced_and_the_next_victim_served() -> None:
    """mmap_lock held: each attempt loses its worker after 100 ms; given up within 1.3 s, all made good."""
    stage = Stage()
    stage.submit(scouting(500))
    begun_ns = stage.now_ns
    stage.submit(scouting(600))
    strikes = [worker for worker, (job, _) in stage.workers.jobs.items() if job.pid == 600]
    stage.workers.finish(strikes[0])
    stage.crew.on_report(strikes[0], struck(0, memory(0)), stage.now_ns)
    assert [outcome.pid for outcome in stage.outcomes()] == [600]
    while len(stage.outcomes()) < 2:
        if stage.who_has(JobKind.PROBE) is not None:
            stage.answer(JobKind.PROBE, Probed(memory(512)))
        elif stage.who_has(JobKind.INQUEST) is not None:
            stage.answer(JobKind.INQUEST, Inquired(()))
        elif stage.who_has(JobKind.HELP) is not None:
            stage.answer(JobKind.HELP, Helped((), ()))
        else:
            stage.pass_ms(1)
    outcome = stage.outcomes()[1]

    assert outcome.kind is OutcomeKind.UNREAPABLE
    assert outcome.attempts == 10
    assert "mmap_lock" in outcome.reason
    assert stage.now_ns - begun_ns <= 1300 * MS
    assert stage.crew.statistics().workers_lost == 10
    assert len(stage.workers.alive) == 3
    assert stage.crew.is_ready


def test_an_overdue_attempt_with_moving_memory_keeps_its_worker() -> None:
    """A 64 GiB victim legitimately takes seconds: while its memory moves the worker is left to it."""
    stage = Stage()
    stage.submit(scouting(mib=64 * 1024))
    for step in range(1, 40):
        stage.pass_ms(100)
        stage.answer(JobKind.PROBE, Probed(memory(64 * 1024 - step * 1024)))
    stage.answer(JobKind.STRIKE, struck(0, None))

    assert stage.outcome().kind is OutcomeKind.REAPED
    assert stage.outcome().attempts == 1
    assert stage.workers.dismissed == []


def test_a_starved_worker_is_not_taken_for_a_stuck_one() -> None:
    """A worker that runs, or waits for a CPU, is not killed for being slow."""
    stage = Stage()
    stage.submit()
    worker = stage.who_has(JobKind.STRIKE)
    assert worker is not None
    stage.workers.running.add(worker)
    stage.pass_ms(1500)

    assert stage.workers.dismissed == []
    assert stage.who_has(JobKind.STRIKE) == worker


def test_without_spare_and_without_forks_the_crew_goes_on_when_it_can() -> None:
    """No memory to fork: the loss is carried, retried every 100 ms, and made good as soon as a fork succeeds."""
    stage = Stage(workers=1, spares=0)
    stage.submit()
    stage.workers.can_start = False
    stage.pass_ms(450)
    assert stage.workers.alive == set()
    stage.workers.can_start = True
    stage.pass_ms(100)
    stage.answer(JobKind.STRIKE, struck(0, memory(0)))

    assert stage.outcome().kind is OutcomeKind.REAPED


def test_a_victim_for_which_no_worker_can_be_had_is_refused_in_time() -> None:
    """Nobody is left without an outcome: when no worker can ever be started, nothing was signalled and it says so."""
    stage = Stage(workers=1, spares=0, timeout_ns=500 * MS)
    for worker in list(stage.workers.alive):
        stage.workers.alive.discard(worker)
        stage.crew.on_worker_exit(worker, stage.now_ns, why="by SIGKILL", is_sandboxed=False)
    stage.workers.can_start = False
    stage.submit()
    stage.pass_ms(600)

    assert stage.outcome().kind is OutcomeKind.REFUSED
    assert "no worker" in stage.outcome().reason


def test_a_sandbox_that_kills_workers_turns_reaping_off() -> None:
    """SIGSYS: the next workers neither probe nor call process_mrelease, and the victim is killed without it."""
    stage = Stage()
    stage.submit()
    worker = stage.who_has(JobKind.STRIKE)
    assert worker is not None
    stage.workers.alive.discard(worker)
    stage.workers.jobs.pop(worker)
    stage.crew.on_worker_exit(worker, stage.now_ns, why="by SIGSYS", is_sandboxed=True)
    stage.pass_ms(100)

    assert stage.workers.started_with[-1] is False
    assert stage.job(JobKind.STRIKE).can_release is False
    stage.answer(JobKind.STRIKE, struck(None, memory(512)))
    stage.die(500)
    while stage.who_has(JobKind.ACCOUNT) is not None:
        stage.answer(JobKind.ACCOUNT, accounted(480))
    assert stage.outcome().kind is OutcomeKind.EXITED
    assert "without reaping" in stage.outcome().reason


def test_without_process_mrelease_a_stuck_victim_is_unreapable() -> None:
    """Killed without reaping, still holding its memory: given up, and marked as a matter of permission."""
    stage = Stage()
    stage.submit()
    stage.answer(JobKind.STRIKE, struck(errno.ENOSYS, memory(512)))
    while stage.who_has(JobKind.INQUEST) is None:
        if stage.who_has(JobKind.ACCOUNT) is not None:
            stage.answer(JobKind.ACCOUNT, accounted(1000, memory(512)))
        stage.pass_ms(50)
    stage.answer(JobKind.INQUEST, Inquired(()))

    assert stage.outcome().kind is OutcomeKind.UNREAPABLE
    assert stage.outcome().needs_permission


@pytest.mark.parametrize(
    ("number", "kind", "needs_permission"),
    [(errno.ESRCH, OutcomeKind.GONE, False), (errno.EPERM, OutcomeKind.REFUSED, True)],
)
def test_a_signal_that_was_not_sent(number: int, kind: OutcomeKind, needs_permission: bool) -> None:  # noqa: FBT001 - a table
    """Gone before the signal, or not ours to signal: nothing happened to it, and the record says so."""
    stage = Stage()
    stage.submit()
    stage.answer(JobKind.STRIKE, struck(None, None, signal=number))

    assert stage.outcome().kind is kind
    assert stage.outcome().elapsed_ms is None
    assert stage.outcome().needs_permission is needs_permission


def test_a_spared_dump_is_waited_for() -> None:
    """coredump=wait: no signal while it dumps, beyond ten attempts, until its own end."""
    stage = Stage(spare_dump=True)
    stage.submit(scouting(is_dumping_core=True))
    for _ in range(20):
        assert stage.job(JobKind.STRIKE).spare_dump
        stage.answer(JobKind.STRIKE, struck(None, memory(512), signal=None, is_dumping_core=True))
        stage.pass_ms(100)
    stage.die(500)
    stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None))
    while stage.who_has(JobKind.ACCOUNT) is not None:
        stage.answer(JobKind.ACCOUNT, accounted(480))

    assert stage.outcome().kind is OutcomeKind.EXITED


def test_one_address_space_is_taken_once() -> None:
    """By whichever pid it is named, also after it was served."""
    stage = Stage()
    assert stage.submit(scouting(500, sharers=(501,))) is Entry.QUEUED
    assert stage.submit(scouting(501, sharers=(500,))) is Entry.ALREADY_IN
    stage.answer(JobKind.STRIKE, struck(0, memory(0)))

    assert stage.submit(scouting(500, sharers=(501,))) is Entry.ALREADY_IN
    assert stage.crew.has_served(Identity(500, 7))
    stage.crew.forget(Identity(500, 7))
    stage.crew.forget(Identity(501, 7))
    assert not stage.crew.has_served(Identity(501, 7))


def test_help_comes_after_the_first_attempt_and_only_to_the_living() -> None:
    """A victim that has not gone 20 ms after its reap is helped to leave; one that has gone is left alone."""
    stage = Stage()
    stage.submit()
    assert stage.who_has(JobKind.HELP) is None
    stage.answer(JobKind.STRIKE, struck(0, memory(0)))
    stage.pass_ms(19)
    assert stage.who_has(JobKind.HELP) is None
    stage.pass_ms(1)
    stage.answer(JobKind.HELP, Helped(("oom_score_adj 1000",), ()))
    assert stage.crew.is_quiet

    stage.submit(scouting(600))
    stage.answer(JobKind.STRIKE, struck(0, memory(0)))
    stage.die(600)
    stage.pass_ms(50)
    assert stage.who_has(JobKind.HELP) is None
    assert stage.crew.is_quiet


def test_a_scouting_that_blocks_gives_an_answer_in_time() -> None:
    """A look that stands on a lock loses its worker; the target gets a reason, and nothing was signalled."""
    stage = Stage()
    stage.crew.scout(500, 9, stage.now_ns)
    stage.pass_ms(1100)

    assert stage.crew.take_scouted() == [(9, Scouted(None, "a look at it did not come back"))]
    assert stage.crew.statistics().workers_lost == 1


def test_an_answer_that_was_not_asked_for_is_our_bug() -> None:
    """A worker that answers a strike with an inquest is broken; it is not papered over."""
    stage = Stage()
    stage.submit()
    with pytest.raises(BrokenPromiseError, match="strike"):
        stage.answer(JobKind.STRIKE, Helped((), ()))


def test_more_victims_than_slots_wait_their_turn() -> None:
    """Two at a time, in order of submission, all served."""
    stage = Stage()
    for pid in range(500, 510):
        assert stage.submit(scouting(pid)) is Entry.QUEUED
    served = []
    while stage.workers.jobs:
        assert len(stage.workers.jobs) <= 2
        worker = next(iter(stage.workers.jobs))
        served.append(stage.workers.jobs[worker][0].pid)
        stage.workers.finish(worker)
        stage.crew.on_report(worker, struck(0, memory(0)), stage.now_ns)

    assert served == list(range(500, 510))
    assert len(stage.outcomes()) == 10


def test_the_record_of_a_user_of_shared_memory_waits_a_moment_for_its_end() -> None:
    """Shared memory comes back with its last user: while the victim goes, nobody takes a second one for lack of it."""
    stage = Stage()
    stage.submit(scouting()._replace(memory=memory(64, shmem_mib=150)))
    stage.pass_ms(0)
    stage.answer(JobKind.STRIKE, struck(at_ns=stage.now_ns))
    before = stage.outcomes()
    stage.pass_ms(15)
    stage.crew.on_victim_exit(Identity(500, 7), stage.now_ns)

    assert before == []
    assert (stage.outcome().kind, stage.outcome().still_dying) == (OutcomeKind.REAPED, False)
    assert stage.outcome().elapsed_ms == 2  # as measured when its own memory was back


def test_the_record_of_a_stuck_user_of_shared_memory_waits_no_longer() -> None:
    """One that does not go: its record goes out after 200 ms, and says that it is still dying and what it keeps."""
    stage = Stage()
    stage.submit(scouting()._replace(memory=memory(64, shmem_mib=150)))
    stage.pass_ms(0)
    stage.answer(JobKind.STRIKE, struck(at_ns=stage.now_ns))
    stage.pass_ms(19)
    before = stage.outcomes()
    stage.pass_ms(182)

    assert before == []
    assert (stage.outcome().kind, stage.outcome().still_dying) == (OutcomeKind.REAPED, True)
    assert "150 MiB of shared memory" in stage.outcome().reason
