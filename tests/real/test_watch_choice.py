"""Who is chosen when it is not one big process that grows: hogs at once, swarms, shared memory, churn, wishes."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.real.watching import HOG, memory_group, watching
from tests.victims import stage
from tests.victims.processes import wait_until
from tests.victims.surroundings import own_cgroup

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease")

MIB = 1 << 20

# A shell that is in no memory group of ours starts members inside; each takes 4 MiB and has children as long as it may.
SWARM = """
import os, sys, signal, time
memory, pids, size_mib = sys.argv[1], sys.argv[2], int(sys.argv[3])
signal.alarm(40)
open(pids + "/cgroup.procs", "w").write(str(os.getpid()))
first = os.fork()
if first:
    print("started", flush=True)
    signal.pause()
open(memory + "/cgroup.procs", "w").write(str(os.getpid()))
held = []
while True:
    signal.alarm(40)
    held.append(bytearray(os.urandom(4096)) * (256 * size_mib))
    while True:
        try:
            child = os.fork()
        except OSError:
            time.sleep(0.02)
            continue
        if child == 0:
            held.clear()
            break
        time.sleep(0.005)
"""
MEMFD = """
import mmap, os
file = os.memfd_create("hog")
os.ftruncate(file, {mib} << 20)
view = mmap.mmap(file, {mib} << 20)
print("filling", flush=True)
for at in range(0, {mib} << 20, 1 << 20):
    view[at:at + (1 << 20)] = b"x" * (1 << 20)
    time.sleep(0.001)
print("full", flush=True)
time.sleep(40)
"""
# Two fill one segment together: only the second death gives it back.
SHARED = """
import mmap, os, signal
view = mmap.mmap(-1, {mib} << 20)
child = os.fork()
signal.alarm(40)
if child:
    print(child, flush=True)
for at in range(0, {mib} << 20, 1 << 20):
    view[at:at + (1 << 20)] = b"x" * (1 << 20)
    time.sleep(0.002)
time.sleep(40)
"""
CHURN = """
import os
begun = last = time.monotonic()
count = 0
while True:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    count += 1
    now = time.monotonic()
    if now - last >= 0.1:
        print(round(count / (now - last)), flush=True)
        last, count = now, 0
"""
# A group's own members ask for nothing here: what counts is who is left.
KILL_LATE = """
[[rule]]
name = "late"
when = ["mem_available < 3%"]
then = ["kill"]
"""


def test_of_three_hogs_at_once_as_many_die_as_must() -> None:
    """Three take all there is at the same time: two have to go, the third gets what it wanted, the bystander stays."""
    with memory_group(200) as group:
        bystander = group.start_idle(30)
        with watching(group) as watcher:
            hogs = [group.start_hog(110) for _ in range(3)]
            assert wait_until(lambda: sum(hog.is_alive for hog in hogs) <= 1, 30)
            (winner,) = [hog for hog in hogs if hog.is_alive]
            winner.await_word("full")
            losers = {hog.pid for hog in hogs if hog is not winner}
            for pid in losers:
                watcher.await_event("settled", where=is_about(pid))

            assert losers == {record["pid"] for record in watcher.of_kind("announce")}
            assert bystander.is_alive
            assert winner.is_alive
            assert watcher.has_lost_nothing()


def test_a_fork_bomb_dies_as_a_whole_and_the_shell_that_started_it_lives() -> None:
    """Many small ones that go on having children: all of them end together, and none is left to begin anew."""
    with own_cgroup("pids") as pids, memory_group(150) as group:
        (pids / "pids.max").write_text("60", encoding="ascii")
        bystander = group.start_idle(20, start_new_session=True)
        with watching(group, config=KILL_LATE) as watcher:
            shell = group.start_outside(SWARM, argv=[str(group.directory), str(pids), "4"], start_new_session=True)
            shell.await_word("started")
            announced = watcher.await_event("announce")
            watcher.await_event("settled")
            assert wait_until(lambda: group.pids == [bystander.pid], 20)

            assert announced["unit"] == "group"
            assert announced["unit_key"] == str(shell.pid)
            assert announced["member_count"] >= 16
            assert "a swarm" in announced["why"][0]
            assert shell.is_alive
            assert bystander.is_alive
            assert not wait_until(lambda: group.pids != [bystander.pid], 0.5)  # nobody came after them


def test_a_hog_of_shared_memory_is_found_by_it() -> None:
    """What fills the group is a memfd: its mapper holds next to nothing of its own, and is chosen all the same."""
    with memory_group(200) as group:
        bystander = group.start_idle(25)
        with watching(group) as watcher:
            hog = group.start(MEMFD.format(mib=300))
            hog.wait()
            settled = watcher.await_event("settled", where=is_about(hog.pid))

            assert [hog.pid] == [record["pid"] for record in watcher.of_kind("announce")]
            assert settled["outcome"] in {"reaped", "exited"}
            assert bystander.is_alive
            assert wait_until(lambda: group.used_bytes < 60 * MIB, 10)


def test_who_shares_a_segment_dies_until_it_is_back() -> None:
    """Two hold one segment: when the first one's death gives nothing back, the second follows; nobody else."""
    with memory_group(200) as group:
        bystander = group.start_idle(10)
        with watching(group) as watcher:
            first = group.start(SHARED.format(mib=300))
            assert first.process.stdout is not None
            second = int(first.process.stdout.readline())
            for pid in (first.pid, second):
                watcher.await_event("settled", where=is_about(pid))

            assert {first.pid, second} == {record["pid"] for record in watcher.of_kind("announce")}
            assert wait_until(lambda: group.used_bytes < 40 * MIB, 10)
            assert bystander.is_alive


