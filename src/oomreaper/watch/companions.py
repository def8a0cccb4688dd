"""The clerk kept alive: a process beside the watcher that runs the hooks. The watcher itself only starts it again."""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING

from oomreaper.watch.loop import Service

if TYPE_CHECKING:
    from collections.abc import Callable

_SECOND_NS = 1_000_000_000
# A clerk that ends at once is started again after 1 s, 2 s, 4 s and so on up to this.
_LONGEST_PAUSE_NS = 60 * _SECOND_NS
# One that has lived for so long counts as sound: its next start is not put off.
_SOUND_NS = 30 * _SECOND_NS
_LOOK_EVERY_NS = 1 * _SECOND_NS


class Companion(Service):
    """One process that is started again when it ends.

    Args:
        on_fault: Called with what is wrong, in words, and the time.
    """

    def __init__(self, on_fault: Callable[[str, int], None]) -> None:
        self._on_fault = on_fault
        self._command: tuple[str, ...] = ()
        self.pid: int | None = None
        self._started_ns = self._due_ns = self._not_before_ns = 0
        self._pause_ns = _SECOND_NS

    def adopt(self, command: tuple[str, ...], now_ns: int) -> None:
        """From now on this is to run (nothing, when it is empty); what ran before is ended if it was another."""
        if command == self._command:
            return
        self._command = command
        self._end()
        self._due_ns = self._not_before_ns = now_ns
        self._pause_ns = _SECOND_NS
        self.on_time(now_ns)

    def next_deadline_ns(self) -> int | None:
        """When to look again; its end wakes nobody, and a hook is not waited for beyond its deadline."""
        return self._due_ns if self._command else None

    def on_time(self, now_ns: int) -> None:
        """Start it when it is due; see whether it has ended."""
        if not self._command or now_ns < self._due_ns:
            return
        self._due_ns = now_ns + _LOOK_EVERY_NS
        if self.pid is not None:
            self._look(now_ns)
        if self.pid is None and now_ns >= self._not_before_ns:
            self._start(now_ns)

    def close(self) -> None:
        """End it."""
        self._command = ()
        self._end()

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

    def _end(self) -> None:
        if self.pid is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # our own child, not waited for
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self.pid = None
