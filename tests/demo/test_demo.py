"""``oomreaper demo`` for real: both acts of one victim, as root and as an ordinary user, and what comes in between."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from oomreaper.demo import acts, show
from oomreaper.errors import KernelError
from oomreaper.linux.room import Room
from tests.demo.playing import (
    LIMIT_SECONDS,
    MIB,
    SHORTER,
    SIZE_BYTES,
    Played,
    environment_of_demo,
    interrupt,
    play,
    sandboxed,
)
from tests.interpreters import NOBODY
from tests.victims import processes

if TYPE_CHECKING:
    from collections.abc import Callable

_SMALL_ROOM = """
import sys
from oomreaper.demo import show
from oomreaper.linux.room import Room
show.ACTS = show.ACTS[1:]
sys.exit(show.run(size_bytes=512 << 20, as_json=True, width=80, use_color=False, room=Room(300 << 20, None)))
"""
KEYS = {
    "size": {"size_bytes", "wanted_bytes", "why_less"},
    "begin": {"act", "at_ms", "pid", "title"},
    "sample": {"act", "at_ms", "anon_bytes"},
    "killed": {"act", "at_ms", "state", "wchan"},
    "reaping": {"act", "held_bytes"},
    "outcome": {
        "act",
        "at_ms",
        "pid",
        "start_time_ticks",
        "comm",
        "outcome",
        "anon_before_bytes",
        "freed_bytes",
        "elapsed_ms",
        "attempts",
        "still_dying",
        "sharers",
        "reason",
    },
    "verdict": {"act", "size_bytes", "held_bytes", "left_bytes", "is_shown"},
    "released": {"act", "at_ms", "ended_after_ms"},
    "skipped": {"act", "reason"},
}
STEPS = ["begin", "killed", "reaping", "outcome", "verdict", "released"]


def assert_shown(played: Played, act: str) -> None:
    """The act went its course, and shows that memory stayed until it was reaped."""
    records = played.of_act(act)
    assert [record["event"] for record in records] == STEPS
    by_event = {record["event"]: record for record in records}
    assert by_event["killed"]["state"] == {"exit": "t", "lock": "D"}[act]
    assert by_event["verdict"]["is_shown"] is True
    outcome = by_event["outcome"]
    assert (outcome["outcome"], outcome["still_dying"]) == ("reaped", True)
    assert outcome["pid"] == by_event["begin"]["pid"]
    assert SIZE_BYTES <= outcome["freed_bytes"] < SIZE_BYTES + 4 * MIB
    assert by_event["released"]["ended_after_ms"] < 5000
    samples = [record for record in played.of_act(act, samples=True) if record["event"] == "sample"]
    held = [
        sample["anon_bytes"]
        for sample in samples
        if by_event["killed"]["at_ms"] <= sample["at_ms"] <= by_event["killed"]["at_ms"] + 1000
    ]
    assert len(held) >= 10
    assert min(held) >= SIZE_BYTES
    assert samples[-1]["at_ms"] >= outcome["at_ms"]
    assert samples[-1]["anon_bytes"] < 4 * MIB


@pytest.mark.needs("root", "process_mrelease", "ptrace", "userfaultfd")
def test_both_acts_as_root() -> None:
    """A victim in its exit and one in D keep their memory for a second after SIGKILL, and lose it to the reap."""
    played = play("--json")

    assert (played.status, played.errors) == (0, "")
    assert_shown(played, "exit")
    assert_shown(played, "lock")


@pytest.mark.needs("root", "process_mrelease", "ptrace", "python_for_everybody")
def test_an_ordinary_user_sees_the_first_act() -> None:
    """Without any right the first act is shown; the second is skipped with what was refused and what to do."""
    played = play("--json", user=NOBODY)

    assert (played.status, played.errors) == (0, "")
    assert_shown(played, "exit")
    (skipped,) = played.of_act("lock")
    assert skipped["event"] == "skipped"
    assert "userfaultfd" in skipped["reason"]
    assert "EPERM" in skipped["reason"]
    assert "sudo oomreaper demo" in skipped["reason"]


@pytest.mark.needs("process_mrelease", "ptrace")
def test_the_json_lines_have_their_fields() -> None:
    """Every line is an object of a known event with exactly its fields, and within an act time only goes forward."""
    played = play("--json")

    fields = [(record["event"], set(record) - {"event"}) for record in played.records]
    assert fields == [(event, KEYS[event]) for event, _ in fields]
    assert fields[0][0] == "size"
    for act in ("exit", "lock"):
        times = [record["at_ms"] for record in played.of_act(act, samples=True) if "at_ms" in record]
        assert times == sorted(times)


@pytest.mark.needs("process_mrelease", "ptrace")
def test_a_narrow_ascii_screen_without_colour() -> None:
    """At 40 columns, in ASCII, every line but the record fits, and the claim and the record are there."""
    played = play(COLUMNS="40", PYTHONIOENCODING="ascii", NO_COLOR="1", TERM="xterm-256color")

    assert played.status == 0
    assert played.output.isascii()
    assert "\x1b" not in played.output
    records = [line for line in played.output.splitlines() if line.startswith("{")]
    assert max(len(line) for line in played.output.splitlines() if line not in records) <= 40
    assert json.loads(records[0])["outcome"] == "reaped"
    assert "64 MiB still held after 1.0 s; reaped: 64 MiB back" in " ".join(played.output.split())


@pytest.mark.needs("process_mrelease", "ptrace")
def test_a_starter_that_ignores_its_children_is_no_trouble() -> None:
    """Started with SIGCHLD ignored, and both signals blocked, as by some job runners, it is shown all the same."""
    script = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
    script += "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM, signal.SIGALRM]); "
    played = play("--json", prefix=(sys.executable, "-c", script + "os.execv(sys.argv[1], sys.argv[1:])"))

    assert (played.status, played.errors) == (0, "")


# -- machines that do not let us ---------------------------------------------------------------------------


def test_too_little_memory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Without room nothing is made or printed, and the error names the memory."""
    with pytest.raises(KernelError, match="only 40 MiB are free"):
        show.run(size_bytes=SIZE_BYTES, as_json=True, width=80, use_color=False, room=Room(40 * MIB, None))

    assert capsys.readouterr().out == ""


