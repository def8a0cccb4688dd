"""The crew: many victims, a few disposable workers, and nobody who waits for any of them. Pure.

What it knows: which worker does what and until when, what each victim needs next. What it refuses to know: what
a worker is (a process here, a task in the simulator), how time passes, what a pidfd is. Whoever drives it

* calls ``on_report``, ``on_worker_exit``, ``on_victim_exit`` when such a thing happens,
* calls ``on_time`` no later than ``next_deadline_ns`` says,
* collects ``take_events``.

How it works:

1. A victim goes through the hand-off into a slot; a slot is worth one worker. The spare workers make good a
   loss at once and do the looking around (PROBE, ACCOUNT, HELP, INQUEST).
2. An attempt that has not answered by its deadline stands in process_mrelease on the victim's mmap_lock, if the worker
   really waits (one that is merely starved of CPU is left alone) *and* the victim's memory does not move. Then
   only the worker's death ends it: it is dismissed, the loss counted, a spare takes the next attempt and
   a new spare is started. That is the founding commit's trylock: 10 attempts, 100 ms apart. A strike whose worker ended
   by itself (something killed it) is taken up by another at once, as part of the same attempt.
3. Whether memory is back is for ``verify`` to say. A victim whose address space is out of reach is watched
   (``leaving``) until its memory is back or found to be pinned; it holds no slot meanwhile.
4. After the first attempt, never before, a victim that lives on is helped to leave. One with a sharer who could not be
   looked at is signalled by the third attempt only, whatever it sees; he is looked for by each attempt that is left.
5. A life that was served is marked until it is over, and is never served again (MMF_OOM_SKIP).
6. What serves no victim (profiles, units, reclaim) stands in ``side_jobs`` and gets what workers are left.

What must change together: a new kind of job wants its deadline here and its row in ``jobs`` and ``worker.child``.
"""

from __future__ import annotations

import errno
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.errors import BrokenPromiseError
from oomreaper.model.event import Event, EventKind
from oomreaper.reaper import leaving, verify
from oomreaper.reaper.case import Case
from oomreaper.reaper.handoff import Entry, Handoff, finish
from oomreaper.reaper.jobs import (
    REPORT_OF_JOB,
    Accounted,
    CouldNotLook,
    Hello,
    Helped,
    Inquired,
    Job,
    JobKind,
    Probed,
    Scouted,
    Struck,
)
from oomreaper.reaper.leaving import Returns, Verdict
from oomreaper.reaper.lifecycle import Move, State
from oomreaper.reaper.roster import Assignment, Roster, Service, Workers
from oomreaper.reaper.settings import Settings, Statistics
from oomreaper.reaper.side_jobs import SideDoor, SideJobs, SideTask
from oomreaper.reaper.verify import Meaning
from oomreaper.reaper.wire import LIVES_A_MESSAGE

if TYPE_CHECKING:
    from oomreaper.model.identity import Identity
    from oomreaper.model.memory import VictimMemory
    from oomreaper.model.process import Scouting
    from oomreaper.reaper.jobs import Report
    from oomreaper.reaper.leaving import Judgement

_MS = 1_000_000
# A healthy victim is gone 0.3 to 1.5 ms after its memory (2026-11, Linux 6.18): one still there after this needs help.
_HELP_DELAY_NS = 20 * _MS
# Shared memory comes back when its last user has gone, which is at once for a victim that is merely dying; for one that
# has not gone by then the record waits no longer. As long as a watcher waits before it takes a second victim.
_SHARED_WAIT_NS = 200 * _MS
# The attempt that signals a victim though somebody who shares its memory could not be looked at. Each before it has
# looked three times; this costs a kill 200 ms at most, and what was missed is looked for by the attempts that are left.
_STRIKES_ALL_THE_SAME = 3
# How long the record of a victim that was given up may wait for the report on its threads.
_INQUEST_LIMIT_NS = 250 * _MS
# How long a worker may wait on each kind of job before it counts as stuck. A scouting compares the victim
# with every process: 10,000 of them take 30 ms on an idle machine.
_DEADLINE_NS_OF_LOOK = {
    JobKind.SCOUT: 1_000 * _MS,
    JobKind.PROBE: 100 * _MS,
    JobKind.ACCOUNT: 1_000 * _MS,
    JobKind.HELP: 1_000 * _MS,
    JobKind.INQUEST: 200 * _MS,
    JobKind.PROFILE: 100 * _MS,
    JobKind.KILL_UNIT: 1_000 * _MS,  # its passes take 500 ms at most, and a look at every process may be the last
    JobKind.RECLAIM: 1_000 * _MS,
}


