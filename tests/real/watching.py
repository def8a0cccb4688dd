"""A real watcher at a real shortage, within a memory cgroup of the test's own.

``memory_group`` makes a v1 group with a limit and hands its shortage to user space (the kernel's killer off, so that
nothing but the watcher can help). ``Group.start`` starts a process inside. ``watching`` runs ``oomreaper run --within``
that group and collects its events from the socket; nobody outside the group can be its victim. Everything is bounded
and ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.interpreters import SOURCE
from tests.victims import processes
from tests.victims.cgroups import own_directory
from tests.victims.processes import wait_until
from tests.victims.program import MIB
from tests.victims.surroundings import own_cgroup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# No scenario takes longer; what is stuck is let go of before the kernel complains (120 s).
LIMIT_SECONDS = 40.0
_PREAMBLE = "import os, sys, time, signal; open({procs!r}, 'w').write(str(os.getpid()))\n"
# Fills {mib} MiB, a page at a time and never slower than it is let; then stays.
HOG = """
held = []
print("filling", flush=True)
for _ in range({mib}):
    held.append(bytearray(b"x" * (1 << 20)))
    time.sleep({pause})
print("full", flush=True)
time.sleep({stay})
"""
IDLE = """
held = [bytearray(b"x" * (1 << 20)) for _ in range({mib})]
print("idle", flush=True)
time.sleep({stay})
"""


class Member:
    """A process of the test's own inside a group."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def wait(self, timeout_s: float = LIMIT_SECONDS) -> int:
        """How it ended: minus the signal's number."""
        return self.process.wait(timeout_s)

    def await_word(self, word: str) -> None:
        """Read what it prints until it says so."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == word:
                return
        message = f"{self.pid} ended before it said {word}"
        raise AssertionError(message)


class Group:
    """A memory cgroup with a limit; ``scope`` is what /proc/PID/cgroup calls it."""

    def __init__(self, directory: Path, scope: str, limit_bytes: int) -> None:
        self.directory = directory
        self.scope = scope
        self.limit_bytes = limit_bytes
        self.members: list[Member] = []

    def command(self, program: str) -> list[str]:
        """The command line of a Python that enters the group and runs ``program``."""
        code = _PREAMBLE.format(procs=str(self.directory / "cgroup.procs")) + program
        return [sys.executable, "-I", "-S", "-c", code]

    def start(self, program: str, *, argv: Sequence[str] = (), **options: Any) -> Member:
        """A Python process that enters the group and runs ``program``; its stdout is the member's words."""
        process = subprocess.Popen([*self.command(program), *argv], stdout=subprocess.PIPE, text=True, **options)
        member = Member(process)
        self.members.append(member)
        return member

    def start_outside(self, program: str, *, argv: Sequence[str] = (), **options: Any) -> Member:
        """A Python process that does not enter the group."""
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", program, *argv], stdout=subprocess.PIPE, text=True, **options
        )
        member = Member(process)
        self.members.append(member)
        return member

    def start_idle(self, mib: int, **options: Any) -> Member:
        """A bystander that holds so much and does nothing."""
        member = self.start(IDLE.format(mib=mib, stay=LIMIT_SECONDS), **options)
        member.await_word("idle")
        return member

    def start_hog(self, mib: int, *, pause_s: float = 0.001, prelude: str = "", **options: Any) -> Member:
        """Somebody who takes so much; ``prelude`` runs before."""
        return self.start(prelude + HOG.format(mib=mib, pause=pause_s, stay=LIMIT_SECONDS), **options)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in the group ourselves meanwhile, so that what is staged then is born into it; before a watcher runs.

        Memory stays charged where it was first touched (kernels of late move no charges), so a victim has to be inside
        before it takes any.
        """
        outside = own_directory("memory")
        assert outside is not None
        (self.directory / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        try:
            yield
        finally:
            (outside / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")

    @contextlib.contextmanager
    def inner(self, name: str, limit_mib: int | None = None) -> Iterator[Group]:
        """A group below this one, with a limit of its own or without; the kernel's killer is off there too."""
        directory = self.directory / name
        directory.mkdir()
        if limit_mib is not None:
            (directory / "memory.limit_in_bytes").write_text(str(limit_mib * MIB), encoding="ascii")
            (directory / "memory.oom_control").write_text("1", encoding="ascii")
        group = Group(directory, f"{self.scope}/{name}", limit_mib * MIB if limit_mib is not None else self.limit_bytes)
        try:
            yield group
        finally:
            group.end_members()
            wait_until(lambda: not (directory / "cgroup.procs").read_text(encoding="ascii").split(), 10)
            wait_until(lambda: _has_removed(directory), 10)

    @property
    def used_bytes(self) -> int:
        """What is charged to the group."""
        return int((self.directory / "memory.usage_in_bytes").read_text(encoding="ascii"))

    @property
    def used_with_swap_bytes(self) -> int:
        """What is charged to the group, what of it is swapped out included."""
        return int((self.directory / "memory.memsw.usage_in_bytes").read_text(encoding="ascii"))

    @property
    def is_under_oom(self) -> bool:
        """Whether somebody hangs at the limit now."""
        return "under_oom 1" in (self.directory / "memory.oom_control").read_text(encoding="ascii")

    @property
    def pids(self) -> list[int]:
        """Who is in it, in ascending order."""
        return sorted(int(word) for word in (self.directory / "cgroup.procs").read_text(encoding="ascii").split())

    def _has_emptied(self) -> bool:
        """Kill whoever was born into the group; nobody is in it but those that the test started, and their children."""
        pids = set(self.pids) - {0, os.getpid()}
        for pid in pids:
            start_time = processes.start_time_ticks(pid)
            if pid in self.pids:  # the start time is of a member
                processes.kill_exactly(pid, start_time)
        return not pids

    def end_members(self) -> None:
        """Kill and wait for whoever is left of those that were started."""
        (self.directory / "memory.oom_control").write_text("0", encoding="ascii")  # who hangs at the limit goes on
        for member in self.members:
            if member.is_alive:
                member.process.kill()
        wait_until(self._has_emptied, LIMIT_SECONDS)
        for member in self.members:
            member.process.wait(LIMIT_SECONDS)
            if member.process.stdout is not None:
                member.process.stdout.close()


