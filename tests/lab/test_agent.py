"""The agent, run here on a pseudo-terminal instead of a guest's serial port. It starts only what a test tells it to."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pty
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from lab.guest import agent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PATIENCE_S = 20.0


class _Host:
    """The host's end of the port."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._unread = b""
        self._messages: list[dict[str, Any]] = []
        self._last_id = 0

    def write(self, data: bytes) -> None:
        os.write(self._port, data)

    def send(self, do: str, **arguments: object) -> int:
        self._last_id += 1
        self.write(json.dumps({"id": self._last_id, "do": do, **arguments}).encode() + b"\n")
        return self._last_id

    def ask(self, do: str, **arguments: object) -> dict[str, Any]:
        number = self.send(do, **arguments)
        return self.await_message(event="answer", id=number)

    def await_message(self, **wanted: object) -> dict[str, Any]:
        """The first message that has these fields; the others wait their turn."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while True:
            for message in self._messages:
                if wanted.items() <= message.items():
                    self._messages.remove(message)
                    return message
            assert time.monotonic() < deadline_s, f"no {wanted} among {self._messages}"
            self._read()

    def _read(self) -> None:
        if not select.select([self._port], [], [], 1.0)[0]:
            return
        *lines, self._unread = (self._unread + os.read(self._port, 1 << 16)).split(b"\n")
        self._messages += [json.loads(line) for line in lines]


@pytest.fixture
def host() -> Iterator[_Host]:
    """An agent in a process of its own, as nobody special: neither locked nor real-time."""
    ours, theirs = pty.openpty()
    path = os.ttyname(theirs)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.close(ours)
            agent.Agent(agent.open_port(path)).serve()
        os._exit(1)
    talking = _Host(ours)
    talking.await_message(event="up")
    yield talking
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(ours)
    os.close(theirs)


def test_it_says_what_it_is(host: _Host) -> None:
    """hello tells the kernel, its memory and what it has; numbers in the units of their names."""
    answer = host.ask("hello")

    assert answer["ok"]
    assert answer["kernel"] == os.uname().release
    assert answer["cpus"] == len(os.sched_getaffinity(0))
    assert abs(answer["memory_kib"] * 1024 - os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) < 1 << 20
    assert answer["has"].keys() == {"tracing", "cgroup2", "psi", "swap"}


def test_an_unknown_command_is_refused(host: _Host) -> None:
    """What it cannot do is said, with the command's number; the agent goes on."""
    refused = host.ask("explode")
    missing = host.ask("read", path="/nowhere")

    assert not refused["ok"]
    assert not missing["ok"]
    assert "nowhere" in missing["error"]
    assert host.ask("ping")["ok"]


def test_noise_does_not_end_it(host: _Host) -> None:
    """Bytes that are no command are told and forgotten."""
    host.write(b"\xff\xfe{]\n[]\n{}\n")

    assert host.ask("ping")["ok"]
    assert host.await_message(event="noise")["text"]


def test_a_run_is_answered_with_what_it_said(host: _Host) -> None:
    """Status and output, both streams together; the command line reaches the program as it was given."""
    done = host.ask("run", argv=["sh", "-c", 'echo "$0 $WORD"; echo below >&2; exit 3', "a b"], env={"WORD": "w"})

    assert done["ok"]
    assert done["status"] == 3
    assert done["output"] == "a b w\nbelow\n"
    assert done["duration_ms"] >= 0


def test_a_run_takes_only_the_end_of_what_is_said(host: _Host) -> None:
    """A program that says too much costs no more than the last of it."""
    done = host.ask("run", argv=["sh", "-c", "yes | head -c 300000; echo end"])

    assert done["status"] == 0
    assert len(done["output"]) == 1 << 16
    assert done["output"].endswith("y\nend\n")


def test_a_program_that_is_not_there_is_127(host: _Host) -> None:
    """As a shell has it; the reason is in its output."""
    done = host.ask("run", argv=["/nowhere/at/all"])

    assert done["status"] == 127
    assert "No such file" in done["output"]


def test_a_start_is_answered_when_the_program_is_what_it_was_to_be(host: _Host) -> None:
    """Not before: who asks about it next finds it so. Why it cannot be started is the answer."""
    started = host.ask("start", name="late", argv=["sleep", "600"], nice=3)
    with open(f"/proc/{started['pid']}/stat", "rb") as file:
        nice = int(file.read().rpartition(b")")[2].split()[16])
    with open(f"/proc/{started['pid']}/comm", "rb") as file:
        comm = file.read()
    host.ask("signal", name="late", signal=9)
    refused = host.ask("start", name="none", argv=["/nowhere/at/all"])
    ended = host.await_message(event="ended", name="none")

    assert (nice, comm) == (3, b"sleep\n")
    assert not refused["ok"]
    assert "No such file" in refused["error"]
    assert ended["status"] == 127


def test_a_run_that_takes_too_long_is_killed_with_all_of_its_session(host: _Host, tmp_path: Path) -> None:
    """Over its time: refused, and nobody whom it has started lives on."""
    mark = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {mark}; echo said; wait"
    done = host.ask("run", argv=["sh", "-c", script], timeout_s=0.5)
    child = int(mark.read_text())

    assert not done["ok"]
    assert done["status"] == -signal.SIGKILL
    assert done["output"] == "said\n"
    assert _has_ended(child)


def test_other_commands_are_answered_while_a_program_runs(host: _Host) -> None:
    """Nothing waits for a program but its own answer."""
    number = host.send("run", argv=["sleep", "0.5"])
    ping = host.ask("ping")
    done = host.await_message(event="answer", id=number)

    assert ping["ok"]
    assert done["status"] == 0


