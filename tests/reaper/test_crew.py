"""The crew with workers that answer as a test says: every row of the errno table, every loss, every deadline."""

from __future__ import annotations

import errno

import pytest

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.event import Event, EventKind
from oomreaper.model.identity import Identity
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.model.process import Scouting, ThreadReport
from oomreaper.reaper.crew import Crew
from oomreaper.reaper.handoff import Entry
from oomreaper.reaper.jobs import Accounted, CouldNotLook, Helped, Inquired, Job, JobKind, Probed, Report, Scouted
from oomreaper.reaper.settings import Settings
from tests.reaper.fakes import HELLO, MIB, MS, FakeWorkers, accounted, charged, memory, scouting, struck

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

    def lose(self, kind: JobKind) -> None:
        """Something kills the worker that has such a job."""
        worker = self.who_has(kind)
        assert worker is not None, f"no {kind} is out"
        self.workers.alive.discard(worker)
        self.workers.jobs.pop(worker)
        self.crew.on_worker_exit(worker, self.now_ns, why="by SIGKILL", is_sandboxed=False)
        self.pass_ms(0)

    def kinds(self) -> list[EventKind]:
        """What was told so far, but for warnings."""
        self.events += self.crew.take_events()
        return [event.kind for event in self.events if event.kind is not EventKind.WARNING]

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


@pytest.mark.parametrize(("orphan_mib", "kind"), [(0, OutcomeKind.EXITED), (512, OutcomeKind.LOST)])
def test_where_only_the_machine_counts_a_deep_look_has_the_last_word(orphan_mib: float, kind: OutcomeKind) -> None:
    """No memory cgroup of its own: the machine's count falls when a bystander ends, too; nothing is claimed by it."""
    whole = charged()._replace(memcg_directory=None, memcg_bytes=None)
    fallen = whole._replace(machine_anon_bytes=whole.machine_anon_bytes - 600 * MIB)
    stage = Stage()
    stage.submit(scouting()._replace(charged=whole))
    stage.die(500)
    stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None))
    deep = []
    for _ in range(30):
        if (worker := stage.who_has(JobKind.ACCOUNT)) is not None:
            deep.append(stage.workers.jobs[worker][0].deep)
            seen = fallen._replace(orphan_bytes=int(orphan_mib * MIB)) if deep[-1] else fallen
            stage.answer(JobKind.ACCOUNT, Accounted(None, seen))
        else:
            stage.pass_ms(100)

    assert stage.outcome().kind is kind
    assert deep[-1]
    assert deep.count(True) == (1 if kind is OutcomeKind.EXITED else 10)


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


def test_a_strike_whose_worker_dies_is_taken_up_at_once() -> None:
    """Nobody waits 100 ms for what was no answer, it is no new attempt, and no signal is told that may not be out."""
    stage = Stage()
    stage.submit()
    for _ in range(2):
        stage.pass_ms(3)
        stage.lose(JobKind.STRIKE)
        assert stage.who_has(JobKind.STRIKE) is not None
        assert stage.kinds() == [EventKind.ANNOUNCE]
    stage.pass_ms(3)
    stage.answer(JobKind.STRIKE, struck(0, None, at_ns=stage.now_ns))

    assert stage.kinds() == [EventKind.ANNOUNCE, EventKind.KILLED, EventKind.SETTLED]
    assert stage.outcome().kind is OutcomeKind.REAPED
    assert stage.outcome().attempts == 1


def test_one_that_has_gone_by_a_strike_that_was_lost_is_no_stranger() -> None:
    """The lost worker had signalled it: killed, from the moment in which that strike began, and never called gone."""
    stage = Stage()
    stage.submit()
    stage.lose(JobKind.STRIKE)
    stage.pass_ms(5)
    stage.die(500)
    stage.answer(JobKind.STRIKE, struck(None, None, signal=errno.ESRCH))
    while stage.who_has(JobKind.ACCOUNT) is not None:
        stage.answer(JobKind.ACCOUNT, accounted(480))
    outcome = stage.outcome()
    killed = next(event for event in stage.events if event.kind is EventKind.KILLED)

    assert outcome.kind is OutcomeKind.EXITED
    assert killed.monotonic_ns == START_NS


