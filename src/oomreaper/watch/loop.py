"""The daemon's one wait: an epoll on everything that can happen, and what each means.

It knows descriptors and time, and decides nothing. Hints of the kernel (pressure triggers, events of control groups)
lead to a look at their scope; workers' answers go to the crew, exits to the team, clients to the outlet, signals to
whoever the start wired them to. A source that fails is taken out, told of once and tried again later (``guard``); the
loop goes on.

A turn is cheap: what was registered before and has the same key is left as it is, and the hints, which can be hundreds,
are gone through only when ``Sources.version`` says that they changed.
"""

from __future__ import annotations

import contextlib
import select
import time
from typing import TYPE_CHECKING

from oomreaper.errors import BrokenPromiseError
from oomreaper.reaper.worker.pool import Answered
from oomreaper.watch.guard import DECISION, Guard, describe
from oomreaper.watch.service import Wake

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.reaper.worker.pool import Ended, Pool
    from oomreaper.watch.handles import Handles
    from oomreaper.watch.mind.team import Team
    from oomreaper.watch.outlet import Outlet, Request
    from oomreaper.watch.service import Service
    from oomreaper.watch.sources import Sources

_NS_IN_MS = 1_000_000
# The longest sleep: the services (watchdog, reload, discovery of groups) are asked at least that often.
_LONGEST_WAIT_NS = 1_000 * _NS_IN_MS
# A wait that is shorter than this is timed by select, in microseconds: a look near a threshold comes 0.7 ms sooner.
_SHORT_WAIT_NS = 10 * _NS_IN_MS
# The outlet wants to be called that often, whether or not anybody speaks to it: a listener that was flooded rests.
_SERVE_EVERY_NS = 1_000 * _NS_IN_MS
# What is taken from the kernel in one turn; the rest is there at the next.
_EVENTS_A_TURN = 64
_OUTLET = "event socket"


class _Registered:
    """A descriptor in the epoll; ``turn`` is the last in which it was wanted."""

    __slots__ = ("key", "mask", "on_ready", "turn")

    def __init__(self, key: object, mask: int, on_ready: Callable[[int, int], None], turn: int) -> None:
        self.key = key
        self.mask = mask
        self.on_ready = on_ready
        self.turn = turn


