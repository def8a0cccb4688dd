"""The clerk kept alive: a process beside the watcher that runs the hooks. The watcher itself only starts it again.

Nobody is waited for here: a clerk that is not wanted any more is asked to end (and ends its hooks), is killed when
it has not after a moment, and looked after by the way.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING

from oomreaper.watch.service import Service

if TYPE_CHECKING:
    from collections.abc import Callable

_SECOND_NS = 1_000_000_000
# A clerk that ends at once is started again after 2 s, 4 s, 8 s and so on up to this.
_LONGEST_PAUSE_NS = 60 * _SECOND_NS
# One that has lived for so long counts as sound: its next start is not put off.
_SOUND_NS = 30 * _SECOND_NS
_LOOK_EVERY_NS = 1 * _SECOND_NS
# How long one that was asked to end has for ending its hooks.
_GRACE_NS = 1 * _SECOND_NS
# At our own end there is less: a hook that is still there then is killed with its clerk's session or left to init.
_LAST_GRACE_MS = 200
_LAST_WAIT_MS = 100


class Companion(Service):
    """One process that is started again when it ends.

    Args:
        on_fault: Called with what is wrong, in words, and the time.
    """

    name = "clerk"

    def __init__(self, on_fault: Callable[[str, int], None]) -> None:
        self._on_fault = on_fault
        self._command: tuple[str, ...] = ()
        self.pid: int | None = None
        self._started_ns = self._due_ns = self._not_before_ns = 0
        self._pause_ns = _SECOND_NS
        self._leaving: dict[int, int] = {}  # not waited for yet, and when each is to be killed

    @property
    def is_wanted(self) -> bool:
        """Whether there are hooks to run."""
        return bool(self._command)

    def adopt(self, command: tuple[str, ...], now_ns: int) -> None:
        """From now on this is to run (nothing, when it is empty); what ran before is ended if it was another."""
        if command == self._command:
            return
        self._command = command
        self._dismiss(now_ns)
        self._due_ns = self._not_before_ns = now_ns
        self._pause_ns = _SECOND_NS
        self.on_time(now_ns)

    def next_deadline_ns(self) -> int | None:
        """When to look again; its end wakes nobody, and a hook is not waited for beyond its deadline."""
        return self._due_ns if self._command or self._leaving else None

    def on_time(self, now_ns: int) -> None:
        """Start it when it is due; see whether it has ended."""
        if now_ns < self._due_ns:
            return
        self._due_ns = now_ns + _LOOK_EVERY_NS
        self._bury(now_ns)
        if not self._command:
            return
        if self.pid is not None:
            self._look(now_ns)
        if self.pid is None and now_ns >= self._not_before_ns:
            self._start(now_ns)

    def close(self) -> None:
        """End it; waits for a moment, and never longer."""
        self._command = ()
        self._dismiss(0)
        for wait_ms, kills in ((_LAST_GRACE_MS, False), (_LAST_WAIT_MS, True)):
            if kills:
                for pid in self._leaving:
                    _signal(pid, signal.SIGKILL)
            poll = select.poll()
            for _ in range(wait_ms):
                self._bury(-1)
                if not self._leaving:
                    return
                poll.poll(1)

    def _look(self, now_ns: int) -> None:
        assert self.pid is not None
        try:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self.pid, 0
        if not pid:
            return
        self.pid = None
        is_sound = now_ns - self._started_ns >= _SOUND_NS
        self._pause_ns = _SECOND_NS if is_sound else min(2 * self._pause_ns, _LONGEST_PAUSE_NS)
        self._not_before_ns = now_ns + self._pause_ns
        self._on_fault(f"the clerk, which runs the hooks, ended (wait status {status}); it is started again", now_ns)

    def _start(self, now_ns: int) -> None:
        self._started_ns = now_ns
        try:
            self.pid = os.posix_spawn(
                self._command[0],
                self._command,
                dict(os.environ),
                file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                setsigmask=(),
                setsigdef=(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE),
                scheduler=(os.SCHED_OTHER, os.sched_param(0)),
            )
        except OSError as error:
            self._pause_ns = min(2 * self._pause_ns, _LONGEST_PAUSE_NS)
            self._not_before_ns = now_ns + self._pause_ns
            self._on_fault(f"the clerk, which runs the hooks, cannot be started: {error.strerror}", now_ns)

    def _dismiss(self, now_ns: int) -> None:
        """What runs is not wanted any more."""
        if self.pid is None:
            return
        _signal(self.pid, signal.SIGTERM)
        self._leaving[self.pid] = now_ns + _GRACE_NS
        self.pid = None

    def _bury(self, now_ns: int) -> None:
        for pid, kill_ns in list(self._leaving.items()):
            try:
                is_there = os.waitpid(pid, os.WNOHANG)[0] == 0
            except ChildProcessError:
                is_there = False
            if not is_there:
                del self._leaving[pid]
            elif now_ns >= kill_ns:
                _signal(pid, signal.SIGKILL)


def _signal(pid: int, number: int) -> None:
    """Signal a child of our own that was not waited for: its pid cannot have been given on."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