@pytest.mark.needs("process_mrelease", "ptrace")
def test_a_small_machine_has_a_smaller_victim() -> None:
    """With 300 MiB free, a demo of 512 MiB is played with 75, and says so."""
    played = play(command=("-c", _SMALL_ROOM))

    assert played.status == 0
    assert (played.records[0]["size_bytes"], played.records[0]["wanted_bytes"]) == (75 * MIB, 512 * MIB)
    assert "300 MiB are free" in played.records[0]["why_less"]
    held = [record["anon_bytes"] for record in played.records if record["event"] == "sample"]
    assert 75 * MIB <= max(held) < 80 * MIB


@pytest.mark.needs("process_mrelease", "ptrace", "seccomp")
def test_a_process_that_may_have_no_memory_is_an_error_with_a_hint() -> None:
    """Under ulimit -v the refusal is told with the limit's name, exit status 3."""
    played = play("--json", prefix=("sh", "-c", 'ulimit -v 60000 && exec "$@"', "sh"))

    assert played.status == 3
    assert "64 MiB of memory (mmap) was refused: ENOMEM; see ulimit -v" in played.errors


@pytest.mark.needs("root", "process_mrelease", "userfaultfd", "seccomp")
@pytest.mark.parametrize("verdict", ["EPERM", "kill"])
def test_a_sandbox_without_ptrace_leaves_the_second_act(verdict: str) -> None:
    """When ptrace is refused, or is death, the first act is skipped with the reason and the second is played."""
    played = play("--json", prefix=sandboxed(f"ptrace={verdict}"))

    assert (played.status, played.errors) == (0, "")
    (skipped,) = played.of_act("exit")
    assert ("PTRACE_SEIZE" in skipped["reason"]) == (verdict == "EPERM")
    assert ("SIGSYS" in skipped["reason"]) == (verdict == "kill")
    assert "ptrace_scope" in skipped["reason"]
    assert_shown(played, "lock")


