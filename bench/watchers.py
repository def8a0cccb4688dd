"""A real ``oomreaper run`` and a hog for it: started, waited for until the watcher says READY, and ended.

A watcher here is either in dry run, or stays within a control group of the bench's own.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from bench import others
from tests.interpreters import SOURCE
from tests.victims import processes
from tests.victims.program import StageError, fresh_name, run_directory

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from tests.real.watching import Group

_LIMIT_S = 30.0
_RECORD = struct.Struct("=qq")


class Running(NamedTuple):
    """One that watches. ``ready_ns``: from right before its start to READY=1."""

    pid: int
    worker_pids: tuple[int, ...]
    ready_ns: int

    @property
    def pids(self) -> list[int]:
        """The watcher and its workers."""
        return [self.pid, *self.worker_pids]


class Filled(NamedTuple):
    """What a hog has seen, as CLOCK_MONOTONIC in ns: its crossing, and its last look at the clock.

    One that was stopped in mid-step, and killed before it could look, crossed after that last look: the two are equal.
    """

    pid: int
    crossed_ns: int
    last_ns: int


@contextlib.contextmanager
def running(*, config: str = "", events: Path | None = None, group: Group | None = None) -> Iterator[Running]:
    """A watcher that is ready: within ``group``, or where there is none in dry run.

    Raises:
        StageError: It does not become ready.
    """
    name = fresh_name()
    path = run_directory() / f"{name}.toml"
    path.write_text(config, encoding="utf-8")
    scope = ("--dry-run",) if group is None else ("--within", group.scope)
    command = [sys.executable, "-m", "oomreaper", "run", "--config", str(path), "--events", str(events or ""), *scope]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notify_path = str(run_directory() / f"{name}.notify")
        notified.bind(notify_path)
        # As a service is started: with nothing of the user's environment but what it needs.
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "NOTIFY_SOCKET": notify_path}
        started_ns = time.monotonic_ns()
        process = subprocess.Popen(command, stderr=subprocess.PIPE, bufsize=0, env=environment, cwd="/")
        try:
            ready_ns = _wait_until_ready(notified, process) - started_ns
            yield Running(process.pid, tuple(processes.children_of(process.pid)), ready_ns)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_LIMIT_S)
            assert process.stderr is not None
            process.stderr.close()


def _wait_until_ready(notified: socket.socket, process: subprocess.Popen[bytes]) -> int:
    assert process.stderr is not None
    deadline_s = time.monotonic() + _LIMIT_S
    while (left_s := deadline_s - time.monotonic()) > 0 and process.poll() is None:
        if select.select([notified], [], [], left_s)[0] and b"READY=1" in notified.recv(4096):
            return time.monotonic_ns()
    process.kill()
    message = f"the watcher did not become ready: {process.stderr.read().decode('utf-8', 'replace')}"
    raise StageError(message)


def fill(group: Group, *, crossing_bytes: int, target_bytes: int, bytes_per_second: int = 0) -> Filled:
    """Start somebody in the group who fills it, and wait until he was killed.

    Raises:
        StageError: Nobody killed him.
    """
    record = run_directory() / f"{fresh_name()}.record"
    record.write_bytes(bytes(4096))
    command: Sequence[object] = (
        others.compiled("filler"),
        group.directory / "cgroup.procs",
        group.directory / "memory.usage_in_bytes",
        crossing_bytes,
        target_bytes,
        bytes_per_second,
        record,
    )
    process = subprocess.Popen([str(word) for word in command])
    try:
        status = process.wait(_LIMIT_S)
    finally:
        process.kill()
        process.wait()
    crossed_ns, last_ns = _RECORD.unpack_from(record.read_bytes())
    record.unlink()
    if status != -signal.SIGKILL or not last_ns:
        message = f"a hog was to be killed: it ended with {status}, and was last alive at {last_ns}"
        raise StageError(message)
    return Filled(process.pid, crossed_ns or last_ns, last_ns)