def test_a_sharer_that_was_killed_for_one_that_has_gone_is_in_the_record() -> None:
    """The victim ended by itself between the two signals (seed 99564 of the simulator): who died is told."""
    stage = Stage()
    stage.submit()
    struck_sharer = struck(None, None, signal=errno.ESRCH)._replace(sharers_killed=(Identity(600, 7),))
    stage.die(500)
    stage.answer(JobKind.STRIKE, struck_sharer)
    while stage.who_has(JobKind.ACCOUNT) is not None:
        stage.answer(JobKind.ACCOUNT, accounted(480))
        stage.pass_ms(100)

    assert stage.outcome().kind is OutcomeKind.EXITED
    assert stage.outcome().sharers == (600,)
    assert stage.kinds() == [EventKind.ANNOUNCE, EventKind.KILLED, EventKind.SETTLED]


def test_strikes_that_are_all_lost_end_with_the_budget_and_are_told() -> None:
    """Each strike is its worker's end: ten attempts of 100 ms, however many workers they cost, then an outcome."""
    stage = Stage()
    stage.submit()
    begun_ns = stage.now_ns
    while stage.who_has(JobKind.INQUEST) is None:
        if stage.who_has(JobKind.STRIKE) is not None:
            stage.lose(JobKind.STRIKE)
        elif stage.who_has(JobKind.HELP) is not None:
            stage.answer(JobKind.HELP, Helped((), ()))
        stage.pass_ms(1)
    stage.answer(JobKind.INQUEST, Inquired(()))

    assert stage.outcome().kind is OutcomeKind.UNREAPABLE
    assert stage.outcome().attempts == 10
    assert stage.kinds() == [EventKind.ANNOUNCE, EventKind.KILLED, EventKind.SETTLED]
    assert 900 * MS <= stage.now_ns - begun_ns <= 1300 * MS
    assert stage.crew.statistics().workers_lost > 100


@pytest.mark.parametrize(("has_victim", "most_ms"), [(True, 5), (False, 100)])
def test_an_idle_worker_that_dies_is_replaced_sooner_while_somebody_is_being_reaped(
    has_victim: bool,  # noqa: FBT001 - a table
    most_ms: int,
) -> None:
    """A hundred ms later as a rule, five while a victim is open; and no later loss puts a start off that is due."""
    stage = Stage(workers=1, spares=2)
    if has_victim:
        stage.submit()
    for _ in range(2):
        idle = next(worker for worker in stage.workers.alive if worker not in stage.workers.jobs)
        stage.workers.alive.discard(idle)
        stage.crew.on_worker_exit(idle, stage.now_ns, why="by SIGKILL", is_sandboxed=False)
        stage.now_ns += 2 * MS
    stage.pass_ms(most_ms - 5)
    before = len(stage.workers.alive)
    stage.pass_ms(1)

    assert (before, len(stage.workers.alive)) == (1, 3)


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


@pytest.mark.parametrize("is_known_to_leave", [True, False])
def test_help_that_had_to_wait_for_a_worker_is_not_sent_after_one_who_has_gone(
    is_known_to_leave: bool,  # noqa: FBT001 - a table
) -> None:
    """No pidfd that may be closed by then travels with a job; seed 52807 of the simulator's check found one."""
    stage = Stage(workers=1, spares=0)
    stage.submit()
    stage.answer(JobKind.STRIKE, struck(0, memory(0)))
    stage.crew.scout(700, 70, stage.now_ns)  # keeps the one worker busy
    stage.pass_ms(20)
    assert stage.who_has(JobKind.HELP) is None
    if is_known_to_leave:
        stage.die(500)
    stage.answer(JobKind.SCOUT, Scouted(None))

    assert (stage.who_has(JobKind.HELP) is None) is is_known_to_leave


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


SHARER = Identity(501, 7)
MISSED = struck(None, memory(512), signal=None)._replace(missed=(501,))


def test_a_victim_whose_sharer_was_missed_is_spared_twice_and_no_more() -> None:
    """The two attempts that may wait count as attempts, and say so; the third strikes all the same."""
    stage = Stage()
    stage.submit(scouting(sharers=(501,)))
    may_wait = []
    for _ in range(2):
        may_wait.append(stage.job(JobKind.STRIKE).can_wait)
        stage.answer(JobKind.STRIKE, MISSED)
        stage.pass_ms(100)
    third = stage.job(JobKind.STRIKE)

    assert may_wait == [True, True]
    assert not third.can_wait
    assert third.sharers == (SHARER,)
    assert third.held_bytes == 512 * MIB
    assert stage.outcomes() == []
    assert EventKind.KILLED not in [event.kind for event in stage.events]


