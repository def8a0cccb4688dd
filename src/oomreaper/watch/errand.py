"""One errand: reap the given processes, and come back with an outcome for each.

What ``oomreaper reap`` and ``oomreaper.reap()`` both run. It opens each target's pidfd, has it looked at, refuses
what must be refused, submits the rest to a crew, and drives that crew until every victim has its outcome.
It never reads a victim after the signal, and never waits but in one ``poll``.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.errors import BrokenPromiseError, KernelError, UsageError
from oomreaper.linux import proc, resident, syscalls
from oomreaper.linux.interpreter import python_command
from oomreaper.model.event import Event, EventKind
from oomreaper.model.identity import Identity
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.policy import protection
from oomreaper.reaper import verify, wire
from oomreaper.reaper.crew import Crew
from oomreaper.reaper.handoff import Entry
from oomreaper.reaper.jobs import Hello
from oomreaper.reaper.settings import Settings, Statistics
from oomreaper.reaper.worker.pool import Answered, Pool

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from oomreaper.model.process import Scouting
    from oomreaper.reaper.jobs import Scouted

_NS_IN_MS = 1_000_000
_NS_IN_SECOND = 1_000_000_000
_MIB = 1 << 20
# After the last outcome: how long to stay for the help that is under way, and to see whether the victims have gone.
_AFTERCARE_NS = 150 * _NS_IN_MS
# A worker is ready in 3 to 10 ms (2026-11); one that is not by then cannot be started here.
_START_LIMIT_NS = 10 * _NS_IN_SECOND
# A worker that is killed by the sandbox while it starts is tried again without process_mrelease, then no more.
_START_FAILURES = 6
# What says nothing of the kernel or the sandbox: there is no memory or no descriptor at this moment.
_SHORTAGES = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
PIDFD_TRIES = 3  # made at once, as the worker does: somebody may have let go of some meanwhile
# A look that was lost (its worker ended, no memory for it) is made again for as long: a shortage seldom lasts longer,
# and the watcher waits as long for its own. One that nothing stands in the way of takes 30 ms at 10,000 processes.
LOOK_LIMIT_NS = 1_000 * _NS_IN_MS
LOOK_PAUSE_NS = 20 * _NS_IN_MS
COREDUMP_CHOICES = ("abort", "wait")


class Target(NamedTuple):
    """Whom to reap: a pid, and the start time it had when it was chosen, where that is known."""

    pid: int
    start_time_ticks: int | None = None


class _Opened(NamedTuple):
    target: Target
    pidfd: int


class Errand:
    """Reaps ``targets`` once.

    Make one, ``run`` it, and let go of it.

    Args:
        targets: Whom; a target may be named twice and two may share one address space.
        settings: The crew's numbers.
        is_dry_run: Look and decide, signal nobody.
        on_event: Called with each event as it happens.

    Raises:
        KernelError: There is no usable /proc.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        settings: Settings,
        *,
        is_dry_run: bool = False,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self._targets = targets
        self._is_dry_run = is_dry_run
        self._on_event = on_event
        self._proc = proc.open_root()
        self._pool = Pool(self._proc, proc.read_ancestors(self._proc))
        self._crew = Crew(self._pool, settings)
        self._opened: dict[int, _Opened] = {}  # by pidfd
        self._outcomes: dict[Target, Outcome] = {}
        self._victims: dict[Identity, _Opened] = {}
        self._victim_of_life: dict[Identity, Identity] = {}  # every life that was let in, by whom it was named first
        self._watched: set[int] = set()  # pidfds of victims that have not ended
        self._comrades: dict[Target, tuple[Scouting, Identity]] = {}  # targets served by another's reaping
        self._look_limits_ns: dict[int, int] = {}  # by pidfd: until when a look that was lost is made again
        self._looks_due: dict[int, int] = {}  # by pidfd: when it is
        self._sandbox_kills = 0

    def statistics(self) -> Statistics:
        """The crew's counts."""
        return self._crew.statistics()

    def run(self) -> list[Outcome]:
        """Do it; one outcome for each target, in their order.

        Raises:
            KernelError: No pidfd or no worker can be had here. Nothing was signalled.
        """
        try:
            with resident.promptness():
                self._start()
                self._serve()
        finally:
            self._pool.close()
            for descriptor in (*self._opened, self._proc):
                os.close(descriptor)
        return [self._with_last_look(target) for target in self._targets]

    def _serve(self) -> None:
        for target in dict.fromkeys(self._targets):
            self._open(target)
        for opened in self._opened.values():
            self._crew.scout(opened.target.pid, opened.pidfd, time.monotonic_ns())
        self._drive_until(lambda: len(self._outcomes) == len(set(self._targets)))
        limit_ns = time.monotonic_ns() + _AFTERCARE_NS
        self._drive_until(lambda: self._crew.is_quiet and not self._watched, limit_ns)

    # -- before the signal ---------------------------------------------------------------------------------

    def _start(self) -> None:
        """Have every worker ready before anything else: from here on nothing is forked on the way to a kill."""
        resident.settle_heap()
        now_ns = time.monotonic_ns()
        self._crew.start(now_ns)
        self._drive_until(lambda: self._crew.is_ready, now_ns + _START_LIMIT_NS)
        if not self._crew.is_ready:
            raise KernelError(
                "no reaper worker could be started: see oomreaper doctor; free memory or raise RLIMIT_NPROC"
            )

    def _open(self, target: Target) -> None:
        refusal = protection.refuse_pid(target.pid, self._pool.ourselves())
        if refusal is not None:
            self._refuse(target, refusal)
            return
        try:
            pidfd = _open_pidfd(target.pid)
        except ProcessLookupError:
            self._outcomes[target] = Outcome(target.pid, None, None, OutcomeKind.GONE, reason="no such process")
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT):
                self._refuse(target, _refuse_thread(self._proc, target.pid))
                return
            if error.errno in _SHORTAGES:
                self._refuse(target, protection.Refusal(f"no pidfd can be had for it now: {error.strerror}"))
                return
            raise KernelError(
                f"no pidfd for process {target.pid}: {error.strerror}; it needs Linux 5.3 and a sandbox that lets "
                "pidfd_open through: see oomreaper doctor"
            ) from error
        else:
            self._opened[pidfd] = _Opened(target, pidfd)

    def _on_scouted(self, opened: _Opened, scouted: Scouted) -> None:
        target, scouting = opened.target, scouted.scouting
        if scouting is None:
            if scouted.problem is not None:
                self._on_not_seen(opened, scouted.problem, needs_permission=scouted.needs_permission)
            else:
                self._outcomes[target] = Outcome(target.pid, None, None, OutcomeKind.GONE, reason="no such process")
            return
        process = scouting.process
        started = process.identity.start_time_ticks
        if target.start_time_ticks not in (None, started):
            reason = f"the pid was recycled: that process has ended, and another one (started at {started}) holds it"
            self._outcomes[target] = Outcome(target.pid, target.start_time_ticks, None, OutcomeKind.GONE, reason=reason)
            return
        refusal = protection.refuse_process(scouting, self._pool.ourselves())
        if refusal is not None:
            self._refuse(target, refusal, scouting)
        elif process.is_dead:
            self._outcomes[target] = _of_corpse(scouting)
        elif self._is_dry_run:
            self._outcomes[target] = _would_be(scouting)
        else:
            self._submit(opened, scouting)

    def _on_not_seen(self, opened: _Opened, problem: str, *, needs_permission: bool) -> None:
        """A look failed. Where no right is wanting, nothing is wrong with the target: another look, for a while."""
        now_ns = time.monotonic_ns()
        limit_ns = self._look_limits_ns.setdefault(opened.pidfd, now_ns + LOOK_LIMIT_NS)
        if needs_permission or now_ns >= limit_ns:
            self._refuse(opened.target, protection.Refusal(problem, needs_permission=needs_permission))
        else:
            self._looks_due[opened.pidfd] = now_ns + LOOK_PAUSE_NS

    def _look_again(self) -> None:
        now_ns = time.monotonic_ns()
        for pidfd, due_ns in list(self._looks_due.items()):
            if due_ns <= now_ns:
                del self._looks_due[pidfd]
                self._crew.scout(self._opened[pidfd].target.pid, pidfd, now_ns)

    def _submit(self, opened: _Opened, scouting: Scouting) -> None:
        identity = scouting.process.identity
        entry = self._crew.submit(scouting, opened.pidfd, time.monotonic_ns())
        if entry is Entry.QUEUED:
            self._victims[identity] = opened
            self._victim_of_life |= {sharer.identity: identity for sharer in scouting.sharers} | {identity: identity}
            self._watched.add(opened.pidfd)
        elif entry is Entry.ALREADY_IN:
            lives = (identity, *(sharer.identity for sharer in scouting.sharers))
            first = next(self._victim_of_life[life] for life in lives if life in self._victim_of_life)
            self._comrades[opened.target] = (scouting, first)
            self._settle_comrades()
        else:
            self._refuse(opened.target, protection.Refusal("too many victims at once; name fewer"), scouting)

    def _refuse(self, target: Target, refusal: protection.Refusal, scouting: Scouting | None = None) -> None:
        process = scouting.process if scouting is not None else None
        self._outcomes[target] = Outcome(
            target.pid,
            process.identity.start_time_ticks if process is not None else None,
            process.comm if process is not None else None,
            OutcomeKind.REFUSED,
            reason=refusal.reason,
            needs_permission=refusal.needs_permission,
        )

    # -- driving the crew ----------------------------------------------------------------------------------

    def _drive_until(self, is_done: Callable[[], bool], limit_ns: int | None = None) -> None:
        self._collect()
        while not is_done():
            now_ns = time.monotonic_ns()
            if limit_ns is not None and now_ns >= limit_ns:
                return
            due = [at for at in (self._crew.next_deadline_ns(), limit_ns, *self._looks_due.values()) if at is not None]
            self._wait(max(0, min(due) - now_ns) if due else None)
            self._crew.on_time(time.monotonic_ns())
            self._look_again()
            self._collect()

    def _wait(self, wait_ns: int | None) -> None:
        """Sleep until a worker answers, a victim ends, or the time is over; tell the crew."""
        poll = select.poll()
        workers = {fileno: worker for worker, fileno in self._pool.filenos().items()}
        for fileno in (*workers, *self._watched):
            poll.register(fileno, select.POLLIN)
        # poll counts whole milliseconds; rounding up keeps it from spinning before a deadline
        for fileno, _events in poll.poll(None if wait_ns is None else -(-wait_ns // _NS_IN_MS)):
            now_ns = time.monotonic_ns()
            if fileno in self._watched:
                self._watched.discard(fileno)
                for identity, opened in self._victims.items():
                    if opened.pidfd == fileno:
                        self._crew.on_victim_exit(identity, now_ns)
                continue
            said = self._pool.read(workers[fileno])
            if isinstance(said, Answered):
                if isinstance(said.report, Hello) and said.report.problem is not None:
                    raise KernelError(f"{said.report.problem}; see oomreaper doctor")
                self._crew.on_report(said.worker, said.report, now_ns)
            elif said is not None:
                self._sandbox_kills += said.is_sandboxed
                if self._sandbox_kills > _START_FAILURES:
                    raise KernelError(
                        "a seccomp filter kills the reaper's workers (SIGSYS): let pidfd_open, pidfd_send_signal, kcmp "
                        "and process_mrelease through; see oomreaper doctor"
                    )
                self._crew.on_worker_exit(said.worker, now_ns, why=said.why, is_sandboxed=said.is_sandboxed)

    def _collect(self) -> None:
        for pidfd, scouted in self._crew.take_scouted():
            self._on_scouted(self._opened[pidfd], scouted)
        for event in self._crew.take_events():
            if event.kind is EventKind.SETTLED and event.identity is not None and event.outcome is not None:
                self._outcomes[self._victims[event.identity].target] = event.outcome
                self._settle_comrades()
            if self._on_event is not None:
                self._on_event(event)

    def _settle_comrades(self) -> None:
        for target, (scouting, first) in list(self._comrades.items()):
            outcome = self._outcomes.get(self._victims[first].target)
            if outcome is not None:
                del self._comrades[target]
                identity = scouting.process.identity
                self._outcomes[target] = outcome._replace(
                    pid=identity.pid,
                    start_time_ticks=identity.start_time_ticks,
                    comm=scouting.process.comm,
                    sharers=tuple(sorted({first.pid, *outcome.sharers} - {identity.pid})),
                    reason=f"one address space with process {first.pid}, reaped once for both: {outcome.reason}",
                )

    def _with_last_look(self, target: Target) -> Outcome:
        """The outcome, with what the time since then has shown: whether the victim has gone meanwhile."""
        outcome = self._outcomes[target]
        for opened in self._victims.values():
            if opened.target == target and outcome.still_dying:
                return outcome._replace(still_dying=opened.pidfd in self._watched)
        return outcome


def make_settings(*, timeout_seconds: float, coredump: str, victims: int = 1) -> Settings:
    """The crew's numbers for an errand.

    Raises:
        UsageError: The time is not above 0, or ``coredump`` is neither "abort" nor "wait".
    """
    if not 0 < timeout_seconds < 1e6:  # noqa: PLR2004 - eleven days; beyond that a float loses the milliseconds
        raise UsageError(f"a time-out of {timeout_seconds} seconds makes no sense: it must be above 0")
    if coredump not in COREDUMP_CHOICES:
        raise UsageError(f"coredump is {coredump!r}; it must be one of: {', '.join(COREDUMP_CHOICES)}")
    return Settings(
        workers=min(2, victims),
        queue_limit=max(64, victims),
        timeout_ns=int(timeout_seconds * _NS_IN_SECOND),
        spare_dump=coredump == "wait",
    )


def take_usual_signals() -> None:
    """Undo what whoever started us may have left to us: an ignored SIGCHLD (we could not wait), blocked signals."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


_ELSEWHERE = "from oomreaper.watch import errand; errand.serve_library()"


def reap_elsewhere(pid: int, *, start_time_ticks: int | None, timeout_seconds: float, coredump: str) -> Outcome:
    """Run one errand in a process of its own; see ``oomreaper.reap``."""
    import subprocess  # 7 ms of start-up that the command and the other end can do without

    make_settings(timeout_seconds=timeout_seconds, coredump=coredump)
    arguments = [str(pid), str(start_time_ticks or ""), repr(timeout_seconds), coredump]
    try:
        done = subprocess.run(
            python_command(_ELSEWHERE, *arguments),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise KernelError(f"no process could be started to reap {pid}: {error.strerror}") from error
    if done.returncode != 0:
        raise KernelError(done.stderr.decode("utf-8", "backslashreplace").strip() or f"the reaper ended by {done}")
    outcome = wire.decode_report(done.stdout)
    if not isinstance(outcome, Outcome):
        raise BrokenPromiseError(f"the reaper sent {outcome!r}")
    return outcome


def serve_library() -> None:
    """The other end of ``reap_elsewhere``: arguments in argv, one encoded outcome on stdout."""
    pid, started, timeout_seconds, coredump = sys.argv[1:]
    take_usual_signals()
    settings = make_settings(timeout_seconds=float(timeout_seconds), coredump=coredump)
    target = Target(int(pid), int(started) if started else None)
    try:
        (outcome,) = Errand([target], settings).run()
    except KernelError as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(wire.encode_report(outcome))


def _open_pidfd(pid: int) -> int:
    for _ in range(PIDFD_TRIES - 1):
        try:
            return syscalls.pidfd_open(pid)
        except OSError as error:
            if error.errno not in _SHORTAGES:
                raise
    return syscalls.pidfd_open(pid)


def _refuse_thread(root: int, pid: int) -> protection.Refusal:
    process = proc.open_process(root, pid)
    try:
        status = proc.read_status(process) if process is not None else None
    finally:
        if process is not None:
            os.close(process)
    if status is None:
        return protection.Refusal("it is a thread that leads no process; name the process itself")
    return protection.Refusal(f"it is a thread of process {status.tgid}; name that one: oomreaper reap {status.tgid}")


def _of_corpse(scouting: Scouting) -> Outcome:
    """A process that has ended and was not waited for: gone, unless its memory has outlived it."""
    process = scouting.process
    pinned_bytes = verify.read_corpse(scouting)
    if pinned_bytes is None:
        reason = f"it has already ended; its parent, process {process.parent_pid}, has not waited for it yet"
        return Outcome(*process.identity, process.comm, OutcomeKind.GONE, reason=reason)
    reason = (
        f"it has already ended, and about {pinned_bytes // _MIB} MiB are still charged though no process owns them: "
        f"{verify.describe_holders(scouting.holders)}"
    )
    return Outcome(*process.identity, process.comm, OutcomeKind.LOST, freed_bytes=0, reason=reason)


def _would_be(scouting: Scouting) -> Outcome:
    held_bytes = scouting.memory.reapable_bytes if scouting.memory is not None else 0
    return Outcome(
        *scouting.process.identity,
        scouting.process.comm,
        None,
        anon_before_bytes=held_bytes,
        sharers=tuple(sorted(sharer.identity.pid for sharer in scouting.sharers)),
        reason=f"dry run: it would be killed, and about {held_bytes // _MIB} MiB reaped; nothing was signalled",
    )