@contextlib.contextmanager
def memory_group(limit_mib: int, *, swap_mib: int = 0, is_kernel_killer_on: bool = False) -> Iterator[Group]:
    """A group of our own with a limit, and so much swap at most, whatever the machine has (or other runs)."""
    with own_cgroup("memory") as directory:
        (directory / "memory.limit_in_bytes").write_text(str(limit_mib * MIB), encoding="ascii")
        with_swap = directory / "memory.memsw.limit_in_bytes"
        if with_swap.exists():
            with_swap.write_text(str((limit_mib + swap_mib) * MIB), encoding="ascii")
        if not is_kernel_killer_on:
            (directory / "memory.oom_control").write_text("1", encoding="ascii")
        group = Group(directory, _scope_of(directory), limit_mib * MIB)
        try:
            yield group
        finally:
            group.end_members()
            wait_until(lambda: not (directory / "cgroup.procs").read_text(encoding="ascii").split(), 10)


def _has_removed(directory: Path) -> bool:
    """A group is busy for a moment after its last member."""
    try:
        directory.rmdir()
    except OSError:
        return not directory.exists()
    return True


def _scope_of(directory: Path) -> str:
    """Ask the kernel: the name that a member of the group sees."""
    code = _PREAMBLE.format(procs=str(directory / "cgroup.procs")) + "print(open('/proc/self/cgroup').read())"
    said = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    return next(line.split(":", 2)[2] for line in said.splitlines() if ":memory:" in line or ",memory" in line)


