"""The clerk's life: it listens to the watcher's events, and runs the hooks that they call for.

An ordinary Python process that the watcher's launcher starts beside it, by ``clerk_command``. It ends with its parent:
by the signal that the kernel sends then, and because it looks. While the parent lives and the socket does not, it comes
back every 200 ms. Nothing it does or fails to do reaches the watcher, which waits for an acknowledgement no longer
than the hook's deadline.

It gives up what it has inherited and hooks should not have: the watcher's real-time priority, its nice value and its
exemption from the kernel's OOM killer.

What it runs: ``pre_kill`` for an ``announce`` that carries a ``"hook"``, acknowledged by ``{"ack": hook, "status": n}``
(null when it was not run); ``post_kill`` for a ``settled``. A record that it has seen before (the socket gives the last
ones to everybody who connects), or that is older than this process, runs nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from typing import TYPE_CHECKING

from oomreaper.clerk.hooks import HookRunner
from oomreaper.linux import syscalls
from oomreaper.linux.interpreter import python_command
from oomreaper.model.plan import Hooks
from oomreaper.watch.log import Log
from oomreaper.watch.outlet import BACKLOG_MESSAGES, MESSAGE_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

_STDERR = 2
_PROGRAM = "from oomreaper.clerk.serve import main; main(sys.argv[1:])"
# A watcher that is being replaced is back within 100 ms.
_RECONNECT_MS = 200
# How often it looks whether its parent is still there, should the kernel's signal have come before it was asked for.
_PARENT_CHECK_MS = 1000
_NS_IN_MS = 1_000_000
_RECORDS_A_TURN = 64
# More than the socket keeps for who connects.
_SEEN_LIMIT = 4 * BACKLOG_MESSAGES
# Room for the largest message and the count that may stand before it.
_RECEIVE_BYTES = MESSAGE_LIMIT_BYTES + 64
_ORDINARY_OOM_SCORE_ADJ = b"0"


def clerk_command(events_path: str, hooks: Hooks) -> list[str]:
    """The command line of a clerk.

    Raises:
        KernelError: This program has no interpreter to start.
    """
    return python_command(_PROGRAM, events_path, json.dumps(hooks))


def parse_hooks(text: str) -> Hooks:
    """What ``clerk_command`` has written."""
    pre_kill, pre_kill_timeout_ns, post_kill, post_kill_timeout_ns = json.loads(text)
    return Hooks(tuple(pre_kill), pre_kill_timeout_ns, tuple(post_kill), post_kill_timeout_ns)


class Clerk:
    """Listens and has hooks run.

    Args:
        events_path: The watcher's event socket.
        hooks: What to run.
        log: Where lines go.
        parent_pid: With whom it ends.
    """

    def __init__(self, events_path: str, hooks: Hooks, log: Log, parent_pid: int) -> None:
        self._path = events_path
        self._hooks = hooks
        self._log = log
        self._parent_pid = parent_pid
        self._runner = HookRunner(log.write)
        self._socket: socket.socket | None = None
        self._started_ns = time.monotonic_ns()
        self._seen: dict[tuple[object, ...], None] = {}  # an ordered set
        self._is_told_to_end = False
        self._wakeup = -1

    def run(self) -> None:
        """Serve until the parent has gone, or somebody asks for the end."""
        self._wakeup, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            while not self._is_told_to_end and os.getppid() == self._parent_pid:
                if self._socket is None:
                    self._connect()
                self._wait()
                self._read_records()
                self._read_hooks()
        finally:
            self._runner.close()
            self._disconnect()
            signal.set_wakeup_fd(-1)
            os.close(writer)
            os.close(self._wakeup)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._is_told_to_end = True

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.connect(self._path)
            connection.setblocking(False)
        except OSError:
            connection.close()
            return
        self._socket = connection

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._wakeup, select.POLLIN)
        for fd in self._runner.filenos():
            poll.register(fd, select.POLLIN)
        limit_ms = _RECONNECT_MS
        if self._socket is not None:
            poll.register(self._socket, select.POLLIN)
            limit_ms = _PARENT_CHECK_MS
        deadline_ns = self._runner.next_deadline_ns()
        if deadline_ns is not None:
            limit_ms = max(0, min(limit_ms, (deadline_ns - time.monotonic_ns()) // _NS_IN_MS + 1))
        poll.poll(limit_ms)

    def _read_records(self) -> None:
        for _ in range(_RECORDS_A_TURN):
            if self._socket is None:
                return
            try:
                message = self._socket.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                message = b""
            if not message:
                self._disconnect()
                return
            with contextlib.suppress(ValueError, TypeError):  # TypeError: a list where a plain value belongs
                record = json.loads(message)
                if isinstance(record, dict):
                    self._on_record(record)

    def _on_record(self, record: dict[str, object]) -> None:
        moment = record.get("monotonic_ns")
        if not isinstance(moment, int) or moment < self._started_ns:
            return
        key = (moment, *(record.get(field) for field in ("event", "incident", "pid", "start_time_ticks", "hook")))
        if key in self._seen:
            return
        self._seen[key] = None
        if len(self._seen) > _SEEN_LIMIT:
            del self._seen[next(iter(self._seen))]
        now_ns = time.monotonic_ns()
        match record.get("event"):
            case "announce" if self._hooks.pre_kill:
                self._run_pre_kill(record, moment + self._hooks.pre_kill_timeout_ns, now_ns)
            case "settled" if self._hooks.post_kill:
                timeout_ns = self._hooks.post_kill_timeout_ns
                self._runner.start(
                    "post_kill", self._hooks.post_kill, record, token=None, timeout_ns=timeout_ns, now_ns=now_ns
                )

    def _run_pre_kill(self, record: dict[str, object], deadline_ns: int, now_ns: int) -> None:
        """The deadline runs from the announcement: the watcher does not wait longer."""
        token = record.get("hook")
        if not isinstance(token, str):
            return
        if now_ns >= deadline_ns:
            self._log.write("pre_kill hook not run: its time was over when the record was read")
            return
        problem = self._runner.start(
            "pre_kill", self._hooks.pre_kill, record, token=token, timeout_ns=deadline_ns - now_ns, now_ns=now_ns
        )
        if problem is not None:
            self._acknowledge(token, problem if problem > 0 else None)

    def _read_hooks(self) -> None:
        for ended in self._runner.serve(time.monotonic_ns()):
            if ended.token is not None:
                self._acknowledge(ended.token, ended.status)

    def _acknowledge(self, token: str, status: int | None) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # the watcher waits no longer than the deadline anyway
                self._socket.send(json.dumps({"ack": token, "status": status}).encode(), socket.MSG_NOSIGNAL)


def main(arguments: Sequence[str]) -> None:
    """Be the clerk; ``arguments`` are the path of the event socket and the hooks."""
    events_path, hooks_text = arguments
    parent_pid = os.getppid()
    syscalls.die_with_parent(signal.SIGTERM)
    syscalls.set_process_name(b"oomreaper/clerk")
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the watcher blocks some while it starts us
    _be_ordinary()
    log = Log(_STDERR, os.environ.get("JOURNAL_STREAM"))
    Clerk(events_path, parse_hooks(hooks_text), log, parent_pid).run()
    sys.exit(0)


def _be_ordinary() -> None:
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)
    with contextlib.suppress(OSError):
        file = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, _ORDINARY_OOM_SCORE_ADJ)
        finally:
            os.close(file)
