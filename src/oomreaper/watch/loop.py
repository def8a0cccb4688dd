"""The daemon's one wait: an epoll on everything that can happen, and what each means.

It knows descriptors and time, and decides nothing. Hints of the kernel (pressure triggers, events of control groups)
lead to a look at their scope; workers' answers go to the crew, exits to the team, clients to the outlet, signals to
whoever the start wired them to. A source that fails is taken out, told of once and tried again later; the loop goes on.
"""

from __future__ import annotations

import contextlib
import errno
import select
import time
from typing import TYPE_CHECKING, NamedTuple

from oomreaper.reaper.worker.pool import Answered

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.reaper.worker.pool import Pool
    from oomreaper.watch.handles import Handles
    from oomreaper.watch.outlet import Outlet, Request
    from oomreaper.watch.sources import Sources
    from oomreaper.watch.team import Team

_NS_IN_MS = 1_000_000
# The longest sleep: the services (watchdog, reload, discovery of groups) are asked at least that often.
_LONGEST_WAIT_NS = 1_000 * _NS_IN_MS


class Wake(NamedTuple):
    """A descriptor to wait on: ``key`` tells one life of its number from the next, ``mask`` is epoll's."""

    key: object
    mask: int
    on_ready: Callable[[int, int], None]  # what has happened (epoll's mask), when (monotonic ns)


class Service:
    """Something that wants to be called now and then, and may have descriptors of its own."""

    def wakes(self) -> dict[int, Wake]:
        """Its descriptors."""
        return {}

    def next_deadline_ns(self) -> int | None:
        """When it must be called at the latest."""
        return None

    def on_time(self, now_ns: int) -> None:
        """Do what is due."""


class Loop:
    """Turns until it is told to stop.

    Args:
        team: The watcher and the reaper.
        pool: The workers.
        handles: The pidfds that are watched.
        sources: The kernel's hints.
        outlet: The event socket.
        on_request: Called with what a client wants, and the time.
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
        services: tuple[Service, ...] = (),
    ) -> None:
        self._team = team
        self._pool = pool
        self._handles = handles
        self._sources = sources
        self._outlet = outlet
        self._on_request = on_request
        self._services = services
        self._epoll = select.epoll()
        self._registered: dict[int, Wake] = {}
        self.is_over = False
        self.turns = 0

    def run(self) -> None:
        """Turn until ``is_over``."""
        while not self.is_over:
            now_ns = time.monotonic_ns()
            due = [self._team.next_deadline_ns(), *(service.next_deadline_ns() for service in self._services)]
            until_ns = min((at for at in due if at is not None), default=now_ns + _LONGEST_WAIT_NS)
            now_ns = self.wait(max(0, min(until_ns - now_ns, _LONGEST_WAIT_NS)))
            self._team.on_time(now_ns)
            for service in self._services:
                service.on_time(now_ns)

    def wait(self, wait_ns: int | None) -> int:
        """One turn: wait for at most so long, deal with what happens; say when it was."""
        now_ns = self.wait_bare(wait_ns)
        self._team.collect(now_ns)
        return now_ns

    def wait_bare(self, wait_ns: int | None) -> int:
        """One turn without collecting what the crew has to say: the rehearsal does that itself."""
        self.turns += 1
        self._sync()
        # epoll counts whole milliseconds and CPython rounds up: it never spins before a deadline
        for fileno, mask in self._epoll.poll(-1 if wait_ns is None else wait_ns / 1e9):
            wake = self._registered.get(fileno)
            if wake is not None:
                wake.on_ready(mask, time.monotonic_ns())
        return time.monotonic_ns()

    def close(self) -> None:
        """Let go of the epoll."""
        self._epoll.close()

    # -- descriptors ---------------------------------------------------------------------------------------

    def _sync(self) -> None:
        """Register what is new, forget what has gone. A number that is reused has another key."""
        wanted = self._wanted()
        for fileno, wake in list(self._registered.items()):
            if fileno not in wanted or wanted[fileno].key != wake.key or wanted[fileno].mask != wake.mask:
                with contextlib.suppress(OSError):  # closed already: epoll has forgotten it by itself
                    self._epoll.unregister(fileno)
                del self._registered[fileno]
        for fileno, wake in wanted.items():
            if fileno not in self._registered:
                try:
                    self._epoll.register(fileno, wake.mask)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.EBADF, errno.ENOMEM, errno.ENOSPC, errno.EPERM):
                        raise
                    continue  # tried again at the next turn
            self._registered[fileno] = wake

    def _wanted(self) -> dict[int, Wake]:
        wanted: dict[int, Wake] = {}
        for worker, fileno in self._pool.filenos().items():
            wanted[fileno] = Wake(("worker", worker), select.EPOLLIN, self._reader_of(worker))
        for handle in self._handles.watched:
            wanted[handle] = Wake(("process", handle), select.EPOLLIN, self._watcher_of(handle))
        for fileno, hint in self._sources.hints().items():
            wanted[fileno] = Wake(("hint", hint.key), hint.mask, self._looker_of(fileno))
        outlet = self._outlet.fileno()
        if outlet is not None:
            wanted[outlet] = Wake("outlet", select.EPOLLIN, self._on_client)
        for service in self._services:
            wanted.update(service.wakes())
        return wanted

    def _reader_of(self, worker: int) -> Callable[[int, int], None]:
        def read(_mask: int, now_ns: int) -> None:
            if worker not in self._pool.filenos():
                return
            said = self._pool.read(worker)
            if isinstance(said, Answered):
                self._team.crew.on_report(said.worker, said.report, now_ns)
            elif said is not None:
                self._team.crew.on_worker_exit(said.worker, now_ns, why=said.why, is_sandboxed=said.is_sandboxed)

        return read

    def _watcher_of(self, handle: int) -> Callable[[int, int], None]:
        def see(_mask: int, now_ns: int) -> None:
            if handle in self._handles.watched:
                self._handles.watched.discard(handle)
                self._team.on_exit(handle, now_ns)

        return see

    def _looker_of(self, fileno: int) -> Callable[[int, int], None]:
        def look(mask: int, now_ns: int) -> None:
            scope = self._sources.on_hint(fileno, mask, now_ns)
            if scope is not None:
                self._team.watcher.look(scope, now_ns)

        return look

    def _on_client(self, _mask: int, now_ns: int) -> None:
        for request in self._outlet.serve(now_ns):
            self._on_request(request, now_ns)