class Watching:
    """A watcher that runs. ``events`` are those that came over its socket so far, ``log`` its lines."""

    def __init__(self, process: subprocess.Popen[bytes], events_path: str, config_path: Path) -> None:
        self.process = process
        self.config_path = config_path  # for tests that change it and reload
        self.pid = process.pid
        self.events_path = events_path
        self.events: list[dict[str, Any]] = []
        self.log = ""
        self._connection: socket.socket | None = None

    def connect(self) -> None:
        """Listen to its events from now on (and to those of its backlog)."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.events_path)
        self._connection = connection

    def collect(self, timeout_s: float = 0.0) -> None:
        """Take in what has come."""
        assert self.process.stderr is not None
        readers: list[Any] = [self.process.stderr]
        if self._connection is not None:
            readers.append(self._connection)
        ready, _, _ = select.select(readers, [], [], timeout_s)
        for reader in ready:
            if reader is self._connection:
                message = self._connection.recv(1 << 20)
                if message:
                    self.events.append(json.loads(message))
                else:
                    self._connection.close()
                    self._connection = None
            else:
                self.log += os.read(self.process.stderr.fileno(), 1 << 16).decode("utf-8", "replace")

    def await_event(
        self, event: str, timeout_s: float = LIMIT_SECONDS, *, where: Callable[[dict[str, Any]], bool] = lambda _: True
    ) -> dict[str, Any]:
        """The first event of that kind (and of which ``where`` holds) that came or comes."""
        until = time.monotonic() + timeout_s
        while True:
            for record in self.events:
                if record["event"] == event and where(record):
                    return record
            left = until - time.monotonic()
            if left <= 0 or self.process.poll() is not None:
                message = f"no such event {event}; there were {self.events}; it said {self.log}"
                raise AssertionError(message)
            self.collect(min(left, 0.5))

    def await_log(self, text: str, timeout_s: float = LIMIT_SECONDS) -> None:
        """Wait until its log says so."""
        until = time.monotonic() + timeout_s
        while text not in self.log:
            left = until - time.monotonic()
            if left <= 0 or self.process.poll() is not None:
                message = f"its log does not say {text!r}: {self.log}"
                raise AssertionError(message)
            self.collect(min(left, 0.5))

    def about(self, pid: int) -> list[str]:
        """What was told of a process so far, in its order: the kinds of its events."""
        self.collect()
        return [record["event"] for record in self.events if record.get("pid") == pid]

    def of_kind(self, event: str) -> list[dict[str, Any]]:
        """The events of that kind so far."""
        self.collect()
        return [record for record in self.events if record["event"] == event]

    def ask_state(self) -> dict[str, Any]:
        """What explain would show, by a connection of its own."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.settimeout(10)
            connection.connect(self.events_path)
            connection.send(b'{"ask":"state"}')
            while True:
                record: dict[str, Any] = json.loads(connection.recv(1 << 20))
                if record["event"] == "state":
                    return record

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Keep it from looking meanwhile."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            wait_until(lambda: processes.states(self.pid).get(self.pid) == "T", 10)
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def has_lost_nothing(self) -> bool:
        """Whether all that it told so far was taken by its socket and its log."""
        statistics = self.ask_state()["statistics"]
        outlet = statistics["outlet"]
        losses = (statistics["log_lines_lost"], outlet["dropped"], outlet["stalled"], outlet["malformed"])
        return losses == (0, 0, 0, 0)

    def disconnect(self) -> None:
        """Listen no more."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def give_up(self, timeout_s: float = 10.0) -> None:
        """However it stands: end it, with force if need be, and listen no more."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self.process.stderr is not None:
            self.process.stderr.close()
        self.disconnect()

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 10.0) -> int:
        """End it and say how it ended."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        while self._connection is not None:
            self.collect(0.2)
        assert self.process.stderr is not None
        self.log += self.process.stderr.read().decode("utf-8", "replace")
        return status


@contextlib.contextmanager
def watching(
    group: Group, *arguments: str, config: str | None = None, is_connected: bool = True, **options: Any
) -> Iterator[Watching]:
    """``oomreaper run`` within a group, ready; ``config`` is the text of its configuration, None: its defaults."""
    with tempfile.TemporaryDirectory(prefix="oomreaper-test-") as directory:
        events_path = f"{directory}/events.sock"
        command = [sys.executable, "-m", "oomreaper", "run", "--within", group.scope, "--events", events_path]
        path = Path(directory) / "oomreaper.toml"
        path.write_text(config or "", encoding="utf-8")
        command += ["--config", str(path)]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= options.pop("env", {})
        process = subprocess.Popen(
            [*command, *arguments], stderr=subprocess.PIPE, bufsize=0, env=environment, cwd="/", **options
        )
        watcher = Watching(process, events_path, path)
        try:
            watcher.await_log("watching")
            if is_connected:
                watcher.connect()
            yield watcher
        finally:
            watcher.give_up()
