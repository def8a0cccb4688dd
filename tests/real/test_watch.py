"""The watcher on the real kernel: a real shortage within a group of our own, who pays, and what is told of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from oomreaper.model.outcome import printable
from tests.interpreters import SOURCE
from tests.real.command import COMMAND
from tests.real.watching import memory_group, watching
from tests.victims import stage
from tests.victims.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease")

MIB = 1 << 20
# Names of 15 bytes at most, as prctl(PR_SET_NAME) and /proc/self/comm take them.
HOSTILE_NAMES = [
    b"foo) Z 1 2 3 4",
    b"a\nkilled: 1\n",
    b"\x1b[2J\x1b]0;x\x07",
    b"\xff\xfe\xc3\x28\x80",
    b'"},{"event":"',
    b" ",
]
HOSTILE_WORDS = ["two\nlines", "\x1b[31mred\x1b[0m", "\udcff\udcfe", '"quoted\\', "\r\b\x7f", "\u202egnp.exe"]
RENAME = """
with open("/proc/self/comm", "wb") as file:
    file.write({name!r})
"""
# Takes so much, says so, and waits to be let go on.
TAKE_AND_WAIT = """
taken = [bytearray(b"x" * (1 << 20)) for _ in range({mib})]
print("waiting", flush=True)
while not os.path.exists({gate!r}):
    time.sleep(0.01)
