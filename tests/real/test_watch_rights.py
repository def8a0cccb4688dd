"""What the watcher may do and must not: its rights, an ordinary user's watcher, a dry run."""

from __future__ import annotations

import os
import signal

import pytest

from oomreaper.linux import privileges
from tests.interpreters import NOBODY
from tests.real.watching import memory_group, watching
from tests.real.worst_days import KILL, launched, start_hog_of, status_of, workers_of
from tests.victims.processes import children_of, wait_until

pytestmark = pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease")

# include/uapi/linux/capability.h
_BITS = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_KILL": 5,
    "CAP_IPC_LOCK": 14,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_NICE": 23,
    "CAP_SYS_RESOURCE": 24,
}
PRE_KILL = """
[hooks]
pre_kill = ["/bin/true"]
"""
# Says so when it is asked to end, and stays.
TALKATIVE = """
def say(*_):
    os.write(1, b"asked" + bytes([10]))
signal.signal(signal.SIGTERM, say)
"""


def test_the_watcher_and_its_workers_keep_only_what_they_need() -> None:
    """Both have the six capabilities of NEEDED at most, bounded for good, and no_new_privs; also a later worker."""
    allowed = sum(1 << _BITS[name] for name in privileges.NEEDED)
    with memory_group(200) as group, watching(group, config=PRE_KILL) as watcher:
        first = workers_of(watcher.pid)
        os.kill(first[0], signal.SIGKILL)
        watcher.await_event("warning", where=lambda record: "a worker ended" in record["text"])
        _await_workers(watcher.pid, 3)
        everybody = [watcher.pid, *children_of(watcher.pid)]

        assert len(first) == 3
        assert len(everybody) == 5  # the watcher, three workers, the clerk
        for pid in everybody:
            status = status_of(pid)
            rights = [int(status[name], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")]
            assert [right & ~allowed for right in rights] == [0] * 5
            assert status["NoNewPrivs"] == "1"
        assert int(status_of(watcher.pid)["CapEff"], 16) & 1 << 5  # CAP_KILL: it can do its work


def test_a_hook_is_not_missed_by_a_clerk_that_comes_late() -> None:
    """READY is said when the clerk listens: a shortage right after it has its pre-kill hook run and acknowledged."""
    config = KILL + '[hooks]\npre_kill = ["/bin/sh", "-c", "exit 0"]\npre_kill_timeout = "5s"\n'
    with memory_group(200) as group, watching(group, config=config, is_connected=False) as watcher:
        clients = watcher.ask_state()["statistics"]["outlet"]["clients"]
        watcher.connect()
        hog = group.start_hog(180, pause_s=0.002)
        announce = watcher.await_event("announce")
        killed = watcher.await_event("killed")
        hog.wait()

        assert clients == 2  # the clerk, and who asked
        assert announce["hook"]
        assert killed["monotonic_ns"] - announce["monotonic_ns"] < 4_000_000_000  # it did not wait for the deadline


@pytest.mark.needs("python_for_everybody")
def test_an_ordinary_users_watcher_takes_his_own_and_never_roots() -> None:
    """As uid 65534: the bigger process is root's and is left alone, his own is taken, and why is told."""
    with memory_group(240) as group:
        roots = group.start_idle(112)
        with launched(group, uid=NOBODY, config=KILL) as watcher:
            status = status_of(watcher.pid)
            own = start_hog_of(group, NOBODY, 150)
            ended = own.wait()
            settled = watcher.await_event("settled")
            state = watcher.ask_state()

            assert ended == -9
            assert settled["pid"] == own.pid
            assert {own.pid} == {record["pid"] for record in watcher.of_kind("announce")}
            assert roots.is_alive
            assert status["NoNewPrivs"] == "1"
            assert status["Umask"] == "0022"
            assert int(status["CapEff"], 16) == 0
            assert state["statistics"]["crew"]["workers_lost"] == 0


@pytest.mark.needs("python_for_everybody")
def test_an_ordinary_users_watcher_that_may_take_nobody_says_why() -> None:
    """Only root's processes hold the memory: nothing is done, and that nobody can be signalled is told."""
    with memory_group(150) as group, launched(group, uid=NOBODY, config=KILL) as watcher:
        hog = group.start_hog(143, pause_s=0.002)
        hog.await_word("full")
        skipped = watcher.await_event("skipped")

        assert hog.is_alive
        assert skipped["text"]
        assert watcher.of_kind("announce") == []


@pytest.mark.needs("python_for_everybody", "unshare")
def test_hidepid_hides_nobody_who_is_ones_own() -> None:
    """With /proc mounted hidepid=2 an ordinary user's watcher sees its own user's processes, and takes them."""
    script = 'mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'
    before = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    with memory_group(200) as group:
        roots = group.start_idle(60)
        with launched(group, config=KILL, before=before, becomes=NOBODY) as watcher:
            own = start_hog_of(group, NOBODY, 200)
            ended = own.wait()
            settled = watcher.await_event("settled")

            assert ended == -9
            assert (own.pid, "exited") == (settled["pid"], settled["outcome"]) or settled["outcome"] == "reaped"
            assert roots.is_alive


def test_a_dry_run_signals_nobody() -> None:
    """It chooses as it would, and says so with outcome null; neither of the two who would have been taken is asked."""
    with memory_group(150) as group, watching(group, "--dry-run") as watcher:
        hog = group.start_hog(147, pause_s=0.002, prelude=TALKATIVE)
        hog.await_word("full")
        settled = watcher.await_event("settled")
        terminated = watcher.of_kind("killed")
        hog.process.send_signal(signal.SIGTERM)
        hog.await_word("asked")  # the first that it hears is ours: it listened all the time

        assert (hog.pid, None) == (settled["pid"], settled["outcome"])
        assert "dry run" in settled["reason"]
        assert terminated == []
        assert hog.is_alive


def _await_workers(pid: int, count: int) -> None:
    assert wait_until(lambda: len(workers_of(pid)) == count, 10)
