"""The real crew on the model, for victims that somebody names: what ``watch/errand.py`` does, in virtual time."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from oomreaper.model.event import EventKind
from oomreaper.model.outcome import Outcome, OutcomeKind
from oomreaper.policy import protection
from oomreaper.reaper.crew import Crew
from oomreaper.reaper.handoff import Entry
from oomreaper.reaper.settings import Settings
from oomreaper.sim.engine import Band
from oomreaper.sim.hands import Hands
from oomreaper.watch import errand

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.model.event import Event
    from oomreaper.model.identity import Identity
    from oomreaper.reaper.jobs import Scouted
    from oomreaper.sim.engine import Signal, Steps
    from oomreaper.sim.linux.calls import Calls
    from oomreaper.sim.tasks import Process
    from oomreaper.sim.userland import Userland

_SETTINGS = Settings()


class Reaping:
    """An errand: ``pids`` are looked at, and killed and reaped unless they are protected.

    Args:
        userland: Where it runs; the machine's processes are there already.
        calls: What ``bound`` gave.
        pids: The victims.
        settings: The crew's.
        band: The scheduling class of its workers.
        stop_when_done: End the engine's run with the last outcome.
    """

    def __init__(
        self,
        userland: Userland,
        calls: Calls,
        pids: tuple[int, ...],
        *,
        settings: Settings = _SETTINGS,
        band: Band = Band.FIFO,
        stop_when_done: bool = True,
    ) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.events: list[Event] = []
        self.crew: Crew | None = None
        self._land = userland
        self._engine = userland.machine.engine
        self._calls = calls
        self._pids = pids
        self._settings = settings
        self._band = band
        self._stop_when_done = stop_when_done
        self._exited: list[Identity] = []
        self._look_limits_ns: dict[int, int] = {}  # by handle
        self._looks_due: dict[int, int] = {}
        self._by_identity: dict[Identity, int] = {}
        self.user = userland.add("oomreaper", self._main, uid=0)

    def _main(self) -> None:
        hands = Hands(self._land, self._calls, self.user.process, band=self._band)
        crew = self.crew = Crew(hands, self._settings)
        crew.start(self._now())
        self._drive(crew, hands, lambda: crew.is_ready)
        handles: dict[int, int] = {}
        for pid in self._pids:
            try:
                handle = self._open_pidfd(pid)
            except OSError as error:
                kind = OutcomeKind.GONE if error.errno == errno.ESRCH else OutcomeKind.REFUSED
                self.outcomes[pid] = Outcome(pid, None, None, kind, reason=str(error))
                continue
            handles[handle] = pid
            crew.scout(pid, handle, self._now())

        def is_over() -> bool:
            for handle, scouted in crew.take_scouted():
                self._on_scouted(hands, handles[handle], handle, scouted)
            for event in crew.take_events():
                self.events.append(event)
                if event.kind is EventKind.SETTLED and event.identity is not None and event.outcome is not None:
                    self.outcomes[self._by_identity[event.identity]] = event.outcome
            return len(self.outcomes) == len(self._pids)

        self._drive(crew, hands, is_over)
        if self._stop_when_done:
            self._engine.stop()
        self._drive(crew, hands, lambda: crew.is_quiet)  # who lives on is helped to leave

    def _open_pidfd(self, pid: int) -> int:
        for _ in range(errand.PIDFD_TRIES - 1):
            try:
                return int(self._calls.syscalls.pidfd_open(pid))
            except OSError as error:
                if error.errno == errno.ESRCH:
                    raise
        return int(self._calls.syscalls.pidfd_open(pid))

    def _on_scouted(self, hands: Hands, pid: int, handle: int, scouted: Scouted) -> None:
        scouting = scouted.scouting
        if scouting is None and scouted.problem is not None and not scouted.needs_permission:
            limit_ns = self._look_limits_ns.setdefault(handle, self._now() + errand.LOOK_LIMIT_NS)
            if self._now() < limit_ns:
                self._looks_due[handle] = self._now() + errand.LOOK_PAUSE_NS
                return
        if scouting is None:
            kind = OutcomeKind.GONE if scouted.problem is None else OutcomeKind.REFUSED
            self.outcomes[pid] = Outcome(pid, None, None, kind, reason=scouted.problem or "no such process")
            return
        identity = scouting.process.identity
        refusal = protection.refuse_process(scouting, hands.ourselves())
        if refusal is not None:
            self.outcomes[pid] = Outcome(
                pid, identity.start_time_ticks, scouting.process.comm, OutcomeKind.REFUSED, reason=refusal.reason
            )
            return
        self._by_identity[identity] = pid
        assert self.crew is not None
        entry = self.crew.submit(scouting, handle, self._now())
        if entry is not Entry.QUEUED:
            self.outcomes[pid] = Outcome(pid, identity.start_time_ticks, None, OutcomeKind.REFUSED, reason=entry.value)
            return
        process = self._land.user.descriptors[handle].process
        watch_exit(process, lambda: self._on_exit(identity, hands))

    def _on_exit(self, identity: Identity, hands: Hands) -> None:
        self._exited.append(identity)
        hands.news.wake_all()

    def _drive(self, crew: Crew, hands: Hands, is_over: Callable[[], bool]) -> None:
        """Until it is so; the loop of ``watch/errand.py``."""
        while True:
            hands.deliver(crew, self._now)
            while self._exited:
                crew.on_victim_exit(self._exited.pop(0), self._now())
            crew.on_time(self._now())
            for handle in [handle for handle, due_ns in self._looks_due.items() if due_ns <= self._now()]:
                del self._looks_due[handle]
                crew.scout(self._land.user.descriptors[handle].process.pid, handle, self._now())
            if is_over():
                return
            if hands.has_news or self._exited:
                continue
            due = [at for at in (crew.next_deadline_ns(), *self._looks_due.values()) if at is not None]
            wait_for_news(self._land, hands, min(due, default=None))

    def _now(self) -> int:
        return self._engine.now_ns


def watch_exit(process: Process, callback: Callable[[], None]) -> None:
    """Call back when it has ended, also when it has already."""
    if process.is_dead:
        callback()
    else:
        process.on_exit.append(callback)


def wait_for_news(userland: Userland, hands: Hands, deadline_ns: int | None) -> None:
    """What epoll_wait does: until something has come, or it is that late."""
    now_ns = userland.machine.engine.now_ns
    if deadline_ns is not None and deadline_ns <= now_ns:
        userland.call()
        return
    userland.run(_sleep(hands.news, None if deadline_ns is None else deadline_ns - now_ns))
    userland.call()


def _sleep(news: Signal, duration_ns: int | None) -> Steps:
    news.timeout_ns = duration_ns
    yield news