def test_a_sharer_that_was_missed_is_never_taken_for_dead() -> None:
    """ESRCH of the victim says nothing while a sharer was missed: looked for to the last, then given up, and said."""
    stage = Stage()
    stage.submit(scouting(sharers=(501,)))
    while stage.who_has(JobKind.INQUEST) is None:
        if stage.who_has(JobKind.STRIKE) is not None:
            assert stage.job(JobKind.STRIKE).sharers == (SHARER,)
            stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None, at_ns=stage.now_ns)._replace(missed=(501,)))
        stage.pass_ms(10)
    stage.answer(JobKind.INQUEST, Inquired(()))

    assert stage.outcome().kind is OutcomeKind.UNREAPABLE
    assert "could not be looked at: 501" in stage.outcome().reason


def test_a_sharer_that_is_found_at_last_ends_it_well() -> None:
    """The victim has gone; an attempt that finds the sharer reaps through it, and the memory is back."""
    stage = Stage()
    stage.submit(scouting(sharers=(501,)))
    stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None)._replace(missed=(501,)))
    stage.pass_ms(100)
    stage.answer(JobKind.STRIKE, struck(0, memory(0))._replace(sharers_killed=(SHARER,)))

    assert stage.outcome().kind is OutcomeKind.REAPED
    assert stage.outcome().sharers == (501,)


def test_a_sharer_that_does_not_share_any_more_is_let_go() -> None:
    """One who was looked at and not killed has left the memory, by exec: no later attempt names it."""
    stage = Stage()
    stage.submit(scouting(sharers=(501, 502)))
    stage.answer(JobKind.STRIKE, struck(errno.EAGAIN, memory(512))._replace(sharers_killed=(SHARER,)))
    stage.pass_ms(100)

    assert stage.job(JobKind.STRIKE).sharers == (SHARER,)


def test_more_sharers_than_a_message_holds_are_found_by_a_look_at_everybody() -> None:
    """A thousand are named, and the rest looked for."""
    stage = Stage()
    stage.submit(scouting(sharers=tuple(range(501, 2001))))

    job = stage.job(JobKind.STRIKE)

    assert len(job.sharers) == 1000
    assert job.rescan


def test_a_sharer_whom_nobody_found_is_no_success() -> None:
    """EINVAL, then the victim goes and nothing falls: who shares its memory may hold it, and that is said."""
    stage = Stage()
    stage.submit()
    stage.answer(JobKind.STRIKE, struck(errno.EINVAL, memory(512)))
    stage.pass_ms(100)
    stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None))
    stage.die(500)
    while stage.who_has(JobKind.INQUEST) is None:
        while (worker := stage.who_has(JobKind.ACCOUNT)) is not None:
            is_deep = stage.workers.jobs[worker][0].deep
            stage.answer(JobKind.ACCOUNT, accounted(1000, orphan_mib=3 if is_deep else None))
        stage.pass_ms(100)
    stage.answer(JobKind.INQUEST, Inquired(()))

    assert stage.outcome().kind is OutcomeKind.UNREAPABLE
    assert "EINVAL" in stage.outcome().reason


def test_a_dead_victim_s_memory_still_moves_while_a_sharer_tears_it_down() -> None:
    """Its own death ends nothing where others shared it: the record waits until nothing falls any more."""
    stage = Stage()
    stage.submit(scouting(sharers=(501,)))
    stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None)._replace(sharers_killed=(SHARER,)))
    stage.die(500)
    stage.answer(JobKind.ACCOUNT, accounted(700))
    before = stage.outcomes()
    stage.pass_ms(100)
    stage.answer(JobKind.ACCOUNT, accounted(488))
    stage.pass_ms(100)
    stage.answer(JobKind.ACCOUNT, accounted(488))

    assert before == []
    assert stage.outcome().kind is OutcomeKind.EXITED


def _leave(stage: Stage, deep_answers: list[Report]) -> Outcome:
    """A victim that has gone while its charge does not fall, with these answers to the deep looks."""
    stage.submit()
    stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None))
    stage.die(500)
    while not stage.outcomes():
        if (worker := stage.who_has(JobKind.ACCOUNT)) is not None:
            is_deep = stage.workers.jobs[worker][0].deep
            stage.answer(JobKind.ACCOUNT, deep_answers.pop(0) if is_deep else accounted(1000))
        elif stage.who_has(JobKind.INQUEST) is not None:
            stage.answer(JobKind.INQUEST, Inquired(()))
        stage.pass_ms(10)
    return stage.outcome()


@pytest.mark.parametrize(
    ("orphan_mib", "kind"), [(512, OutcomeKind.LOST), (3, OutcomeKind.EXITED)], ids=["pinned", "gone"]
)
def test_a_deep_look_that_fails_is_made_again(orphan_mib: int, kind: OutcomeKind) -> None:
    """Four failures in a row change nothing of what the fifth look says."""
    stage = Stage()

    outcome = _leave(stage, [*[CouldNotLook("ENOMEM")] * 4, accounted(1000, orphan_mib=orphan_mib)])

    assert outcome.kind is kind