class _Target(NamedTuple):
    """Somebody to be scouted, before it is a victim."""

    pid: int
    handle: int


_Subject = Case | _Target | SideTask


class Crew(SideDoor):
    """Serves victims with disposable workers. ``settings`` and the seam ``workers`` are all it stands on."""

    def __init__(self, workers: Workers, settings: Settings) -> None:
        self._settings = settings
        self._roster: Roster[_Subject] = Roster(workers, settings.workers + settings.spares)
        self._handoff = Handoff(
            slots=settings.workers, queue_limit=settings.queue_limit, mark_limit=settings.mark_limit
        )
        self._cases: dict[Identity, Case] = {}
        self._looks: deque[tuple[JobKind, Case | _Target]] = deque()
        self._returns = Returns()
        self._scouted: list[tuple[int, Scouted]] = []
        self._events: list[Event] = []
        super().__init__(SideJobs())
        self._taken = self._attempts = 0

    # -- what the driver asks ------------------------------------------------------------------------------

    def start(self, now_ns: int) -> None:
        """Start all workers; call once, before the emergency."""
        self._roster.start(now_ns)

    def scout(self, pid: int, handle: int, now_ns: int) -> None:
        """Look at a target; the answer comes out of ``take_scouted``."""
        self._looks.append((JobKind.SCOUT, _Target(pid, handle)))
        self._put_to_work(now_ns)

    def submit(self, scouting: Scouting, handle: int, now_ns: int) -> Entry:
        """Take on a victim. From here on it gets an outcome, unless the answer is ALREADY_IN or FULL."""
        case = Case(scouting, handle, now_ns)
        entry = finish(self._handoff.offer(case.candidate))
        if entry is Entry.QUEUED:
            self._taken += 1
            self._cases[case.identity] = case
            self._fill_slots(now_ns)
            self._put_to_work(now_ns)
        return entry

    def take_scouted(self) -> list[tuple[int, Scouted]]:
        """The finished looks since the last call, each with the handle of its target."""
        taken, self._scouted = self._scouted, []
        return taken

    def take_events(self) -> list[Event]:
        """What has happened since the last call, in order."""
        taken, self._events = self._events, []
        return taken

    def next_deadline_ns(self) -> int | None:
        """When ``on_time`` must be called at the latest; None: nothing is due by time."""
        due = [at for at in (self._roster.next_deadline_ns(), self._side.next_deadline_ns()) if at is not None]
        for case in self._cases.values():
            due += [at for at in (case.account_due_ns, case.help_due_ns) if at is not None]
            if case.strike_due_ns is not None and self._roster.idle:
                due.append(case.strike_due_ns)
            if not case.life.is_over:
                due.append(case.timeout_ns(self._settings.timeout_ns))
            elif not case.is_settled:
                due.append(case.inquest_limit_ns)
        return min(due, default=None)

    @property
    def is_ready(self) -> bool:
        """Whether every worker has reported for duty."""
        return self._roster.is_ready

    @property
    def is_quiet(self) -> bool:
        """Whether every victim has its outcome and no job is out."""
        return not self._cases and not self._looks and self._side.is_at_rest and self._roster.is_at_rest

    @property
    def open_victims(self) -> tuple[Identity, ...]:
        """The victims that have no outcome yet, in order of submission."""
        return tuple(case.identity for case in self._cases.values() if not case.is_settled)

    def services(self) -> dict[int, Service]:
        """What each living worker has answered so far: a worker that has done both kinds has touched what they need."""
        return dict(self._roster.services)

    def statistics(self) -> Statistics:
        """Counts since the start."""
        return Statistics(
            workers_started=self._roster.started,
            workers_lost=self._roster.lost,
            workers_idle=self._roster.idle,
            victims_taken=self._taken,
            victims_waiting=len(self._handoff.queue),
            victims_open=len(self._cases),
            attempts=self._attempts,
        )

    def reset_statistics(self) -> None:
        """Count victims and attempts from 0 again: after a rehearsal, whose victims were our own."""
        self._taken = self._attempts = 0

    def has_served(self, identity: Identity) -> bool:
        """Whether this life was served already and is not to be chosen again."""
        return identity in self._handoff.marks

    def forget(self, identity: Identity) -> None:
        """A life that was served is over for good (it has been waited for): its mark may go."""
        if identity not in self._cases:
            self._handoff.marks.clear((identity,))

    # -- what happens --------------------------------------------------------------------------------------

    def on_report(self, worker: int, report: Report, now_ns: int) -> None:
        """A worker has answered."""
        if isinstance(report, Hello):
            self._roster.greet(worker, report)
            self._put_to_work(now_ns)
            return
        assignment = self._roster.take_back(worker)
        if assignment is None:
            return
        subject, kind = assignment.subject, assignment.job.kind
        if type(report) not in (REPORT_OF_JOB[kind], CouldNotLook):
            raise BrokenPromiseError(f"a worker answered {kind} with {type(report).__name__}")
        if isinstance(subject, SideTask):
            self._side.on_report(subject, report)
        elif isinstance(report, CouldNotLook):
            self._on_could_not_look(assignment, report.problem, now_ns)
        elif isinstance(subject, _Target):
            assert isinstance(report, Scouted)
            self._scouted.append((subject.handle, report))
        else:
            self._on_answer(subject, assignment, report, now_ns)
        self._put_to_work(now_ns)

    def on_worker_exit(self, worker: int, now_ns: int, *, why: str, is_sandboxed: bool) -> None:
        """A worker has ended by itself. ``is_sandboxed``: a seccomp filter killed it (SIGSYS)."""
        assignment = self._roster.strike_off(worker, now_ns, is_needed=bool(self._cases or self._looks))
        self._warn(None, f"a worker ended: {why}", now_ns)
        if is_sandboxed:
            self._roster.can_release = False
        if assignment is not None:
            self._on_worker_lost(assignment, f"its worker ended: {why}", now_ns)
        self._put_to_work(now_ns)

    def on_victim_exit(self, identity: Identity, now_ns: int) -> None:
        """Every thread of a victim has ended (its pidfd became readable)."""
        for _, subject in self._looks:  # also of one that is off the books, whose pidfd is closed when this returns
            if isinstance(subject, Case) and subject.identity == identity:
                subject.has_died = True
        case = self._cases.get(identity)
        if case is None:
            return
        case.has_died = True
        case.help_due_ns = None
        if case.life.is_over:
            if case.life.state is State.REAPED:
                case.inquest_limit_ns = now_ns  # its shared memory was all that was waited for
            self._close(case, now_ns)
        elif case.life.state is State.LEAVING:
            case.account_due_ns = now_ns
        elif case.strike_due_ns is not None:
            case.strike_due_ns = now_ns  # one more attempt: a sharer may still hold the memory
        self._put_to_work(now_ns)

    def on_time(self, now_ns: int) -> None:
        """Do what is due."""
        self._side.on_time(now_ns)
        for worker, assignment in self._roster.overdue(now_ns):
            self._on_overdue(worker, assignment, now_ns)
        for case in list(self._cases.values()):
            if case.help_due_ns is not None and case.help_due_ns <= now_ns:
                case.help_due_ns = None
                case.is_helped = True
                self._looks.append((JobKind.HELP, case))
            if case.life.is_over:
                self._close(case, now_ns)
                continue
            if case.account_due_ns is not None and case.account_due_ns <= now_ns:
                case.account_due_ns = None
                self._looks.append((JobKind.ACCOUNT, case))
            if case.timeout_ns(self._settings.timeout_ns) <= now_ns:
                self._on_timeout(case, now_ns)
        self._put_to_work(now_ns)
        self._roster.restore_strength(now_ns)

    # -- one victim's progress -----------------------------------------------------------------------------

    def _on_answer(self, case: Case, assignment: Assignment[_Subject], report: Report, now_ns: int) -> None:
        match report:
            case Struck():
                self._on_struck(case, assignment, report, now_ns)
            case Probed():
                self._on_probed(case, report, now_ns)
            case Accounted():
                self._on_accounted(case, assignment, report, now_ns)
            case Helped() if report.refused and not case.has_died:
                self._warn(case, f"could not help it to leave: {'; '.join(report.refused)}", now_ns)
            case Inquired():
                case.threads = report.threads
                self._settle(case, now_ns)

    def _on_struck(self, case: Case, assignment: Assignment[_Subject], struck: Struck, now_ns: int) -> None:
        if case.life.is_over:
            return
        case.note_sharers(assignment.job.sharers, struck)
        if struck.signal_errno == errno.ESRCH:
            self._presume_signalled(case)
        if struck.signal_errno == 0 and case.signal_ns is None:
            case.signal_ns = struck.signal_ns
            case.held_at_signal_bytes = None if struck.before is None else struck.before.reapable_bytes
            self._tell(EventKind.KILLED, case, struck.signal_ns)
        reading = verify.read_strike(struck, case.before)
        if reading.meaning is not Meaning.VANISHED or case.signal_ns is None:
            case.reason = reading.reason  # one that we signalled has vanished by that: what was said of it stands
        if not case.has_died and not case.is_helped and struck.signal_errno == 0:
            case.help_due_ns = now_ns + _HELP_DELAY_NS
        match reading.meaning:
            case Meaning.BACK:
                case.note_freed(struck.memory)
                case.reason = f"its memory is verified back after attempt {case.attempts}"
                self._end(case, Move.MEMORY_BACK, now_ns, settled_ns=struck.verified_ns)
            case Meaning.AGAIN if struck.signal_errno is None and struck.is_dumping_core:
                self._await_dump(case, now_ns)
            case Meaning.AGAIN:
                memory = struck.memory if struck.memory_problem is None else case.memory_seen
                self._again(case, assignment.started_ns, memory, now_ns)
            case Meaning.VANISHED if case.signal_ns is None and case.life.permits(Move.VANISH):
                self._end(case, Move.VANISH, now_ns)
            case Meaning.FORBIDDEN if case.life.permits(Move.REFUSE):
                case.needs_permission = True
                self._end(case, Move.REFUSE, now_ns)
            case Meaning.FORBIDDEN:
                case.needs_permission = True
                self._give_up(case, reading.reason, now_ns)
            case Meaning.DETACHED | Meaning.UNSUPPORTED | Meaning.VANISHED:
                case.needs_permission = reading.meaning is Meaning.UNSUPPORTED
                self._detach(case, now_ns)

    def _again(self, case: Case, started_ns: int, memory: VictimMemory | None, now_ns: int) -> None:
        """One attempt is over without success: another one 100 ms after it began, while the budget lasts."""
        case.attempt_began_ns = None
        has_moved = verify.has_moved(case.memory_seen, memory)
        case.memory_seen = memory
        if case.attempts >= self._settings.attempts and not has_moved:
            self._give_up(case, case.reason, now_ns)
            return
        case.life.apply(Move.TRY_AGAIN)
        case.strike_due_ns = max(now_ns, started_ns + self._settings.attempt_ns)

    def _await_dump(self, case: Case, now_ns: int) -> None:
        case.attempts -= 1  # nothing was tried
        case.attempt_began_ns = None
        if case.signal_ns is None:
            case.signal_ns = now_ns  # its clock runs from the moment in which it would have been signalled
        case.life.apply(Move.TRY_AGAIN)
        case.strike_due_ns = now_ns + self._settings.attempt_ns

    def _detach(self, case: Case, now_ns: int) -> None:
        case.life.apply(Move.DETACH)
        case.idle_looks = 0
        case.account_due_ns = now_ns
        finish(self._handoff.release(case.candidate))
        self._fill_slots(now_ns)

    def _on_accounted(self, case: Case, assignment: Assignment[_Subject], accounted: Accounted, now_ns: int) -> None:
        if case.life.state is State.LEAVING:
            judgement = leaving.judge(
                case,
                accounted,
                is_deep=assignment.job.deep,
                others_bytes=self._returns.by_others(case, self._cases.values()),
                attempts=self._settings.attempts,
            )
            self._go_by(judgement, case, assignment, now_ns)

    def _on_not_accounted(self, case: Case, assignment: Assignment[_Subject], reason: str, now_ns: int) -> None:
        is_deep, attempts = assignment.job.deep, self._settings.attempts
        self._go_by(leaving.judge_failure(case, reason, is_deep=is_deep, attempts=attempts), case, assignment, now_ns)

    def _go_by(self, judgement: Judgement, case: Case, assignment: Assignment[_Subject], now_ns: int) -> None:
        """Do what the look at a victim that leaves by itself has come to."""
        match judgement.verdict:
            case Verdict.AGAIN:
                case.account_due_ns = max(now_ns, assignment.started_ns + self._settings.attempt_ns)
            case Verdict.DEEPER:
                self._looks.append((JobKind.ACCOUNT, case))
            case Verdict.BACK:
                case.note_freed(case.memory_seen)
                case.reason = judgement.reason
                self._end(case, Move.MEMORY_BACK, now_ns)
            case Verdict.PINNED:
                case.freed_bytes = 0
                case.reason = judgement.reason
                self._end(case, Move.PINNED, now_ns)
            case Verdict.HELD:
                self._give_up(case, judgement.reason, now_ns)

    def _on_probed(self, case: Case, probed: Probed, now_ns: int) -> None:
        """The memory of a victim whose attempt is overdue has been looked at."""
        for worker, assignment in self._roster.find(JobKind.STRIKE, case):
            if verify.has_moved(case.memory_seen, probed.memory):
                case.memory_seen = probed.memory
                self._roster.extend(worker, assignment._replace(deadline_ns=now_ns + self._settings.attempt_ns))
            else:
                self._lose(worker, assignment, now_ns)

    def _give_up(self, case: Case, reason: str, now_ns: int) -> None:
        """The budget is spent: leave this victim aside and say where it stands."""
        for worker, _ in self._roster.find(JobKind.STRIKE, case):
            self._roster.dismiss(worker, now_ns)
        self._presume_signalled(case)
        case.note_freed(case.memory_seen)
        case.reason = f"given up after {case.attempts} attempts: {reason.lstrip('; ')}"
        case.life.apply(Move.GIVE_UP)
        case.settled_ns = now_ns
        self._returns.note(now_ns, case.freed_bytes)
        case.inquest_limit_ns = now_ns + _INQUEST_LIMIT_NS
        case.strike_due_ns = case.account_due_ns = case.help_due_ns = None
        finish(self._handoff.release(case.candidate))
        self._looks.append((JobKind.INQUEST, case))
        self._fill_slots(now_ns)

    def _end(self, case: Case, move: Move, now_ns: int, *, settled_ns: int | None = None) -> None:
        """A victim has come to an end; ``settled_ns`` is when that was so, if before now."""
        case.life.apply(move)
        case.settled_ns = now_ns if settled_ns is None else settled_ns
        self._returns.note(case.settled_ns, case.freed_bytes)
        case.strike_due_ns = case.account_due_ns = None
        finish(self._handoff.release(case.candidate))
        if move in (Move.REFUSE, Move.VANISH):
            self._handoff.marks.clear(case.candidate.lives)  # nothing was done to it: it may be chosen again
        if case.life.state is State.REAPED and case.awaits_shared_memory:
            case.inquest_limit_ns = now_ns + _SHARED_WAIT_NS
        else:
            self._settle(case, now_ns)
        self._fill_slots(now_ns)

    def _settle(self, case: Case, now_ns: int) -> None:
        """Write the record."""
        if not case.is_settled:
            case.is_settled = True
            self._events.append(Event(EventKind.SETTLED, case.identity, now_ns, outcome=case.outcome()))
        self._close(case, now_ns)

    def _close(self, case: Case, now_ns: int) -> None:
        """Take a victim off the books when nothing more is due for it; its mark stays."""
        if not case.is_settled and case.inquest_limit_ns <= now_ns:
            self._settle(case, now_ns)  # nobody came to hold the inquest: the record goes out without
        elif case.is_settled and case.help_due_ns is None:
            self._cases.pop(case.identity, None)

    def _on_timeout(self, case: Case, now_ns: int) -> None:
        if case.life.permits(Move.REFUSE) and case.signal_ns is None:
            case.reason = "no worker could be started in the time allowed"
            self._end(case, Move.REFUSE, now_ns)
        elif case.life.state is not State.CHOSEN:
            self._give_up(case, f"{case.reason}; the time allowed is over", now_ns)

    # -- workers -------------------------------------------------------------------------------------------

    def _fill_slots(self, now_ns: int) -> None:
        while (candidate := finish(self._handoff.take_next())) is not None:
            case = self._cases[candidate.identity]
            case.life.apply(Move.ANNOUNCE)
            self._tell(EventKind.ANNOUNCE, case, now_ns)
            case.strike_due_ns = now_ns

    def _put_to_work(self, now_ns: int) -> None:
        """Give idle workers what is due: attempts first, then the looks."""
        for case in list(self._cases.values()):
            if not self._roster.idle:
                return
            if case.strike_due_ns is not None and case.strike_due_ns <= now_ns:
                self._strike(case, now_ns)
        while self._roster.idle and self._looks:
            kind, subject = self._looks.popleft()
            if isinstance(subject, Case) and _is_vain(kind, subject):
                continue
            self._assign(self._job(kind, subject), subject, now_ns)
        while task := self._side.take_next(idle=self._roster.idle, has_victims=bool(self._cases)):
            self._assign(task.job, task, now_ns)

    def _strike(self, case: Case, now_ns: int) -> None:
        if case.life.state is State.ANNOUNCED:
            case.life.apply(Move.HAND_OVER)
        case.strike_due_ns = None
        if case.attempt_began_ns is None:
            case.attempt_began_ns = now_ns
            case.attempts += 1
            self._attempts += 1
        self._assign(self._job(JobKind.STRIKE, case), case, now_ns)

    def _job(self, kind: JobKind, subject: Case | _Target) -> Job:
        if isinstance(subject, _Target):
            return Job(kind, subject.pid, None)
        identity = subject.identity
        is_deep = kind is JobKind.ACCOUNT and subject.wants_deep_look
        if is_deep:
            subject.wants_deep_look = False
        is_strike = kind is JobKind.STRIKE
        strikes_all_the_same = min(_STRIKES_ALL_THE_SAME, self._settings.attempts)
        # Those first of whom nothing is known; a message holds a thousand, and a look at every process finds the rest.
        sharers = sorted(subject.open_sharers, key=lambda life: (life in subject.killed_sharers, life))
        named = sharers[:LIVES_A_MESSAGE] if is_strike else []
        return Job(
            kind,
            identity.pid,
            identity.start_time_ticks,
            sharers=tuple(named),
            rescan=is_strike and (subject.needs_rescan or len(sharers) > LIVES_A_MESSAGE),
            spare_dump=self._settings.spare_dump,
            can_wait=subject.signal_ns is None and subject.attempts < strikes_all_the_same,
            held_bytes=subject.recorded_before_bytes,
            killed_count=sum(life in subject.killed_sharers for life in named),
            looked_ns=subject.scouting.looked_ns if is_deep else None,
            can_release=self._roster.can_release,
            memcg_directory=subject.scouting.charged.memcg_directory,
            deep=is_deep,
        )

    def _assign(self, job: Job, subject: _Subject, now_ns: int) -> None:
        limit_ns = _DEADLINE_NS_OF_LOOK.get(job.kind, self._settings.attempt_ns)
        gone = self._roster.assign(job, subject, subject.handle, now_ns=now_ns, deadline_ns=now_ns + limit_ns)
        if gone is not None:
            self.on_worker_exit(gone, now_ns, why="it was gone when it was needed", is_sandboxed=False)

    def _on_overdue(self, worker: int, assignment: Assignment[_Subject], now_ns: int) -> None:
        """A deadline has passed. A worker that runs, or waits for a CPU, is left to it; one that sleeps is stuck."""
        if not self._roster.is_waiting(worker):
            extension_ns = assignment.deadline_ns - assignment.started_ns
            self._roster.extend(worker, assignment._replace(started_ns=now_ns, deadline_ns=now_ns + extension_ns))
            return
        subject = assignment.subject
        if assignment.job.kind is not JobKind.STRIKE or not isinstance(subject, Case):
            self._roster.dismiss(worker, now_ns)
            self._on_no_answer(assignment, "a look at it did not come back", now_ns)
        elif self._roster.idle and not any(self._roster.find(JobKind.PROBE, subject)):
            # The probe's answer decides; its own deadline stands for this one's.
            patience_ns = 2 * self._settings.attempt_ns
            self._roster.extend(worker, assignment._replace(deadline_ns=now_ns + patience_ns))
            self._assign(self._job(JobKind.PROBE, subject), subject, now_ns)
        else:
            self._lose(worker, assignment, now_ns)

    def _on_worker_lost(self, assignment: Assignment[_Subject], reason: str, now_ns: int) -> None:
        """A worker ended in mid-job, by itself. Nobody knows how far it came: a strike is taken up at once."""
        case = assignment.subject
        if assignment.job.kind is not JobKind.STRIKE or not isinstance(case, Case) or case.life.is_over:
            self._on_no_answer(assignment, reason, now_ns)
            return
        if case.first_blow_ns is None:
            case.first_blow_ns = assignment.started_ns
        case.reason = reason
        assert case.attempt_began_ns is not None, "a strike is part of an attempt"
        if now_ns - case.attempt_began_ns >= self._settings.attempt_ns:
            self._again(case, case.attempt_began_ns, case.memory_seen, now_ns)
            return
        case.life.apply(Move.TRY_AGAIN)
        case.strike_due_ns = now_ns

    def _presume_signalled(self, case: Case) -> None:
        """A lost worker has signalled this victim, as far as anybody can tell by now, or a sharer was killed for it."""
        if case.signal_ns is None and case.first_blow_ns is not None:
            case.signal_ns = case.first_blow_ns
            self._tell(EventKind.KILLED, case, case.first_blow_ns)

    def _lose(self, worker: int, assignment: Assignment[_Subject], now_ns: int) -> None:
        """A worker stands on the victim's mmap_lock: end it, and let a spare try again."""
        self._roster.dismiss(worker, now_ns)
        self._on_no_answer(assignment, "process_mrelease did not return: mmap_lock is held", now_ns)

    def _on_could_not_look(self, assignment: Assignment[_Subject], problem: str, now_ns: int) -> None:
        """A worker lives on and could do nothing of its job."""
        subject = assignment.subject
        reason = f"could not look at it: {problem}"
        if assignment.job.kind is JobKind.STRIKE and isinstance(subject, Case):
            if not subject.life.is_over:  # nobody was signalled: the attempt counts, the kill does not
                subject.reason = reason
                self._again(subject, assignment.started_ns, subject.memory_seen, now_ns)
        else:
            self._on_no_answer(assignment, reason, now_ns)

    def _on_no_answer(self, assignment: Assignment[_Subject], reason: str, now_ns: int) -> None:
        """A job will never be answered; go on without."""
        subject = assignment.subject
        if isinstance(subject, SideTask):
            self._side.on_no_answer(subject, reason)
            return
        if isinstance(subject, _Target):
            self._scouted.append((subject.handle, Scouted(None, reason)))
            return
        match assignment.job.kind:
            case JobKind.STRIKE if not subject.life.is_over:
                if subject.signal_ns is None:
                    subject.signal_ns = assignment.started_ns
                    self._tell(EventKind.KILLED, subject, now_ns)
                if not subject.is_helped and not subject.has_died:
                    subject.help_due_ns = now_ns
                subject.reason = reason
                self._again(subject, assignment.started_ns, subject.memory_seen, now_ns)
            case JobKind.ACCOUNT if subject.life.state is State.LEAVING:
                self._on_not_accounted(subject, assignment, reason, now_ns)
            case JobKind.INQUEST:
                self._settle(subject, now_ns)
            case JobKind.PROBE:
                self._on_probed(subject, Probed(subject.memory_seen), now_ns)
            case _:
                pass  # HELP is a favour; it is not repeated

    def _tell(self, kind: EventKind, case: Case, now_ns: int) -> None:
        self._events.append(Event(kind, case.identity, now_ns))

    def _warn(self, case: Case | None, text: str, now_ns: int) -> None:
        self._events.append(Event(EventKind.WARNING, case.identity if case else None, now_ns, text))


def _is_vain(kind: JobKind, case: Case) -> bool:
    """Whether a look that had to wait for a worker comes too late; the victim's pidfd may be closed by now."""
    return case.has_died if kind is JobKind.HELP else case.is_settled