@pytest.mark.needs("seccomp")
def test_where_no_act_is_permitted_it_is_an_error() -> None:
    """When both ways to hold a victim are refused the status is 3, and stderr gives both reasons."""
    played = play(prefix=sandboxed("ptrace=EPERM", "userfaultfd=EPERM"))

    assert played.status == 3
    assert played.errors.startswith("oomreaper: no act of the demo can be played here: ")
    assert "ptrace_scope" in played.errors
    assert "userfaultfd" in played.errors


@pytest.mark.needs("ptrace", "seccomp")
def test_without_process_mrelease_it_is_not_shown() -> None:
    """On a kernel without the call the memory is said not to come back, and the status is not 0."""
    played = play("--json", prefix=sandboxed("process_mrelease=ENOSYS"))

    verdict = next(record for record in played.of_act("exit") if record["event"] == "verdict")
    assert verdict["is_shown"] is False
    assert verdict["left_bytes"] >= SIZE_BYTES
    assert played.status == 3


@pytest.mark.needs("ptrace", "process_mrelease")
def test_a_victim_that_dies_of_sigkill_is_not_passed_off_as_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the trap does not hold, the memory is back before the reap and the act is judged not shown."""
    monkeypatch.setattr(acts.ExitTrap, "attach", lambda *_: None)
    monkeypatch.setattr(acts.ExitTrap, "open", lambda _: None)
    performance = acts.perform(acts.ExitTrap(), SIZE_BYTES, Silence())

    assert not performance.has_stayed
    assert not performance.is_shown


class Silence:
    """A listener that says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


# -- interrupted -------------------------------------------------------------------------------------------


@pytest.mark.needs("process_mrelease", "ptrace")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("event", ["size", "sample", *STEPS])
def test_an_interrupted_demo_leaves_nobody(event: str, number: int, orphans: Callable[[], list[str]]) -> None:
    """In whatever step it is interrupted, it ends by that signal's status and every process of it has ended before."""
    status = interrupt(number, event, None if event == "size" else "exit")

    assert orphans() == []
    assert status == 128 + number


@pytest.mark.needs("root", "process_mrelease", "ptrace", "userfaultfd")
@pytest.mark.parametrize("event", ["begin", "killed", "outcome"])
def test_an_interrupted_second_act_leaves_nobody(event: str, orphans: Callable[[], list[str]]) -> None:
    """The same while a file's lock is held and a victim stands in D."""
    status = interrupt(signal.SIGINT, event, "lock")

    assert orphans() == []
    assert status == 130


@pytest.mark.needs("process_mrelease", "ptrace")
@pytest.mark.parametrize("event", ["size", "sample", "killed"])
def test_a_killed_demo_leaves_nobody(event: str, orphans: Callable[[], list[str]]) -> None:
    """Even after SIGKILL, when nothing can be tidied up, its processes end by themselves at once."""
    status = interrupt(signal.SIGKILL, event, None if event == "size" else "exit")

    def are_all_dead() -> bool:
        return all("'Z'" in orphan for orphan in orphans())

    assert processes.wait_until(are_all_dead, 5.0), orphans()
    assert status == -signal.SIGKILL


@pytest.mark.needs("process_mrelease", "ptrace")
def test_a_reader_that_leaves_ends_it(orphans: Callable[[], list[str]]) -> None:
    """``oomreaper demo | head -1`` ends quietly, and leaves nobody."""
    with subprocess.Popen(
        [sys.executable, *SHORTER, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
        env=environment_of_demo(),
    ) as demo:
        assert demo.stdout is not None
        assert demo.stderr is not None
        demo.stdout.readline()
        demo.stdout.close()
        errors = demo.stderr.read()
        status = demo.wait(LIMIT_SECONDS)

    assert (status, errors) == (128 + signal.SIGPIPE, b"")
    assert orphans() == []
