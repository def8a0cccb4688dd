"""What dies together, in which group a shortage is handled, and what hooks see of it; under a real watcher.

memory.oom.group and cgroup.kill want the memory controller in v2, which machines with v1 do not have: they are shown on
recorded trees (tests/linux) and by a worker on a bare v2 tree (test_side_jobs), and as a whole in the lab.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.real.watching import memory_group, watching
from tests.victims.processes import kill_exactly, start_time_ticks, states, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.real.watching import Member, Watching

pytestmark = pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease")

# A job: a member that calls itself "keeper", a plain one, one in a process group of its own; then it takes memory.
JOB = """
def member(name=None, own_group=False):
    child = os.fork()
    if child == 0:
        signal.alarm(40)
        if own_group:
            os.setpgid(0, 0)
        if name:
            open("/proc/self/comm", "w").write(name)
        time.sleep(40)
        os._exit(0)
    return child
print(member("keeper"), member("plain"), member("apart", own_group=True), flush=True)
time.sleep(0.2)
"""
# In one process group with a member of the group to stay within, but outside of it; one is born before, one after.
STRADDLER = """
import os, signal, sys, time
def born(until=40):
    child = os.fork()
    if child == 0:
        signal.alarm(until)
        signal.pause()
    return child
hog = os.fork()
if hog == 0:
    signal.alarm(40)
    open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
    time.sleep(0.5)
    held = []
    for _ in range(int(sys.argv[2])):
        held.append(bytearray(b"x" * (1 << 20)))
        time.sleep(0.001)
    time.sleep(40)
time.sleep(0.2)
print(hog, born(), flush=True)
signal.alarm(40)
signal.pause()
"""
EARLY_KILL = """
[[rule]]
name = "early"
when = ["mem_available < 30%"]
then = ["kill"]
"""
POST_KILL = """#!/bin/sh
env | grep ^OOMREAPER_ > "$0.tmp"
mv "$0.tmp" "$0.told"
"""


@pytest.mark.parametrize("unit", ["group", "session", "cgroup"])
def test_what_belongs_together_dies_together_but_for_the_protected(unit: str) -> None:
    """The hog and those of its unit end; a member that a never rule names stays, and so does who is in another unit."""
    config = f'[victims]\nunit = "{unit}"\nnever = [{{comm = "keeper"}}]\n'
    with memory_group(150) as group, group.inner("job") as inside:
        bystander = group.start_idle(20, start_new_session=True)
        with watching(group, config=config) as watcher:
            job = inside.start_hog(300, prelude=JOB, start_new_session=True)
            keeper, plain, apart = said_pids(job)
            job.wait()
            announced = watcher.await_event("announce")
            watcher.await_event("settled", where=lambda record: record["pid"] == job.pid)
            is_apart_in = unit != "group"

            assert (job.pid, unit) == (announced["pid"], announced["unit"])
            assert plain in announced["members"]
            assert keeper not in announced["members"]
            assert wait_until(lambda: not is_there(plain), 10)
            assert is_there(keeper)
            assert is_there(apart) != is_apart_in or not wait_until(lambda: not is_there(apart), 10)
            assert bystander.is_alive


def test_a_unit_that_reaches_out_of_the_group_dies_inside_it_only() -> None:
    """``--within`` is a promise: members of the same process group who are not in the group are not signalled."""
    with memory_group(150) as group:
        bystander = group.start_idle(20, start_new_session=True)
        with watching(group, config=EARLY_KILL + '[victims]\nunit = "group"\n') as watcher:
            leader = group.start_outside(STRADDLER, argv=[str(group.directory), "300"], start_new_session=True)
            hog, outsider = said_pids(leader)
            settled = watcher.await_event("settled")
            watcher.end()  # after which nobody can be signalled any more
            was_spared = is_there(outsider)
            kill_exactly(outsider, start_time_ticks(outsider))

            assert hog == settled["pid"]
            assert was_spared
            assert leader.is_alive
            assert bystander.is_alive


def test_a_shortage_below_is_handled_below() -> None:
    """A group with a limit of its own, below the one we stay within, comes while we run: a kill inside it helps it.

    Nobody outside of it is touched, though there are bigger ones; and when it goes, it is forgotten.
    """
    with memory_group(300) as group:
        big = group.start_idle(100)
        with watching(group) as watcher:
            with group.inner("job", 60) as inside:
                calm = inside.start_idle(15)
                assert wait_until(lambda: inside.scope in scopes_of(watcher), 15)
                hog = inside.start_hog(150)
                hog.wait()
                settled = watcher.await_event("settled")
                used_percent = 100 * group.used_bytes / group.limit_bytes

                assert (hog.pid, inside.scope, "group") == (settled["pid"], settled["scope"], settled["rule"])
                assert [hog.pid] == [record["pid"] for record in watcher.of_kind("announce")]
                assert used_percent < 70
                assert calm.is_alive
                assert big.is_alive
            assert wait_until(lambda: inside.scope not in scopes_of(watcher), 15)
            assert is_at_rest(watcher)


def test_groups_come_and_go_and_leave_nothing_behind() -> None:
    """Twenty groups that come and go one after the other and at once: no descriptor is left of them, and no haste."""
    with memory_group(200) as group, watching(group) as watcher:
        before = open_files_of(watcher.pid)
        for _ in range(2):
            with contextlib.ExitStack() as jobs:
                for number in range(10):
                    jobs.enter_context(group.inner(f"job{number}", 50))
                assert wait_until(lambda: len(scopes_of(watcher)) == 11, 20)
            assert wait_until(lambda: len(scopes_of(watcher)) == 1, 20)

        assert open_files_of(watcher.pid) <= before + 2
        assert is_at_rest(watcher)


def test_a_kill_of_the_kernel_is_noticed_and_awaited() -> None:
    """The kernel's own killer was faster: that is in the record, and nobody else pays for what is over."""
    with memory_group(150, is_kernel_killer_on=True) as group:
        bystander = group.start_idle(20)
        with watching(group) as watcher:
            with watcher.stopped():
                hog = group.start_hog(300, pause_s=0)
                status = hog.wait()
            warning = watcher.await_event("warning", where=lambda record: "OOM killer" in record["text"])

            assert status == -9
            assert "machine" in warning["scope"]
            assert watcher.of_kind("announce") == []
            assert bystander.is_alive