def test_a_thousand_forks_a_second_hide_nobody(capsys: pytest.CaptureFixture[str]) -> None:
    """While children come and go by the thousand, the hog is chosen as ever, and who has them is not."""
    with memory_group(200) as group:
        churners = [group.start(CHURN) for _ in range(2)]
        bystander = group.start_idle(25)
        with watching(group) as watcher:
            before = forks_of_the_machine()
            begun_s = time.monotonic()
            hog = group.start_hog(400, pause_s=0.004)
            hog.wait()
            watcher.await_event("settled", where=is_about(hog.pid))
            rate = (forks_of_the_machine() - before) / (time.monotonic() - begun_s)
            with capsys.disabled():
                print(f" [{rate:.0f} forks a second]", end="")  # noqa: T201 - how hard it was is to be seen in the run

            assert rate > 300
            assert [hog.pid] == [record["pid"] for record in watcher.of_kind("announce")]
            assert bystander.is_alive
            assert all(churner.is_alive for churner in churners)
            assert watcher.has_lost_nothing()


def test_a_pid_that_was_given_on_is_nobodys_guilt() -> None:
    """The hog ends by itself while the watcher cannot look, and its pid goes to a stranger, who is never signalled.

    The next one who takes too much is chosen instead.
    """
    with memory_group(200) as group:
        bystander = group.start_idle(20)
        with watching(group, config=KILL_LATE) as watcher:
            first = group.start_hog(155, pause_s=0)
            first.await_word("full")
            assert wait_until(lambda: str(first.pid) in str(watcher.ask_state()["ranking"]), 10)
            with watcher.stopped():
                first.process.kill()
                first.process.wait()
                stranger = start_as(first.pid)
                hog = group.start_hog(300, pause_s=0)
                assert wait_until(lambda: group.is_under_oom, 20)
            try:
                hog.wait()
                watcher.await_event("settled", where=is_about(hog.pid))

                assert first.pid not in {record.get("pid") for record in watcher.events}
                assert is_running(stranger)
                assert bystander.is_alive
            finally:
                end_child(stranger)


@pytest.mark.needs("cc")
def test_who_gets_the_pid_of_a_victim_is_no_more_spared_than_others(tmp_path: Path) -> None:
    """A victim that was reaped and not gone is left alone; when it has gone, whoever has its pid is looked at again."""
    with memory_group(200) as group, contextlib.ExitStack() as stack:
        with group.entered():
            victim = stack.enter_context(stage.inode_lock(size_bytes=150 * MIB))
        bystander = group.start_idle(20)
        begin = tmp_path / "begin"
        wait_for_it = f"while not os.path.exists({str(begin)!r}): time.sleep(0.01)\n"
        with watching(group, config=KILL_LATE) as watcher:
            pusher = group.start_hog(35, pause_s=0.003)
            settled = watcher.await_event("settled", where=is_about(victim.pid))
            pusher.await_word("full")
            with watcher.stopped():
                victim.release()
                victim.collect()
                hog = start_as(victim.pid, *group.command(wait_for_it + HOG.format(mib=300, pause=0.001, stay=40)))
                stack.callback(end_child, hog)
                assert wait_until(lambda: hog in group.pids, 20)
            watcher.ask_state()  # it has had time to see who has gone
            begin.touch()
            again = watcher.await_event("settled", where=lambda record: record["incident"] != settled["incident"])

            assert settled["still_dying"]
            assert again["pid"] == settled["pid"] == hog
            assert again["start_time_ticks"] > settled["start_time_ticks"]
            assert bystander.is_alive
            assert pusher.is_alive


