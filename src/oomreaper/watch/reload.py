"""A new plan while the watcher runs: a fresh command process reads the configuration, the watcher only its answer.

SIGHUP starts the command that the plan names (``recompile``); it prints the new plan on a pipe and ends with 0, or says
what is wrong and ends otherwise. A file with a fault changes nothing. The watcher never reads TOML, never waits for the
command, and ends it when it takes too long.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from typing import TYPE_CHECKING

from oomreaper.errors import BrokenPromiseError, UsageError
from oomreaper.watch.plan import decode_plan
from oomreaper.watch.service import Service, Wake

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.model.plan import Plan

# A command starts in 0.2 s on an idle machine and in seconds on one that thrashes.
_LIMIT_NS = 20_000_000_000
# No plan is larger: the file it comes from is at most 1 MiB, and its patterns grow by a few characters each.
_LONGEST_PLAN_BYTES = 4 << 20
_CHUNK_BYTES = 65_536
# At our own end; a killed process leaves within 1 ms.
_LAST_WAIT_MS = 100
# How often a command that has closed its pipe is looked after until it has gone.
_BURY_EVERY_NS = 10_000_000


class Reloader(Service):
    """Fetches a new plan.

    Args:
        on_plan: Called with a plan that is sound.
        on_fault: Called with what is wrong, in words; the old plan stays.
    """

    name = "reload"

    def __init__(self, on_plan: Callable[[Plan, int], None], on_fault: Callable[[str, int], None]) -> None:
        self._on_plan = on_plan
        self._on_fault = on_fault
        self._pid: int | None = None
        self._pipe: int | None = None
        self._content = bytearray()
        self._deadline_ns = self._bury_ns = 0
        self._is_wanted_again = False
        self._runs = 0

    def start(self, command: tuple[str, ...], now_ns: int) -> None:
        """Have a new plan made; while one is being made, another follows it."""
        if not command:
            self._on_fault("there is no configuration file to read again: this watcher runs on its defaults", now_ns)
            return
        if self._pid is not None:
            self._is_wanted_again = True
            return
        self._command = command
        try:
            self._spawn(command)
        except OSError as error:
            self._on_fault(f"no process could be started to read it: {error.strerror}", now_ns)
            return
        self._runs += 1
        self._deadline_ns = self._bury_ns = now_ns + _LIMIT_NS

    def _spawn(self, command: tuple[str, ...]) -> None:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            # posix_spawn and not fork: nothing of this locked process is copied. The child is an ordinary process: not
            # real-time, and with the usual answers to the usual signals.
            self._pid = os.posix_spawn(
                command[0],
                command,
                {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8"},
                file_actions=[(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
                setsigmask=(),
                setsigdef=(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE),
                scheduler=(os.SCHED_OTHER, os.sched_param(0)),
            )
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        self._pipe = reader
        os.set_blocking(reader, False)
        self._content = bytearray()

    def wakes(self) -> dict[int, Wake]:
        """The pipe, while a command runs."""
        if self._pipe is None:
            return {}
        return {self._pipe: Wake(("plan", self._runs), select.EPOLLIN, self._on_readable)}

    def next_deadline_ns(self) -> int | None:
        """Until when the command may take."""
        if self._pid is None:
            return None
        return self._deadline_ns if self._pipe is not None else self._bury_ns

    def on_time(self, now_ns: int) -> None:
        """End a command that takes too long; see whether one has ended."""
        if self._pid is None:
            return
        if now_ns >= self._deadline_ns:
            self._close_pipe()
            os.kill(self._pid, signal.SIGKILL)  # our own child, not waited for
            self._content = bytearray()
        if self._pipe is None and now_ns >= self._bury_ns:
            self._bury(now_ns)

    def close(self) -> None:
        """End what runs."""
        self._close_pipe()
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            poll = select.poll()
            for _ in range(_LAST_WAIT_MS):  # one that stands in the kernel is left to init
                with contextlib.suppress(ChildProcessError):
                    if os.waitpid(self._pid, os.WNOHANG)[0] == 0:
                        poll.poll(1)
                        continue
                break
            self._pid = None

    def _on_readable(self, _mask: int, now_ns: int) -> None:
        assert self._pipe is not None
        try:
            chunk = os.read(self._pipe, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        self._content += chunk
        if chunk and len(self._content) <= _LONGEST_PLAN_BYTES:
            return
        self._close_pipe()
        self._bury(now_ns)

    def _bury(self, now_ns: int) -> None:
        """The pipe is closed: the command has ended, or is about to (then we come back in a moment)."""
        assert self._pid is not None
        try:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
        except ChildProcessError:
            pid, status = self._pid, -1
        if pid == 0:
            self._bury_ns = now_ns + _BURY_EVERY_NS
            return
        content, self._content, self._pid = bytes(self._content), bytearray(), None
        self._judge(status, content, now_ns)
        if self._is_wanted_again:
            self._is_wanted_again = False
            self.start(self._command, now_ns)

    def _judge(self, status: int, content: bytes, now_ns: int) -> None:
        if status != 0:
            is_faulty = os.WIFEXITED(status) and os.WEXITSTATUS(status) == UsageError.exit_status
            said = "its faults are named above" if is_faulty else f"its reader ended with wait status {status}"
            self._on_fault(f"the new configuration was not taken: {said}; the old one stays", now_ns)
            return
        try:
            plan = decode_plan(content)
        except (ValueError, TypeError, KeyError, BrokenPromiseError) as error:
            self._on_fault(f"the new plan makes no sense ({error}); the old one stays", now_ns)
            return
        self._on_plan(plan, now_ns)

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
