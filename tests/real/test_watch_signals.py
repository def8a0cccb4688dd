"""Signals and settings at the worst moment: SIGHUP and SIGTERM during a kill, files with faults, a stopped watcher."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.real.watching import memory_group
from tests.real.worst_days import KILL, launched, sealed, watcher_command
from tests.victims import stage
from tests.victims.processes import children_of, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.real.watching import Member
    from tests.real.worst_days import Launched

pytestmark = pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease")

STUCK = pytest.mark.needs("unshare", "loop_ext4", "cc")
# So that the staged one is chosen, whoever grew the fastest.
NEVER_PYTHON = """
[victims]
never = [{ comm = "python*" }]
"""
AVOID_PYTHON = NEVER_PYTHON.replace("never", "avoid")
BROKEN = """
[[rule]]
name = "broken"
when = ["mem_availabel < 10%"]
then = ["kil"]
colour = "green"
"""


@contextlib.contextmanager
def killing_one_that_is_stuck(
    config: str = KILL + NEVER_PYTHON, *, hog_mib: int = 105, pause_s: float = 0.002
) -> Iterator[tuple[Launched, stage.StagedVictim, Member]]:
    """A watcher that has just signalled somebody who holds his mmap_lock, because of a hog beside him: all three."""
    with memory_group(200) as group, contextlib.ExitStack() as stack:
        with group.entered():
            (victim,) = stack.enter_context(stage.mmap_lock_held(size_bytes=90 * stage.MIB))
        with launched(group, config=config) as watcher:
            hog = group.start_hog(hog_mib, pause_s=pause_s)
            watcher.await_event("killed", where=lambda record: record["pid"] == victim.pid)
            yield watcher, victim, hog


@STUCK
def test_a_reload_during_a_kill_disturbs_nothing() -> None:
    """SIGHUP while a victim holds its mmap_lock: the new plan is taken, the record comes all the same."""
    with killing_one_that_is_stuck() as (watcher, victim, _):
        watcher.config_path.write_text(KILL + NEVER_PYTHON + "# new\n", encoding="utf-8")
        watcher.process.send_signal(signal.SIGHUP)
        reloading = watcher.manager.await_assignment("RELOADING")
        watcher.manager.await_assignment("READY")
        settled = watcher.await_event("settled", where=lambda record: record["pid"] == victim.pid)

        assert int(reloading["MONOTONIC_USEC"]) > 0
        assert settled["outcome"] == "unreapable"
        assert "the configuration was read again" in watcher.log
        assert watcher.about(victim.pid) == ["announce", "killed", "settled"]


@STUCK
def test_the_end_during_a_kill_is_at_once_clean_and_recorded() -> None:
    """SIGTERM while a victim is stuck: within a second no worker and no socket is left, and what was open is told."""
    with killing_one_that_is_stuck() as (watcher, victim, _):
        started = children_of(watcher.pid)
        began = time.monotonic()
        status = watcher.end(signal.SIGTERM)
        took_s = time.monotonic() - began

        assert status == 0
        assert took_s < 1.0
        assert not os.path.lexists(watcher.events_path)
        assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []
        last = [record for record in watcher.events if record["event"] in ("warning", "settled")][-1]
        assert str(victim.pid) in last.get("text", "")
        assert "is being reaped" in last["text"]
        assert "is being reaped" in watcher.log


@STUCK
def test_the_end_begins_no_other_hunt() -> None:
    """SIGTERM below the critical floor, where a second victim would be due in 200 ms: that one is left alone."""
    with killing_one_that_is_stuck(config=KILL + AVOID_PYTHON, hog_mib=300, pause_s=0.0) as (watcher, _, hog):
        status = watcher.end(signal.SIGTERM)

        assert status == 0
        assert hog.is_alive
        assert watcher.about(hog.pid) == []


def test_the_end_while_somebody_is_asked_takes_nobody_else() -> None:
    """SIGTERM between question and answer: it ends within a second, says who was asked, and signals nobody more."""
    config = '[[rule]]\nname = "ask"\nwhen = ["mem_available < 15%"]\nthen = ["terminate", "kill after 60s"]\n'
    with memory_group(150) as group, launched(group, config=config) as watcher:
        deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        hog = group.start_hog(135, prelude=deaf, pause_s=0.002)
        watcher.await_event("killed")
        hog.await_word("full")
        began = time.monotonic()
        status = watcher.end(signal.SIGTERM)

        assert status == 0
        assert time.monotonic() - began < 1.0
        assert hog.is_alive
        assert "was asked to end" in watcher.events[-1]["text"]
        assert watcher.about(hog.pid) == ["announce", "killed"]


def test_a_stopped_watcher_sees_what_it_missed() -> None:
    """Two blind seconds (SIGSTOP), in which a hog fills the group: it is taken right after, and once."""
    with memory_group(150) as group, launched(group, config=KILL) as watcher:
        bystander = group.start_idle(20)
        with watcher.stopped():
            hog = group.start_hog(300, pause_s=0.0)
            assert wait_until(lambda: group.is_under_oom, 20)
            began = time.monotonic()
            assert not wait_until(lambda: not hog.is_alive, 2.0)
        status = hog.wait()
        watcher.await_event("settled")

        assert status == -9
        assert time.monotonic() - began < 2.0 + 3.0
        assert watcher.about(hog.pid) == ["announce", "killed", "settled"]
        assert bystander.is_alive


@pytest.mark.needs("unshare")
def test_another_monotonic_clock_is_as_good() -> None:
    """In a time namespace whose monotonic clock is three days ahead a victim is taken and settled as ever."""
    before = ["unshare", "--time", "--monotonic", "259200", "--fork", "--kill-child=SIGTERM"]
    probe = subprocess.run([*before, "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"no time namespace can be had: {probe.stderr!r}")
    with memory_group(150) as group, launched(group, config=KILL, before=before) as watcher:
        hog = group.start_hog(300, pause_s=0.001)
        status = hog.wait()
        settled = watcher.await_event("settled")
        for pid in children_of(watcher.pid):  # unshare itself passes nothing on
            os.kill(pid, signal.SIGTERM)

        assert status == -9
        assert settled["monotonic_ns"] > time.monotonic_ns() + 200_000 * 10**9
        assert 0 <= settled["elapsed_ms"] < 10_000


def test_a_file_with_faults_starts_nothing_and_names_them_all() -> None:
    """Exit status 2, one line for each of three faults, no socket and no READY."""
    with memory_group(100) as group, launched(group, config=BROKEN, is_awaited=False) as watcher:
        status = watcher.process.wait(20)
        assert watcher.process.stderr is not None
        said = watcher.process.stderr.read().decode()

        assert status == 2
        assert all(word in said for word in ("mem_availabel", "kil", "colour"))
        assert "Traceback" not in said
        assert not os.path.lexists(watcher.events_path)


@pytest.mark.parametrize("harm", ["broken", "gone", "a directory"])
def test_a_reload_that_fails_changes_nothing_and_says_so(harm: str) -> None:
    """The file has faults, has vanished, or is none: RELOADING and READY are said, the old rules go on and kill."""
    with memory_group(150) as group, launched(group, config=KILL) as watcher:
        watcher.config_path.unlink()
        if harm == "broken":
            watcher.config_path.write_text(BROKEN, encoding="utf-8")
        elif harm == "a directory":
            watcher.config_path.mkdir()
        watcher.process.send_signal(signal.SIGHUP)
        watcher.manager.await_assignment("RELOADING")
        watcher.manager.await_assignment("READY")
        warning = watcher.await_event("warning")
        hog = group.start_hog(300)
        status = hog.wait()
        settled = watcher.await_event("settled")

        assert "the old one stays" in warning["text"]
        assert status == -9
        assert settled["rule"] == "kill"


def test_many_reloads_leave_nothing_behind() -> None:
    """Ten SIGHUPs, some while a command still reads: the same number of descriptors as before, and no child more."""
    with memory_group(100) as group, launched(group, config=KILL + GROUPS) as watcher:
        descriptors = Path(f"/proc/{watcher.pid}/fd")
        watcher.process.send_signal(signal.SIGHUP)
        watcher.await_log("read again")
        before = len(list(descriptors.iterdir()))
        for _ in range(5):
            watcher.log = ""
            watcher.process.send_signal(signal.SIGHUP)
            watcher.process.send_signal(signal.SIGHUP)
            watcher.await_log("read again")
        assert wait_until(lambda: len(children_of(watcher.pid)) == 3, 10)
        assert wait_until(lambda: len(list(descriptors.iterdir())) <= before, 10)


GROUPS = '\n[[rule]]\nname = "groups"\nscope = "*"\nwhen = ["memory_current > 95% of limit"]\nthen = ["warn"]\n'


@pytest.mark.parametrize(
    "plan", ["nonsense", "{}", "[" * 100_000, "null", '{"rules": 1}', "\udcff"], ids=lambda text: text[:12]
)
def test_a_plan_that_is_none_is_refused(plan: str) -> None:
    """What the command has left open is no plan: exit status 70 and a line, no traceback of Python's."""
    with sealed(plan.encode("utf-8", "surrogateescape")) as descriptor:
        ended = _run(watcher_command(descriptor), pass_fds=(descriptor,))

    assert ended.returncode == 70
    assert "without a sound plan" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_plan_that_could_still_be_changed_is_refused() -> None:
    """An unsealed memory file, a pipe, /dev/zero and no descriptor at all are not read: nothing hangs or grows."""
    reader, writer = os.pipe()
    zero = os.open("/dev/zero", os.O_RDONLY)
    with sealed(b"{}", seals=0) as unsealed:
        try:
            for word, passed in ((str(unsealed), (unsealed,)), (str(reader), (reader,)), (str(zero), (zero,))):
                ended = _run([*watcher_command(0)[:-1], word], pass_fds=passed)
                assert (ended.returncode, "Traceback" in ended.stderr) == (70, False)
            for word in ("999", "-1", "words", "99999999999999999999"):
                ended = _run([*watcher_command(0)[:-1], word])
                assert (ended.returncode, "Traceback" in ended.stderr) == (70, False)
        finally:
            for descriptor in (reader, writer, zero):
                os.close(descriptor)


@pytest.mark.needs("unshare")
@pytest.mark.parametrize("harm", ["no proc", "another namespace's proc", "events path taken", "events path too long"])
def test_it_refuses_to_start_where_it_could_do_nothing(harm: str) -> None:
    """Exit status 3 and a clear line, no traceback; no READY, and nothing left."""
    with memory_group(100) as group, contextlib.ExitStack() as stack:
        before = {
            "no proc": ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /proc && exec "$@"', "sh"],
            "another namespace's proc": ["unshare", "--pid", "--fork", "--kill-child=SIGTERM"],
        }.get(harm, [])
        arguments: list[str] = []
        if harm == "events path taken":
            other = stack.enter_context(launched(group, config=KILL))
            arguments = ["--events", other.events_path]
        elif harm == "events path too long":
            arguments = ["--events", "/tmp/" + "x" * 200]
        watcher = stack.enter_context(launched(group, *arguments, config=KILL, before=before, is_awaited=False))
        status = watcher.process.wait(20)
        assert watcher.process.stderr is not None
        said = watcher.process.stderr.read().decode()

        assert status == 3
        assert said.strip()
        assert "Traceback" not in said


def _run(command: list[str], pass_fds: tuple[int, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=30, check=False, pass_fds=pass_fds
    )