def test_a_hook_before_the_kill_runs_before_the_signal_and_lets_it_go_on(tmp_path: Path) -> None:
    """pre_kill sees its victim alive and unsignalled; when it ends the kill goes on at once, long before its deadline.

    post_kill is told how it ended.
    """
    before = executable(tmp_path / "before", '#!/bin/sh\ncp "/proc/$OOMREAPER_PID/status" "$0.told"\n')
    after = executable(tmp_path / "after", POST_KILL)
    hooks = f'[hooks]\npre_kill = ["{before}"]\npre_kill_timeout = "10s"\npost_kill = ["{after}"]\n'
    with memory_group(150) as group, watching(group, config=EARLY_KILL + hooks) as watcher:
        assert wait_until(lambda: clients_of(watcher) >= 3, 20)  # ourselves, who asks, and the clerk
        hog = group.start_hog(115, pause_s=0.002)
        hog.wait()
        announced, killed = watcher.await_event("announce"), watcher.await_event("killed")
        assert wait_until((tmp_path / "after.told").exists, 10)
        seen = (tmp_path / "before.told").read_text(encoding="ascii")
        told = dict(line.split("=", 1) for line in (tmp_path / "after.told").read_text(encoding="utf-8").splitlines())

        assert "SigPnd:\t0000000000000000" in seen
        assert "ShdPnd:\t0000000000000000" in seen
        assert "RssAnon" in seen
        assert killed["monotonic_ns"] - announced["monotonic_ns"] < 9_000_000_000
        assert told["OOMREAPER_PID"] == str(hog.pid)
        assert told["OOMREAPER_OUTCOME"] in {"reaped", "exited"}
        assert told["OOMREAPER_EVENT"] == "settled"
        assert told["OOMREAPER_INCIDENT"] == announced["incident"]


def test_a_hook_without_end_holds_nothing_up(tmp_path: Path) -> None:
    """At its deadline the kill goes on without it, it is said, and it is ended."""
    endless = executable(tmp_path / "endless", '#!/bin/sh\necho $$ > "$0.pid"\nexec sleep 40\n')
    hooks = f'[hooks]\npre_kill = ["{endless}"]\npre_kill_timeout = "300ms"\n'
    with memory_group(150) as group, watching(group, config=EARLY_KILL + hooks) as watcher:
        assert wait_until(lambda: clients_of(watcher) >= 3, 20)
        hog = group.start_hog(115, pause_s=0.002)
        hog.wait()
        announced, killed = watcher.await_event("announce"), watcher.await_event("killed")
        waited_ms = (killed["monotonic_ns"] - announced["monotonic_ns"]) / 1e6
        noted = tmp_path / "endless.pid"
        assert wait_until(lambda: noted.exists() and noted.read_text(encoding="ascii").endswith("\n"), 10)
        pid = int(noted.read_text(encoding="ascii"))

        assert waited_ms >= 299
        assert waited_ms < 3000
        assert any("pre-kill hook did not end" in record["text"] for record in watcher.of_kind("warning"))
        assert wait_until(lambda: not is_there(pid), 10)


def executable(path: Path, content: str) -> Path:
    """A program."""
    path.write_text(content, encoding="utf-8")
    path.chmod(0o755)
    return path


def said_pids(member: Member) -> list[int]:
    """The line of numbers that it says."""
    assert member.process.stdout is not None
    return [int(word) for word in member.process.stdout.readline().split()]


def is_there(pid: int) -> bool:
    """Whether a process that we know to be ours has not ended."""
    return start_time_ticks(pid) is not None and not set(states(pid).values()) <= {"Z", "X"}


def scopes_of(watcher: Watching) -> list[str]:
    """What it watches."""
    return [scope["scope"] for scope in watcher.ask_state()["scopes"]]


def clients_of(watcher: Watching) -> int:
    """Who listens to it."""
    clients: int = watcher.ask_state()["statistics"]["outlet"]["clients"]
    return clients


def open_files_of(pid: int) -> int:
    """How many descriptors it has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def is_at_rest(watcher: Watching) -> bool:
    """Whether it waits: a few turns in half a second, and not thousands."""
    before = watcher.ask_state()["statistics"]["turns"]
    time.sleep(0.5)  # this is the time that is measured
    turns: int = watcher.ask_state()["statistics"]["turns"] - before
    return turns < 40