"""
# What is neither printable ASCII nor the end of a line.
NOT_FOR_A_TERMINAL = re.compile(r"[^\x20-\x7e\n]")


def test_a_hog_is_chosen_over_bystanders_and_the_rest_survives() -> None:
    """On its defaults: the one who takes the memory ends, asked first unless it is too quick; nobody else.

    All of it is told in its order and as one incident, to the socket and in the log.
    """
    with memory_group(200) as group:
        bystanders = [group.start_idle(30), group.start_idle(20)]
        with watching(group) as watcher:
            hog = group.start_hog(400)
            status = hog.wait()
            settled = watcher.await_event("settled")
            told = [record for record in watcher.events if record["event"] in {"announce", "killed", "settled"}]
            watcher.await_log(f"settled: {settled['outcome']} {hog.pid}")

            assert status in {-signal.SIGTERM, -signal.SIGKILL}
            assert settled["outcome"] in {"exited", "reaped"}
            assert is_whole_story(told)
            assert {hog.pid} == {record["pid"] for record in told}
            assert len({record["incident"] for record in told}) == 1
            assert all(bystander.is_alive for bystander in bystanders)
            assert watcher.has_lost_nothing()


@pytest.mark.needs("swap")
def test_with_swap_a_shortage_begins_when_both_are_used_up(tmp_path: Path) -> None:
    """While swap is free nobody dies of a full group; when it is used up, too, the hog goes, with its swap."""
    gate = tmp_path / "gate"
    with stage.small_swap(), memory_group(100, swap_mib=60) as group:
        bystander, modest = group.start_idle(10), group.start_idle(20)
        with watching(group) as watcher:
            hog = group.start_hog(400, prelude=TAKE_AND_WAIT.format(mib=90, gate=str(gate)))
            hog.await_word("waiting")
            watcher.ask_state()  # it has had time to look
            told_before = watcher.about(hog.pid)
            gate.touch()
            hog.wait()
            settled = watcher.await_event("settled")

            assert told_before == []
            assert hog.pid == settled["pid"]
            assert settled["anon_before_bytes"] > 110 * MIB  # more than the group may hold: swap counts
            assert wait_until(lambda: group.used_with_swap_bytes < 60 * MIB, 10)
            assert bystander.is_alive
            assert modest.is_alive


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=repr)
def test_hostile_names_are_text_and_nothing_else_in_every_output(name: bytes, tmp_path: Path) -> None:
    """In records, log and explain a name or command line is printable and within its line, and stands for itself."""
    with memory_group(150) as group:
        with watching(group) as watcher:
            gate = tmp_path / "gate"
            prelude = RENAME.format(name=name) + TAKE_AND_WAIT.format(mib=40, gate=str(gate))
            hog = group.start_hog(300, prelude=prelude, argv=HOSTILE_WORDS)
            hog.await_word("waiting")
            screen = explain("--events", watcher.events_path, "--all")
            state = explain("--events", watcher.events_path, "--json")
            gate.touch()
            hog.wait()
            watcher.await_event("settled")
            told = [record for record in watcher.events if record.get("pid") == hog.pid]
            watcher.end()

        ranking = {row["pid"]: row for row in json.loads(state.stdout)["ranking"]}
        log = [line for line in watcher.log.splitlines() if f" {hog.pid} " in line]

        assert is_whole_story(told)
        assert not NOT_FOR_A_TERMINAL.search(watcher.log)
        assert not NOT_FOR_A_TERMINAL.search(screen.stdout + screen.stderr + state.stdout)
        assert not any(NOT_FOR_A_TERMINAL.search(text) or "\n" in text for text in texts_of([*told, ranking[hog.pid]]))
        assert len(log) >= 3
        assert not any(line.startswith("killed: 1") for line in watcher.log.splitlines())
        assert told[0]["comm"] == ranking[hog.pid]["comm"] == printable(name)
        assert printable(HOSTILE_WORDS[0].encode()) in told[0]["cmdline"]


def test_a_hostile_group_name_is_text_in_every_output() -> None:
    """Whoever may make groups names them: shown as text, too, and members are found (newlines the kernel refuses)."""
    with memory_group(150) as group, group.inner('a b \x1b[31m) "x') as inside, watching(group) as watcher:
        hog = inside.start_hog(300, pause_s=0.002)
        hog.wait()
        announced = watcher.await_event("announce")
        watcher.await_event("settled")
        screen = explain("--events", watcher.events_path, "--all")
        watcher.end()

        assert announced["pid"] == hog.pid
        assert "oomreaper-test" in announced["cgroup"]
        assert not any(NOT_FOR_A_TERMINAL.search(text) or "\n" in text for text in texts_of([announced]))
        assert not NOT_FOR_A_TERMINAL.search(watcher.log + screen.stdout)


@pytest.mark.parametrize("command", [("check",), ("import", "earlyoom"), ("import", "nohang")], ids=" ".join)
def test_hostile_text_in_a_file_does_not_reach_the_terminal(command: tuple[str, ...], tmp_path: Path) -> None:
    """Faults of a file are shown with what was found there, and that as text."""
    content = {
        "check": '[victims]\nunit = "\\u001b[31mred"\n"\\u001bkey" = 1\n[[rule]]\nwhen = ["mem\\u0007 < 1%"]\n',
        "earlyoom": "EARLYOOM_ARGS=\"-r 60 --avoid '\x1b[31m(x' --\x07what \xff\"\n",
        "nohang": "\x1b[31mkey = 1\nwarning_threshold_min_mem = \x07 %\n@BADNESS_ADJ_RE_NAME 100 /// \x1b(\n",
    }[command[-1]]
    path = tmp_path / "a\x1b[31mfile"
    path.write_bytes(content.encode("latin-1"))
    done = run(*command, str(path))

    assert done.stdout + done.stderr
    assert not re.search(r"[^\x20-\x7e\n\t]", done.stdout + done.stderr)
    assert "Traceback" not in done.stderr


def test_explain_tells_what_a_running_watcher_sees() -> None:
    """By its socket: the numbers, who would be chosen, who never and why, how far each rule is; --json is all of it."""
    config = '[victims]\nnever = [{comm = "spared"}]\n'
    with memory_group(150) as group, watching(group, config=config) as watcher:
        big, spared = group.start_idle(60), group.start("open('/proc/self/comm', 'w').write('spared')\n" + IDLE_30)
        spared.await_word("idle")
        screen = explain("--events", watcher.events_path)
        state = json.loads(explain("--events", watcher.events_path, "--json").stdout)
        standing = {row["pid"]: row["standing"] for row in state["ranking"]}

        assert screen.returncode == 0
        assert str(big.pid) in screen.stdout
        assert "spared" in screen.stdout
        assert len(screen.stdout.splitlines()) <= 24
        assert all(len(line) <= 80 for line in screen.stdout.splitlines())
        assert (standing[big.pid], standing[spared.pid]) == ("eligible", "protected")
        assert {"low", "critical", "thrashing", "forecast"} <= {rule["rule"] for rule in state["rules"]}
        assert watcher.of_kind("announce") == []


def test_explain_without_a_watcher_looks_for_itself_and_touches_nobody() -> None:
    """``explain --within`` where none runs: the same answer from a look of its own, also in the midst of a shortage."""
    with memory_group(150) as group:
        big, hog = group.start_idle(60), group.start_hog(300)
        assert wait_until(lambda: group.is_under_oom, 20)
        screen = explain("--within", group.scope)
        state = json.loads(explain("--within", group.scope, "--json").stdout)
        standing = {row["pid"]: row["standing"] for row in state["ranking"]}

        assert screen.returncode == 0
        assert str(hog.pid) in screen.stdout
        assert (standing[big.pid], standing[hog.pid]) == ("eligible", "eligible")
        assert big.is_alive
        assert hog.is_alive


@pytest.mark.parametrize(
    ("arguments", "status"),
    [(("--events", "/nonexistent/events.sock"), 3), (("--within", "/nonexistent"), 3), (("--nonsense",), 2)],
    ids=["no watcher", "no group", "usage"],
)
def test_explain_says_in_its_status_that_it_could_not(arguments: tuple[str, ...], status: int) -> None:
    """No watcher at the socket that was named, or no such group: 3. A usage error: 2. One line says it."""
    done = explain(*arguments)

    assert status == done.returncode
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr


IDLE_30 = """
held = bytearray(b"x" * (30 << 20))
print("idle", flush=True)
time.sleep(40)
"""


def is_whole_story(told: list[dict[str, Any]]) -> bool:
    """Whether a victim's records are all there, in their order; who was asked may have been killed after that."""
    kinds = [record["event"] for record in told]
    return kinds in (["announce", "killed", "settled"], ["announce", "killed", "killed", "settled"])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command, as a user runs it; what it says is text that the locale may not be able to show."""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=30,
        check=False,
        cwd="/",
        env=environment,
    )


def explain(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``oomreaper explain``."""
    return run("explain", *arguments)


def texts_of(value: object) -> Iterator[str]:
    """Every text in a JSON value."""
    match value:
        case str():
            yield value
        case dict():
            for each in value.values():
                yield from texts_of(each)
        case list():
            for each in value:
                yield from texts_of(each)