def test_bloat_dies_and_chill_lives() -> None:
    """The scenario of systemd's TEST-55: of two groups in trouble together, the one that bloats pays."""
    with memory_group(200) as group, group.inner("testchill") as calm, group.inner("testbloat") as wild:
        chill = calm.start_idle(40)
        with watching(group) as watcher:
            bloat = wild.start_hog(400)
            bloat.wait()
            watcher.await_event("settled")

            assert [bloat.pid] == [record["pid"] for record in watcher.of_kind("announce")]
            assert chill.is_alive


@pytest.mark.parametrize("by", ["xattr", "config"])
def test_who_is_to_be_avoided_lives_while_there_is_another(by: str) -> None:
    """TEST-55 again: with a wish on the bloating group, the munching one dies instead, though it holds less."""
    with memory_group(200) as group, group.inner("testbloat") as wild, group.inner("testmunch") as other:
        if by == "xattr":
            os.setxattr(wild.directory, "user.oomd_avoid", b"1")
        config = '[victims]\navoid = [{cgroup = "*/testbloat"}]\n' if by == "config" else None
        munch = other.start_idle(50)
        with watching(group, config=config) as watcher:
            bloat = wild.start_hog(155, pause_s=0.002)
            munch.wait()
            bloat.await_word("full")
            watcher.await_event("settled")

            assert [munch.pid] == [record["pid"] for record in watcher.of_kind("announce")]
            assert bloat.is_alive


def test_who_is_to_be_avoided_dies_when_there_is_no_other() -> None:
    """A wish to be avoided is no protection: alone with its memory it pays."""
    with memory_group(150) as group, group.inner("testbloat") as wild:
        os.setxattr(wild.directory, "user.oomd_avoid", b"1")
        with watching(group) as watcher:
            bloat = wild.start_hog(300)
            bloat.wait()
            announced = watcher.await_event("announce")

            assert announced["pid"] == bloat.pid
            assert any("user.oomd_avoid" in reason for reason in announced["why"])


@pytest.mark.parametrize("by", ["xattr", "config"])
def test_who_is_to_be_left_out_is_never_taken(by: str) -> None:
    """With user.oomd_omit (or a never rule) on the only big ones nobody is killed, and it is said why."""
    with memory_group(150) as group, group.inner("testbloat") as wild:
        if by == "xattr":
            os.setxattr(wild.directory, "user.oomd_omit", b"1")
        config = '[victims]\nnever = [{cgroup = "*/testbloat"}]\n' if by == "config" else None
        with watching(group, config=config) as watcher:
            bloat = wild.start_hog(300)
            skipped = watcher.await_event("skipped")
            assert wait_until(lambda: group.is_under_oom, 20)
            protected = [row for row in watcher.ask_state()["ranking"] if row["pid"] == bloat.pid]

            assert "protected" in skipped["text"]
            assert watcher.of_kind("announce") == []
            assert bloat.is_alive
            assert protected[0]["standing"] == "protected"


def is_about(pid: int) -> Callable[[dict[str, Any]], bool]:
    """Whether a record tells of this process."""
    return lambda record: record.get("pid") == pid


def forks_of_the_machine() -> int:
    """How many processes were made since the machine booted."""
    with open("/proc/stat", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("processes "))


def start_as(pid: int, *program: str, tries: int = 2000) -> int:
    """A child of ours that has this very pid, which nobody holds; it runs ``program`` or does nothing."""
    for _ in range(tries):
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
            file.write(str(pid - 1))
        child = os.fork()
        if child == 0:
            try:
                if program and os.getpid() == pid:
                    os.execv(program[0], program)
                time.sleep(40)
            finally:
                os._exit(0)
        if child == pid:
            return child
        end_child(child)
    message = f"pid {pid} could not be had again"
    raise AssertionError(message)


def end_child(pid: int) -> None:
    """Kill and wait for a child of ours."""
    os.kill(pid, signal.SIGKILL)  # it has not been waited for, so the number is still its own
    os.waitpid(pid, 0)


def is_running(pid: int) -> bool:
    """Whether a child of ours has not ended."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
