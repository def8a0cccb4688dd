"""Hooks: run beside the watcher, ended in time, and never in its way."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from oomreaper.clerk.hooks import CONCURRENT_LIMIT, NOT_STARTED_STATUS, Ended, HookRunner, variables
from oomreaper.clerk.serve import clerk_command, parse_hooks
from oomreaper.model.plan import Hooks
from oomreaper.watch.outlet import Outlet, Request

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND = 1_000_000_000
RECORD: dict[str, object] = {
    "event": "announce",
    "incident": "b-1",
    "pid": 7,
    "start_time_ticks": 99,
    "uid": 1000,
    "comm": r"ta\nil",
    "rule": "low",
    "reason": "mem_available is 3.1 %",
    "scope": "machine",
}


class Runner(HookRunner):
    """A runner and what it has told."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        super().__init__(self.lines.append)

    def run(self, *command: str, timeout_ns: int = 10 * SECOND, token: str | None = "t") -> int | None:
        """Start a hook with the usual record."""
        now_ns = time.monotonic_ns()
        return self.start("pre_kill", command, RECORD, token=token, timeout_ns=timeout_ns, now_ns=now_ns)

    def wait(self) -> list[Ended]:
        """Serve until all have ended."""
        ended: list[Ended] = []
        while self.statistics().running:
            poll = select.poll()
            for fd in self.filenos():
                poll.register(fd, select.POLLIN)
            deadline_ns = self.next_deadline_ns()
            assert deadline_ns is not None
            poll.poll(max(0, (deadline_ns - time.monotonic_ns()) // 1_000_000 + 1))
            ended += self.serve(time.monotonic_ns())
        return ended


@pytest.fixture
def runner() -> Iterator[Runner]:
    """A runner whose hooks end with the test."""
    it = Runner()
    yield it
    it.close()


def has_gone(pid: int) -> bool:
    """Whether no process of that number runs; a zombie that nobody has waited for yet counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_hook_gets_the_record(runner: Runner) -> None:
    """In its environment and, whole, as JSON on its stdin; its status comes back."""
    assert runner.run("sh", "-c", "env | grep ^OOMREAPER_ | grep -v TEST | sort; cat; exit 3") is None
    ended = runner.wait()
    *shown, record, status = [line.removeprefix("pre_kill hook: ") for line in runner.lines]

    assert ended == [Ended("pre_kill", "t", 3, is_overdue=False)]
    assert shown == [f"{name}={value}" for name, value in sorted(variables(RECORD).items())]
    assert variables(RECORD)["OOMREAPER_COMM"] == r"ta\nil"
    assert json.loads(record) == RECORD
    assert status == "pre_kill hook ended with status 3"


def test_the_service_manager_s_variables_are_kept_back(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hook that knows NOTIFY_SOCKET could say READY in our name; a field that is unknown is not another record's."""
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    monkeypatch.setenv("OOMREAPER_OUTCOME", "reaped")
    runner.run("sh", "-c", "echo ${NOTIFY_SOCKET-kept}${OOMREAPER_OUTCOME- back}")
    runner.wait()

    assert runner.lines == ["pre_kill hook: kept back"]


def test_an_overdue_hook_is_ended_with_its_group(runner: Runner) -> None:
    """At the deadline the program and all that it has forked are killed, however many they are."""
    started = time.monotonic()
    script = "trap '' TERM; for i in 1 2 3 4 5 6 7 8 9 10; do sleep 60 & echo $!; done; wait"
    runner.run("sh", "-c", script, timeout_ns=SECOND // 2)
    (ended,) = runner.wait()
    pids = [int(line.rpartition(" ")[2]) for line in runner.lines[:-1]]

    assert ended == Ended("pre_kill", "t", -signal.SIGKILL, is_overdue=True)
    assert len(pids) == 10
    assert time.monotonic() - started < 5
    assert "overdue" in runner.lines[-1]
    _await_gone(pids)


def test_what_a_hook_leaves_behind_ends_with_it(runner: Runner) -> None:
    """A child in the background does not outlive its hook, nor delay the acknowledgement."""
    started = time.monotonic()
    runner.run("sh", "-c", "sleep 60 & echo $!")
    (ended,) = runner.wait()

    assert (ended.status, ended.is_overdue) == (0, False)
    assert time.monotonic() - started < 5
    _await_gone([int(runner.lines[0].rpartition(" ")[2])])


def _await_gone(pids: list[int]) -> None:
    limit = time.monotonic() + 5
    while not all(has_gone(pid) for pid in pids):
        assert time.monotonic() < limit
        select.poll().poll(5)


@pytest.mark.parametrize("command", ["/nowhere/hook", "/etc", "bad\0name"])
def test_a_program_that_cannot_be_started_is_told(runner: Runner, command: str) -> None:
    """A missing program, a folder, a name that cannot be: a line and a status, and nothing left behind."""
    before = os.listdir("/proc/self/fd")

    assert runner.run(command) == NOT_STARTED_STATUS
    assert "cannot be started" in runner.lines[0]
    assert os.listdir("/proc/self/fd") == before


def test_a_flood_of_output_is_bounded(runner: Runner) -> None:
    """A hook that writes without end is not held up by us, is shown 16 KiB of, and ends at its deadline."""
    runner.run("sh", "-c", "yes 0123456789", timeout_ns=SECOND // 2)
    (ended,) = runner.wait()

    assert ended.is_overdue
    assert sum(map(len, runner.lines)) < 64 * 1024
    assert any("bytes more than are shown" in line for line in runner.lines)


def test_one_hook_too_many_is_not_run(runner: Runner) -> None:
    """Four run at a time; the fifth is said and counted, and there is room again when one has ended."""
    assert [runner.run("sleep", "60") for _ in range(CONCURRENT_LIMIT + 1)] == [None] * CONCURRENT_LIMIT + [-1]
    assert (runner.statistics().running, runner.statistics().skipped) == (CONCURRENT_LIMIT, 1)
    assert "not run" in runner.lines[0]
    runner.close()

    assert runner.run("true") is None


def test_hooks_survive_the_journey() -> None:
    """What the command writes for the clerk is what the clerk reads."""
    hooks = Hooks(("/bin/a", "b c"), 5, (), 7)

    assert parse_hooks(clerk_command("/run/x", hooks)[-1]) == hooks


# ---- the clerk as a process -----------------------------------------------------------------------------------


class Watcher:
    """An outlet with a clerk beside it, as the watcher has it."""

    def __init__(self, directory: Path, hooks: Hooks) -> None:
        self.outlet = Outlet(str(directory / "events"), own_uid=os.getuid())
        self.outlet.open()
        command = clerk_command(str(directory / "events"), hooks)
        self.clerk = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        self.await_clients(1)

    def await_clients(self, number: int) -> None:
        """Serve until so many are connected."""
        limit = time.monotonic() + 10
        while len(self.outlet.clients) != number:
            assert time.monotonic() < limit
            self.serve(100)

    def serve(self, limit_ms: int) -> list[Request]:
        """One turn of the loop."""
        fileno = self.outlet.fileno()
        assert fileno is not None
        poll = select.poll()
        poll.register(fileno, select.POLLIN)
        poll.poll(limit_ms)
        return self.outlet.serve(time.monotonic_ns())

    def await_ack(self) -> tuple[str | None, int | None]:
        """The next acknowledgement."""
        limit = time.monotonic() + 10
        while time.monotonic() < limit:
            for request in self.serve(100):
                return request.ack, request.status
        raise AssertionError("no acknowledgement")

    def publish(self, event: str, **more: object) -> None:
        """An event of this moment."""
        self.outlet.publish({**RECORD, "event": event, "monotonic_ns": time.monotonic_ns(), **more})

    def close(self) -> bytes:
        """End the clerk; what it has told."""
        self.clerk.terminate()
        _, told = self.clerk.communicate(timeout=10)
        self.outlet.close()
        return told


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder with a name short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="oomreaper-test-") as directory:
        yield Path(directory)


def test_an_announcement_is_acknowledged(place: Path) -> None:
    """With the hook's status; an announcement without a hook, and one that is too old, runs nothing."""
    watcher = Watcher(place, Hooks(pre_kill=("sh", "-c", "exit $OOMREAPER_PID"), pre_kill_timeout_ns=5 * SECOND))
    watcher.publish("announce")
    watcher.publish("announce", hook="old", monotonic_ns=1)
    watcher.publish("announce", hook="h1", pid=4)

    assert watcher.await_ack() == ("h1", 4)
    assert watcher.close() == b"pre_kill hook ended with status 4\n"


def test_a_hook_that_hangs_is_ended_at_its_deadline(place: Path) -> None:
    """The acknowledgement comes with the signal that ended it."""
    watcher = Watcher(place, Hooks(pre_kill=("sleep", "60"), pre_kill_timeout_ns=SECOND // 2))
    watcher.publish("announce", hook="h1")

    assert watcher.await_ack() == ("h1", -signal.SIGKILL)
    assert b"overdue" in watcher.close()


def test_a_missing_hook_is_acknowledged_at_once(place: Path) -> None:
    """The watcher does not wait for a program that is not there."""
    watcher = Watcher(place, Hooks(pre_kill=("/nowhere/hook",), pre_kill_timeout_ns=30 * SECOND))
    started = time.monotonic()
    watcher.publish("announce", hook="h1")

    assert watcher.await_ack() == ("h1", NOT_STARTED_STATUS)
    assert time.monotonic() - started < 5
    watcher.close()


def test_post_kill_runs_once_for_each_outcome(place: Path) -> None:
    """Also when the clerk has to connect again, and is given the last records a second time."""
    told = place / "told"
    hooks = Hooks(post_kill=("sh", "-c", f"echo $OOMREAPER_PID $OOMREAPER_OUTCOME >> {told}"))
    watcher = Watcher(place, hooks)
    moment = time.monotonic_ns()
    for pid in (1, 2):
        watcher.publish("settled", pid=pid, outcome="reaped", monotonic_ns=moment)
    _await_lines(told, 2)
    (fd,) = watcher.outlet.clients
    watcher.outlet._drop(fd)
    watcher.await_clients(1)
    watcher.publish("settled", pid=3, outcome="exited")
    _await_lines(told, 3)
    watcher.close()

    assert sorted(told.read_text().splitlines()) == ["1 reaped", "2 reaped", "3 exited"]


def _await_lines(path: Path, number: int) -> None:
    limit = time.monotonic() + 10
    while not path.exists() or path.read_text().count("\n") < number:
        assert time.monotonic() < limit
        select.poll().poll(5)


def test_the_clerk_ends_with_its_parent_and_takes_its_hooks_along(place: Path) -> None:
    """A watcher that is killed leaves neither a clerk nor a hook."""
    told = place / "told"
    hooks = Hooks(pre_kill=("sh", "-c", f"echo $$ >> {told}; exec sleep 60"), pre_kill_timeout_ns=60 * SECOND)
    outlet = Outlet(str(place / "events"), own_uid=os.getuid())
    outlet.open()
    # A parent of its own, so that its end can be tried.
    script = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, *clerk_command(str(place / "events"), hooks)]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    clerk = int(parent.stdout.readline())
    limit = time.monotonic() + 10
    while not outlet.clients:
        assert time.monotonic() < limit
        select.poll().poll(5)
        outlet.serve(time.monotonic_ns())
    outlet.publish({**RECORD, "hook": "h1", "monotonic_ns": time.monotonic_ns()})
    _await_lines(told, 1)
    parent.kill()
    parent.communicate()
    _await_gone([clerk, int(told.read_text())])
    outlet.close()


@pytest.mark.needs("root", "sched_fifo", "negative_nice")
def test_a_hook_is_an_ordinary_process(place: Path) -> None:
    """It inherits neither real-time priority nor the exemption from the kernel's killer."""
    told = place / "told"
    hooks = Hooks(post_kill=("sh", "-c", f"cat /proc/self/oom_score_adj /proc/self/stat >> {told}"))

    def be_important() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    outlet = Outlet(str(place / "events"), own_uid=os.getuid())
    outlet.open()
    clerk = subprocess.Popen(clerk_command(str(place / "events"), hooks), preexec_fn=be_important)  # noqa: PLW1509 - this test has one thread
    limit = time.monotonic() + 10
    while not outlet.clients:
        assert time.monotonic() < limit
        select.poll().poll(5)
        outlet.serve(time.monotonic_ns())
    outlet.publish({**RECORD, "event": "settled", "monotonic_ns": time.monotonic_ns()})
    _await_lines(told, 2)
    clerk.terminate()
    clerk.wait(10)
    outlet.close()
    score, line = told.read_text().splitlines()
    fields: list[Any] = line.rpartition(")")[2].split()

    assert score == "0"
    assert (fields[16], fields[38]) == ("0", "0")  # nice, policy