def test_deep_looks_that_all_fail_are_said() -> None:
    """Five failures: what became of the memory is not known, and the record says that and no more."""
    stage = Stage()

    outcome = _leave(stage, [CouldNotLook("ENOMEM")] * 5)

    assert outcome.kind is OutcomeKind.UNREAPABLE
    assert "what became of its memory could not be told: could not look at it: ENOMEM" in outcome.reason


def test_a_look_that_fails_at_the_end_leads_to_the_deep_one() -> None:
    """The last of the ordinary looks fails: that is no reason to give up."""
    stage = Stage()
    stage.submit()
    stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None))
    stage.die(500)
    while not stage.outcomes():
        if (worker := stage.who_has(JobKind.ACCOUNT)) is not None:
            is_deep = stage.workers.jobs[worker][0].deep
            answer: Report = accounted(1000, orphan_mib=3) if is_deep else CouldNotLook("ENOMEM")
            stage.answer(JobKind.ACCOUNT, answer)
        stage.pass_ms(10)

    assert stage.outcome().kind is OutcomeKind.EXITED


def test_who_was_killed_as_a_sharer_is_named_as_such_to_the_next_attempt() -> None:
    """The last ones of the list, after those of whom nothing is known."""
    stage = Stage()
    stage.submit(scouting(sharers=(501, 502)))
    first = stage.job(JobKind.STRIKE)
    answer = struck(errno.EAGAIN, memory(512))
    stage.answer(JobKind.STRIKE, answer._replace(sharers_killed=(SHARER,), missed=(502,)))
    stage.pass_ms(100)
    second = stage.job(JobKind.STRIKE)

    assert (first.sharers, first.killed_count) == ((SHARER, Identity(502, 7)), 0)
    assert (second.sharers, second.killed_count) == ((Identity(502, 7), SHARER), 1)


@pytest.mark.parametrize(
    ("orphan_mib", "kind"), [(512, OutcomeKind.LOST), (3, OutcomeKind.UNREAPABLE)], ids=["pinned", "perhaps shared"]
)
def test_one_who_came_after_the_look_and_holds_as_much_is_a_doubt(orphan_mib: int, kind: OutcomeKind) -> None:
    """What did not come back is not said to be others' when it may be his; memory that nobody owns is nobody's."""
    stage = Stage()
    newcomer = accounted(1000, orphan_mib=orphan_mib)._replace(newcomers=("777 (heir)",))

    outcome = _leave(stage, [newcomer])

    assert outcome.kind is kind
    assert ("777 (heir)" in outcome.reason) == (kind is OutcomeKind.UNREAPABLE)


def test_only_the_deep_look_asks_for_who_came_later() -> None:
    """By the time of the look at the victim, on the clock of start times."""
    stage = Stage()
    stage.submit(scouting()._replace(looked_ns=4711))
    asked = [stage.job(JobKind.STRIKE).looked_ns]
    stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None))
    stage.die(500)
    while not stage.outcomes():
        if stage.who_has(JobKind.ACCOUNT) is not None:
            job = stage.job(JobKind.ACCOUNT)
            asked.append(job.looked_ns)
            stage.answer(JobKind.ACCOUNT, accounted(1000, orphan_mib=3 if job.deep else None))
        stage.pass_ms(10)

    assert asked[:-1] == [None] * (len(asked) - 1)
    assert asked[-1] == 4711


def test_what_another_victim_gave_back_is_not_counted_for_one_that_is_pinned() -> None:
    """The charge fell by all that the other one held, after this one was looked at: the deep look decides."""
    stage = Stage()
    stage.submit(scouting(600))
    stage.answer(JobKind.STRIKE, struck(0, memory(0)))
    stage.submit(scouting()._replace(looked_ns=START_NS - 50 * MS))
    stage.answer(JobKind.STRIKE, struck(errno.ESRCH, None))
    stage.die(500)
    while len(stage.outcomes()) < 2:
        if stage.who_has(JobKind.ACCOUNT) is not None:
            is_deep = stage.job(JobKind.ACCOUNT).deep
            stage.answer(JobKind.ACCOUNT, accounted(488, orphan_mib=512 if is_deep else None))
        if stage.who_has(JobKind.HELP) is not None:
            stage.answer(JobKind.HELP, Helped((), ()))
        stage.pass_ms(10)

    assert [outcome.kind for outcome in stage.outcomes()] == [OutcomeKind.REAPED, OutcomeKind.LOST]