def test_lines_are_passed_on_and_the_end_is_told(host: _Host) -> None:
    """Both streams, line by line, also the last without its end; then how it ended, and its pid."""
    started = host.ask("start", name="speaker", argv=["sh", "-c", "echo one; echo two >&2; printf three"])
    texts = [host.await_message(event="line", name="speaker")["text"] for _ in range(3)]
    ended = host.await_message(event="ended", name="speaker")

    assert texts == ["one", "two", "three"]
    assert ended["pid"] == started["pid"]
    assert (ended["status"], ended["signal"]) == (0, None)
    assert ended["at_ns"] <= time.monotonic_ns()


def test_orders_reach_a_program_and_their_end_too(host: _Host) -> None:
    """A line to its standard input, and the end of it."""
    host.ask("start", name="echo", argv=["cat"])
    host.ask("order", name="echo", text="hello")
    line = host.await_message(event="line", name="echo")
    host.ask("close", name="echo")
    ended = host.await_message(event="ended", name="echo")

    assert line["text"] == "hello"
    assert ended["status"] == 0


def test_a_signal_goes_to_the_program_that_was_named(host: _Host) -> None:
    """Through its pidfd; the signal is what the end tells."""
    host.ask("start", name="sleeper", argv=["sleep", "600"])
    host.ask("signal", name="sleeper", signal=int(signal.SIGTERM))
    ended = host.await_message(event="ended", name="sleeper")
    again = host.ask("signal", name="sleeper", signal=int(signal.SIGTERM))

    assert (ended["status"], ended["signal"]) == (None, signal.SIGTERM)
    assert not again["ok"]


def test_a_name_is_taken_while_its_program_runs(host: _Host) -> None:
    """Two of a name could not be told apart; after its end the name is free again."""
    host.ask("start", name="one", argv=["sleep", "600"])
    second = host.ask("start", name="one", argv=["true"])
    host.ask("signal", name="one", signal=9)
    host.await_message(event="ended", name="one", signal=9)
    third = host.ask("start", name="one", argv=["true"])

    assert not second["ok"]
    assert third["ok"]
    assert host.await_message(event="ended", name="one", pid=third["pid"])["status"] == 0


def test_a_program_is_as_any_other(host: _Host) -> None:
    """Own session, nothing of the agent's priority, its place among the kernel's victims as told, SIGPIPE as usual."""
    script = (
        "import os, signal; print(os.getsid(0) == os.getpid(), os.sched_getscheduler(0), os.nice(0),"
        "open('/proc/self/oom_score_adj').read().strip(), signal.getsignal(signal.SIGPIPE) != signal.SIG_IGN,"
        "os.getcwd())"
    )
    argv = [sys.executable, "-I", "-S", "-c", script]
    done = host.ask("run", argv=argv, nice=5, oom_score_adj=300, cwd="/")

    # Python itself ignores SIGPIPE, so the answer to that is its own.
    assert done["output"].split()[:4] == ["True", "0", "5", "300"]
    assert done["output"].split()[-1] == "/"


def test_files_are_written_and_read(host: _Host, tmp_path: Path) -> None:
    """Text, bytes, and directories with all above them, twice if need be."""
    deep = tmp_path / "a/b/c"
    made = [host.ask("mkdir", path=str(deep)) for _ in range(2)]
    host.ask("write", path=str(deep / "text"), text="grün\n")
    host.ask("write", path=str(deep / "bytes"), base64=base64.b64encode(b"\x00\xff").decode())
    read = host.ask("read", path=str(deep / "text"))

    assert all(answer["ok"] for answer in made)
    assert read["text"] == "grün\n"
    assert (deep / "bytes").read_bytes() == b"\x00\xff"


def test_usage_counts_a_whole_family(host: _Host) -> None:
    """A program and those it has started: their CPU time and memory, in the units of the names."""
    script = "import time; held = bytearray(30 << 20); print('full', flush=True); time.sleep(600)"
    python = f"{sys.executable} -I -S -c {json.dumps(script)}"
    started = host.ask("start", name="family", argv=["sh", "-c", f"{python} & wait"])
    host.await_message(event="line", name="family", text="full")
    usage = host.ask("usage", pid=started["pid"])
    host.ask("run", argv=["kill", "-9", "--", f"-{started['pid']}"])
    host.await_message(event="ended", name="family")

    assert usage["processes"] == 2
    assert usage["rss_kib"] >= 30 << 10
    assert usage["pss_kib"] >= 30 << 10
    assert usage["cpu_ms"] >= 0
    assert usage["comm"] == "sh"


def test_stats_are_the_machines(host: _Host) -> None:
    """What is left of memory and swap, and how often the kernel has killed; absent is null."""
    stats = host.ask("stats")

    assert stats["available_kib"] > 0
    assert stats["swap_free_kib"] >= 0
    assert stats["oom_kill"] is None or stats["oom_kill"] >= 0


def test_a_program_that_says_too_much_does_not_drown_the_answers(host: _Host) -> None:
    """Lines are dropped and counted when the host reads too slowly; every answer comes."""
    host.ask("start", name="talker", argv=["yes", "a" * 40])
    time.sleep(1.0)
    number = host.send("ping")
    host.send("signal", name="talker", signal=9)
    pinged = host.await_message(event="answer", id=number)
    host.await_message(event="ended", name="talker")
    dropped = host.await_message(event="dropped")

    assert pinged["ok"]
    assert dropped["count"] > 0


def _has_ended(pid: int) -> bool:
    deadline_s = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline_s:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[0] == b"Z":
                    return True
        except OSError:
            return True
        time.sleep(0.01)
    return False