class Loop:
    """Turns until it is told to stop.

    Args:
        team: The watcher and the reaper.
        pool: The workers.
        handles: The pidfds that are watched.
        sources: The kernel's hints.
        outlet: The event socket.
        on_request: Called with what a client wants, and the time.
        on_trouble: Called with what is wrong, in words, and the time.
        services: Whatever else wants to be called.
    """

    def __init__(
        self,
        team: Team,
        *,
        pool: Pool,
        handles: Handles,
        sources: Sources,
        outlet: Outlet,
        on_request: Callable[[Request, int], None],
        on_trouble: Callable[[str, int], None],
        services: tuple[Service, ...] = (),
    ) -> None:
        self._team = team
        self._pool = pool
        self._handles = handles
        self._sources = sources
        self._outlet = outlet
        self._on_request = on_request
        self._services = services
        self.guard = Guard(on_trouble)
        self._epoll = select.epoll()
        self._registered: dict[int, _Registered] = {}
        self._hints: dict[int, _Registered] = {}
        self._hints_version: int | None = None
        self._served_ns = 0
        self.is_over = False
        self.turns = 0

    def run(self) -> None:
        """Turn until ``is_over``.

        Raises:
            Exception: A fault of ours in what decides; see ``guard``.
        """
        while not self.is_over:
            now_ns = time.monotonic_ns()
            now_ns = self.wait(max(0, min(self._next_deadline_ns(now_ns) - now_ns, _LONGEST_WAIT_NS)))
            if not self.guard.is_resting(DECISION, now_ns):
                self.guard.decision(now_ns, self._team.on_time, now_ns)
            for service in self._services:
                if not self.guard.is_resting(service.name, now_ns):
                    self.guard.part(service.name, now_ns, service.on_time, now_ns)
            if now_ns - self._served_ns >= _SERVE_EVERY_NS:
                self._on_client(0, now_ns)

    def wait(self, wait_ns: int | None) -> int:
        """One turn: wait for at most so long, deal with what happens; say when it was."""
        now_ns = self.wait_bare(wait_ns)
        self.guard.decision(now_ns, self._team.collect, now_ns)
        return now_ns

    def wait_bare(self, wait_ns: int | None) -> int:
        """One turn without collecting what the crew has to say: the rehearsal does that itself."""
        self.turns += 1
        self._sync()
        if wait_ns is not None and 0 < wait_ns < _SHORT_WAIT_NS:
            select.select((self._epoll,), (), (), wait_ns / 1e9)
            wait_ns = 0
        # epoll counts whole milliseconds and CPython rounds up: it never spins before a deadline
        ready = self._epoll.poll(-1 if wait_ns is None else wait_ns / 1e9, _EVENTS_A_TURN)
        # Who has died is seen to before a hint makes anybody decide: a newcomer may hold its pid already.
        for table in (self._registered, self._hints):
            for fileno, mask in ready:
                found = table.get(fileno)
                if found is not None:
                    found.on_ready(mask, time.monotonic_ns())
        return time.monotonic_ns()

    def close(self) -> None:
        """Let go of the epoll."""
        self._epoll.close()

    def _next_deadline_ns(self, now_ns: int) -> int:
        """When something is due; what rests is due when its rest is over."""
        due = [self.guard.next_deadline_ns(now_ns)]
        if not self.guard.is_resting(DECISION, now_ns):
            due.append(self._team.next_deadline_ns())
        due += [it.next_deadline_ns() for it in self._services if not self.guard.is_resting(it.name, now_ns)]
        return min((at for at in due if at is not None), default=now_ns + _LONGEST_WAIT_NS)

    # -- descriptors ---------------------------------------------------------------------------------------

    def _sync(self) -> None:
        """Register what is new, forget what has gone. A number that is reused has another key.

        What has gone is taken out first, of both tables: its number may stand for something new in the other.
        """
        missing = self._find_missing()
        version = self._sources.version
        hints = self._sources.hints() if version != self._hints_version else None
        self._purge(self._registered, lambda _, entry: entry.turn == self.turns)
        if hints is not None:
            self._purge(self._hints, lambda fileno, entry: fileno in hints and hints[fileno].key == entry.key)
        for fileno, wake in missing:
            self._register(self._registered, fileno, wake)
        if hints is not None:
            self._hints_version = version
            for fileno, hint in hints.items():
                if fileno in self._hints:
                    continue
                is_resting = self.guard.is_resting(_hint_name(fileno), time.monotonic_ns())
                wake = Wake(hint.key, hint.mask, self._looker_of(fileno))
                if is_resting or not self._register(self._hints, fileno, wake):
                    self._hints_version = None  # tried again at the next turn

    def _purge(self, table: dict[int, _Registered], is_kept: Callable[[int, _Registered], bool]) -> None:
        for fileno in [fileno for fileno, entry in table.items() if not is_kept(fileno, entry)]:
            with contextlib.suppress(OSError):  # closed already: epoll has forgotten it by itself
                self._epoll.unregister(fileno)
            del table[fileno]

    def _register(self, table: dict[int, _Registered], fileno: int, wake: Wake) -> bool:
        """Whether the kernel took it; where it does not (no memory, closed meanwhile), it is tried the next time."""
        try:
            self._epoll.register(fileno, wake.mask)
        except (OSError, ValueError):  # ValueError: a socket that was closed says -1
            return False
        table[fileno] = _Registered(wake.key, wake.mask, wake.on_ready, self.turns)
        return True

    def _find_missing(self) -> list[tuple[int, Wake]]:
        """What is wanted and not registered; what is registered and wanted gets this turn's mark."""
        missing: list[tuple[int, Wake]] = []
        for worker, fileno in self._pool.filenos().items():
            key = ("worker", worker)
            if not self._has(fileno, key):
                missing.append((fileno, Wake(key, select.EPOLLIN, self._reader_of(worker))))
        for handle in self._handles.watched:
            key = ("process", self._handles.serial_of(handle))
            if not self._has(handle, key):
                missing.append((handle, Wake(key, select.EPOLLIN, self._watcher_of(handle))))
        outlet = self._outlet.fileno()
        now_ns = time.monotonic_ns()
        if outlet is not None and not self.guard.is_resting(_OUTLET, now_ns) and not self._has(outlet, _OUTLET):
            missing.append((outlet, Wake(_OUTLET, select.EPOLLIN, self._on_client)))
        for service in self._services:
            if self.guard.is_resting(service.name, now_ns):
                continue
            for fileno, wake in service.wakes().items():
                if not self._has(fileno, wake.key):
                    missing.append((fileno, wake._replace(on_ready=self._caller_of(service.name, wake.on_ready))))
        return missing

    def _has(self, fileno: int, key: object) -> bool:
        entry = self._registered.get(fileno)
        if entry is None or entry.key != key:
            return False
        entry.turn = self.turns
        return True

    # -- what each means -----------------------------------------------------------------------------------

    def _caller_of(self, name: str, on_ready: Callable[[int, int], None]) -> Callable[[int, int], None]:
        def call(mask: int, now_ns: int) -> None:
            self.guard.part(name, now_ns, on_ready, mask, now_ns)

        return call

    def _reader_of(self, worker: int) -> Callable[[int, int], None]:
        def read(_mask: int, now_ns: int) -> None:
            if worker in self._pool.filenos():
                self.guard.decision(now_ns, self._read_worker, worker, now_ns)

        return read

    def _read_worker(self, worker: int, now_ns: int) -> None:
        try:
            said = self._pool.read(worker)
        except (ValueError, TypeError, LookupError, BrokenPromiseError) as error:
            # It speaks nonsense, and what it holds is a job at hand: another one takes that over.
            self._pool.dismiss(worker)
            why = f"it answered what is no answer ({describe(error)})"
            self._team.crew.on_worker_exit(worker, now_ns, why=why, is_sandboxed=False)
            return
        self._on_said(said, now_ns)

    def _on_said(self, said: Answered | Ended | None, now_ns: int) -> None:
        if isinstance(said, Answered):
            self._team.crew.on_report(said.worker, said.report, now_ns)
        elif said is not None:
            self._team.crew.on_worker_exit(said.worker, now_ns, why=said.why, is_sandboxed=said.is_sandboxed)

    def _watcher_of(self, handle: int) -> Callable[[int, int], None]:
        def see(_mask: int, now_ns: int) -> None:
            # Asked once more: an event may be of an earlier life of the number, which a child of ours still holds.
            if handle in self._handles.watched and _is_readable(handle):
                self._handles.watched.discard(handle)
                self.guard.decision(now_ns, self._team.on_exit, handle, now_ns)

        return see

    def _looker_of(self, fileno: int) -> Callable[[int, int], None]:
        def look(mask: int, now_ns: int) -> None:
            scopes: list[str | None] = [None]

            def take_hint() -> None:
                scopes[0] = self._sources.on_hint(fileno, mask, now_ns)

            if not self.guard.part(_hint_name(fileno), now_ns, take_hint):
                # It would wake us without end; the timer looks all the same.
                self._purge(self._hints, lambda number, _: number != fileno)
                self._hints_version = None
            elif scopes[0] is not None:
                self.guard.decision(now_ns, self._team.watcher.look, scopes[0], now_ns)

        return look

    def _on_client(self, _mask: int, now_ns: int) -> None:
        self._served_ns = now_ns
        if not self.guard.is_resting(_OUTLET, now_ns):
            self.guard.part(_OUTLET, now_ns, self._serve, now_ns)

    def _serve(self, now_ns: int) -> None:
        for request in self._outlet.serve(now_ns):
            self._on_request(request, now_ns)


def _hint_name(fileno: int) -> str:
    return f"hint of descriptor {fileno}"


def _is_readable(fileno: int) -> bool:
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))
