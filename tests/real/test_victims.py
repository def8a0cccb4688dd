"""The victims are what they say they are: proved on this machine's kernel, with no oomreaper but its raw calls.

Every other test on the real kernel stands on these claims. Where one fails on a new kernel, it is the kernel that
is right: mend the victim or the page that says what to expect.
"""

from __future__ import annotations

import errno
import functools
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from oomreaper.linux import syscalls
from tests.victims import processes, stage
from tests.victims.cgroups import groups_named
from tests.victims.leftovers import Watch
from tests.victims.program import NAME_PREFIX, PROGRAM_VARIABLE, Helper, compiled_program, killed_at_the_end
from tests.victims.surroundings import CORE_PATTERN, loop_devices_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.victims.stage import MemoryKind, StagedVictim

# SIGKILL alone has this long to free a victim that it is claimed not to free.
HELD_S = 0.3
# What is released or healthy has this long to go: an exit takes 10 ms here, and a loaded machine is slow.
GONE_S = 10.0
# What may be left of a reaped victim: pages that the kernel does not count at once, and the exit's own.
REAPED_BYTES = stage.MIB


class Case(NamedTuple):
    """One way to be stuck, and how it shows."""

    name: str
    """Its name on the stage."""
    state_before: str
    """The state letter of the thread that is stuck, before SIGKILL."""
    state_after: str
    """And after it."""
    needs: tuple[str, ...]

    def stage(self) -> AbstractContextManager[StagedVictim]:
        """Stage it, in the default size."""
        staging: Callable[[], AbstractContextManager[StagedVictim]] = getattr(stage, self.name)
        return staging()


# Stuck, and process_mrelease frees them at once.
_REAPABLE = [
    Case("inode_lock", "D", "D", ("userfaultfd",)),
    Case("zombie_leader_stuck", "D", "D", ("userfaultfd",)),
    Case("fuse_read", "S", "D", ("root", "fuse", "unshare")),
    Case("frozen_write", "D", "D", ("root", "loop_ext4", "unshare")),
    Case("frozen_cgroup_v1", "D", "D", ("cgroup_v1_freezer",)),
    Case("starved_by_busy_loops", "R", "R", ("two_cpus", "negative_nice")),
    Case("starved_by_fifo", "R", "R", ("two_cpus", "sched_fifo")),
    Case("parked_in_exit", "S", "t", ("ptrace",)),
]
REAPABLE = [pytest.param(case, id=case.name, marks=pytest.mark.needs("cc", *case.needs)) for case in _REAPABLE]


def _stuck_letters(victim: StagedVictim) -> set[str]:
    return {letter for letter in victim.states().values() if letter not in processes.DEAD_STATES}


def _is_held(victim: StagedVictim) -> bool:
    return victim.anon_bytes() >= 0.9 * victim.size_bytes


@pytest.mark.parametrize("case", REAPABLE)
def test_sigkill_alone_does_not_free_a_stuck_victim_and_mrelease_does(case: Case) -> None:
    """It stands in its state, SIGKILL leaves all its memory, mrelease frees it while it is stuck, release ends it."""
    with case.stage() as victim:
        assert _stuck_letters(victim) == {case.state_before}
        assert _is_held(victim)

        victim.kill()

        assert not victim.is_gone(HELD_S)
        assert _stuck_letters(victim) == {case.state_after}
        assert _is_held(victim)
        assert stage.mrelease_in_child(victim.pid) == 0
        assert victim.anon_bytes() <= REAPED_BYTES
        assert not victim.is_gone()

        victim.release()

        assert victim.is_gone(GONE_S)


@pytest.mark.parametrize("case", REAPABLE)
def test_release_ends_the_stuck_state_and_nothing_else(case: Case) -> None:
    """A victim that nobody has killed sleeps on when it is released, with its memory; a second release is nothing."""
    with case.stage() as victim:
        victim.release()
        victim.release()

        assert stage.wait_until(lambda: _stuck_letters(victim) == {"S"}, GONE_S)
        assert _is_held(victim)


@pytest.mark.parametrize("case", REAPABLE)
def test_mrelease_refuses_a_stuck_victim_that_is_not_dying(case: Case) -> None:
    """Being stuck is no reason to lose one's memory: EINVAL before SIGKILL, and nothing is freed."""
    with case.stage() as victim:
        assert stage.mrelease_in_child(victim.pid) == errno.EINVAL
        assert _is_held(victim)


# ---- healthy ----------------------------------------------------------------------------------------------------

ANON_KINDS = [
    "anon",
    "private-file",
    pytest.param("locked", marks=pytest.mark.needs("mlock")),
    pytest.param("huge", marks=pytest.mark.needs("thp")),
]


@pytest.mark.needs("cc")
@pytest.mark.parametrize("memory", ANON_KINDS)
def test_sigkill_alone_frees_a_healthy_victim(memory: MemoryKind) -> None:
    """It sleeps with all its memory anonymous, and SIGKILL is enough."""
    with stage.plain(memory) as victim:
        assert victim.states() == {victim.pid: "S"}
        assert victim.size_bytes <= victim.anon_bytes() <= 1.1 * victim.size_bytes + stage.MIB

        victim.kill()

        assert victim.is_gone(GONE_S)
        assert victim.anon_bytes() == 0


@pytest.mark.needs("cc", "ptrace")
@pytest.mark.parametrize("memory", ANON_KINDS)
def test_mrelease_frees_every_kind_of_anonymous_memory(memory: MemoryKind) -> None:
    """4 KiB pages, huge pages, mlocked pages and copied pages of a private file: all gone before the exit."""
    with stage.parked_in_exit(memory) as victim:
        victim.kill()
        victim.wait_for_state("t")

        assert stage.mrelease_in_child(victim.pid) == 0
        assert victim.anon_bytes() <= REAPED_BYTES


@pytest.mark.needs("cc", "ptrace")
@pytest.mark.parametrize("memory", ["shared", "memfd"])
def test_mrelease_says_0_and_frees_no_shared_memory(memory: MemoryKind) -> None:
    """The answer 0 proves nothing: shared memory stays until the exit."""
    with stage.parked_in_exit(memory) as victim:
        held_bytes = victim.shmem_bytes()

        assert victim.anon_bytes() <= stage.MIB
        assert held_bytes >= stage.DEFAULT_SIZE_BYTES

        victim.kill()
        victim.wait_for_state("t")

        assert stage.mrelease_in_child(victim.pid) == 0
        assert victim.shmem_bytes() == held_bytes

        victim.release()

        assert victim.is_gone(GONE_S)


@pytest.mark.needs("cc", "thp")
def test_a_huge_victim_is_made_of_huge_pages() -> None:
    """Nine tenths of its memory are transparent huge pages; a plain victim has none."""
    with stage.plain("huge") as huge, stage.plain() as small:
        sizes = [
            int(line.split()[1]) * 1024
            for victim in (huge, small)
            for line in Path(f"/proc/{victim.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
            if line.startswith("AnonHugePages")
        ]

        assert sizes[0] >= 0.9 * huge.size_bytes
        assert sizes[1] == 0


@pytest.mark.needs("cc", "mlock")
def test_a_locked_victim_is_mlocked() -> None:
    """The kernel counts all of its memory as locked."""
    with stage.plain("locked") as victim:
        assert int(processes.status_of_mm(victim.pid)["VmLck"].split()[0]) * 1024 >= victim.size_bytes


@pytest.mark.needs("cc", "swap")
def test_a_swapped_victim_is_in_swap() -> None:
    """Some of its memory is swapped out, and counts as held all the same."""
    with stage.small_swap(), stage.plain("swapped") as victim:
        assert int(processes.status_of_mm(victim.pid)["VmSwap"].split()[0]) > 0
        assert _is_held(victim)


@pytest.mark.needs("cc", "process_mrelease")
def test_mrelease_of_a_healthy_victim_is_a_race() -> None:
    """Back to back with SIGKILL it says 0, or ESRCH when the victim was quicker; the memory is gone either way."""
    with stage.plain() as victim:
        sigkill_errno, mrelease_errno = syscalls.kill_and_release(victim.pidfd)

        assert sigkill_errno == 0
        assert mrelease_errno in {0, errno.ESRCH}
        assert victim.is_gone(GONE_S)


@pytest.mark.needs("cc", "cgroup_v2")
def test_a_frozen_v2_group_lets_sigkill_through() -> None:
    """Unlike a v1 group: the victim dies in it without being thawed."""
    with stage.frozen_cgroup_v2() as victim:
        victim.kill()

        assert victim.is_gone(GONE_S)


# ---- many threads, and leaders that left ------------------------------------------------------------------------


@pytest.mark.needs("cc")
def test_thousands_of_threads_share_one_memory() -> None:
    """2,000 threads and a leader, all asleep, with one address space; SIGKILL through the leader ends all."""
    with stage.many_threads(2000) as victim:
        assert set(victim.states().values()) == {"S"}
        assert len(victim.follower_ids()) == 2000
        # Every thread has a page or two of stack, so it holds a little more than it was asked to.
        assert victim.size_bytes <= victim.anon_bytes() <= 2 * victim.size_bytes

        victim.kill()

        assert victim.is_gone(GONE_S)


@pytest.mark.needs("cc")
def test_a_thread_that_leads_no_process_has_no_pidfd() -> None:
    """The id of a follower is a pid to nobody: pidfd_open says EINVAL, or ENOENT on newer kernels."""
    with stage.many_threads(1) as victim:
        (tid,) = victim.follower_ids()

        with pytest.raises(OSError, match=r"\[Errno") as raised:
            os.close(os.pidfd_open(tid))
        assert raised.value.errno in {errno.EINVAL, errno.ENOENT}


@pytest.mark.needs("cc")
def test_a_zombie_leader_hides_memory_that_it_still_holds() -> None:
    """The leader is Z, statm says 0, and the live thread has it all; SIGKILL through the leader's pidfd ends it."""
    with stage.zombie_leader() as victim:
        (tid,) = victim.follower_ids()

        assert victim.states() == {victim.pid: "Z", tid: "S"}
        assert Path(f"/proc/{victim.pid}/statm").read_text(encoding="ascii").split() == ["0"] * 7
        assert "RssAnon" not in processes.status_fields(victim.pid)
        assert _is_held(victim)
        assert not processes.wait_for_pidfd(victim.pidfd, 0)

        victim.kill()

        assert victim.is_gone(GONE_S)


# ---- one memory, several processes ------------------------------------------------------------------------------


@pytest.mark.needs("cc", "kcmp")
@pytest.mark.parametrize("count", [1, 1000])
def test_memory_lives_as_long_as_any_of_its_sharers(count: int) -> None:
    """The victim is dead and its sharers, processes of their own, hold all of its memory until they end too."""
    with stage.plain(sharers=count) as victim:
        assert len(victim.pids) == count + 1
        assert all(syscalls.is_same_mm(victim.pid, pid) for pid in victim.pids[1:])

        victim.kill()

        assert processes.wait_for_pidfd(victim.pidfd, GONE_S)
        assert not victim.is_gone(HELD_S)
        assert _is_held(victim)
        assert stage.mrelease_in_child(victim.pid) == errno.ESRCH

        victim.release()

        assert victim.is_gone(GONE_S)


@pytest.mark.needs("cc", "ptrace")
@pytest.mark.parametrize("count", [1, 1000])
def test_mrelease_refuses_while_a_sharer_is_not_dying(count: int) -> None:
    """EINVAL, although the victim is dying and holds its memory; 0 once the last sharer is killed."""
    with stage.parked_in_exit(sharers=count) as victim:
        victim.kill()
        victim.wait_for_state("t")

        assert stage.mrelease_in_child(victim.pid) == errno.EINVAL
        assert _is_held(victim)

        victim.kill_all()

        assert stage.wait_until(lambda: stage.mrelease_in_child(victim.pid) == 0, GONE_S)
        assert victim.anon_bytes() <= REAPED_BYTES
        assert victim.state() == "t"


@pytest.mark.needs("cc", "kcmp")
def test_a_vfork_child_holds_its_parents_memory() -> None:
    """The parent waits in D, and can be killed; its memory stays with the child that has not called exec."""
    with stage.vfork_parent() as victim:
        parent, child = victim.pids

        assert victim.state() == "D"
        assert syscalls.is_same_mm(parent, child)

        victim.kill()

        assert processes.wait_for_pidfd(victim.pidfd, GONE_S)
        assert not victim.is_gone(HELD_S)
        assert _is_held(victim)

        victim.release()

        assert victim.is_gone(GONE_S)


@pytest.mark.needs("cc", "root", "unshare", "kcmp")
def test_an_init_that_shares_the_memory_outlives_the_victim() -> None:
    """In its namespace init ignores SIGKILL and keeps the memory; from outside it can be killed."""
    with stage.init_shares_memory() as victim:
        assert syscalls.is_same_mm(victim.pid, victim.init_pid)

        seen = victim.run_inside(["cat", f"/proc/{victim.pid_inside}/comm", "/proc/1/comm"])
        refused = victim.run_inside(["sh", "-c", "kill -KILL 1"])

        assert seen.stdout == "victims\nvictims\n"
        assert refused.returncode == 0

        victim.run_inside(["sh", "-c", f"kill -KILL {victim.pid_inside}"])

        assert processes.wait_for_pidfd(victim.pidfd, GONE_S)
        assert not victim.is_gone(HELD_S)
        assert _is_held(victim)

        victim.release()

        assert victim.is_gone(GONE_S)


# ---- parked ------------------------------------------------------------------------------------------------------


@pytest.mark.needs("cc", "ptrace")
def test_a_second_sigkill_does_not_move_a_parked_victim() -> None:
    """A process that is dying already takes no more signals: it stays where its tracer stopped it."""
    with stage.parked_in_exit() as victim:
        victim.kill()
        victim.wait_for_state("t")
        victim.kill()

        assert not victim.is_gone(HELD_S)
        assert victim.state() == "t"
        assert _is_held(victim)


@pytest.mark.needs("cc", "root", "ptrace")
def test_parking_needs_no_privilege() -> None:
    """The user nobody can park a victim of the same user."""
    with stage.parked_in_exit(user=65534) as victim:
        assert processes.status_fields(victim.pid)["Uid"].split() == ["65534"] * 4

        victim.kill()

        assert not victim.is_gone(HELD_S)
        assert victim.state() == "t"


# ---- core dumps -------------------------------------------------------------------------------------------------


@pytest.mark.needs("cc", "root", "core_pattern")
def test_sigkill_aborts_a_core_dump_that_waits_for_its_reader() -> None:
    """CoreDumping is 1 and mrelease says EINVAL while the dump stands; SIGKILL ends dump and victim."""
    with stage.core_dump_to_pipe() as victim:
        assert victim.is_dumping_core()
        assert victim.state() == "S"
        assert stage.mrelease_in_child(victim.pid) == errno.EINVAL
        assert not victim.is_gone(HELD_S)
        assert _is_held(victim)

        victim.kill()

        assert victim.is_gone(GONE_S)


@pytest.mark.needs("cc", "root", "core_pattern")
def test_a_core_dump_ends_when_its_reader_reads() -> None:
    """Released and not killed, the victim finishes its dump and dies of its own signal."""
    with stage.core_dump_to_pipe() as victim:
        victim.release()

        assert victim.is_gone(GONE_S)


@pytest.mark.needs("cc", "root", "core_pattern", "loop_ext4", "unshare")
def test_sigkill_does_not_abort_a_core_dump_in_uninterruptible_sleep() -> None:
    """The dumper is in D, so the dump goes on for ever: SIGKILL changes nothing and mrelease says EINVAL."""
    with stage.core_dump_to_frozen_filesystem() as victim:
        assert victim.is_dumping_core()
        assert victim.state() == "D"

        victim.kill()

        assert not victim.is_gone(HELD_S)
        assert victim.is_dumping_core()
        assert _is_held(victim)
        assert stage.mrelease_in_child(victim.pid) == errno.EINVAL
        assert _is_held(victim)

        victim.release()

        assert victim.is_gone(GONE_S)


@pytest.mark.needs("cc", "root", "core_pattern")
def test_the_core_pattern_is_the_machines_own_again_while_the_dump_stands() -> None:
    """It is changed for the moment in which a dump begins, not for as long as it lasts."""
    before = CORE_PATTERN.read_text(encoding="utf-8")

    with stage.core_dump_to_pipe():
        assert CORE_PATTERN.read_text(encoding="utf-8") == before


# ---- mmap_lock, and memory without an owner ----------------------------------------------------------------------


def _is_in_d(pid: int) -> bool:
    return processes.states(pid) == {pid: "D"}


def _assert_mrelease_blocks(victim: StagedVictim) -> None:
    # The leader wakes for the signal and goes on to sleep in D as well: its exit wants mmap_lock too.
    victim.wait_for_state("D")

    assert sorted(victim.states().values()) == ["D", "D", "D"]
    assert stage.mrelease_in_child(victim.pid, timeout_s=HELD_S) is None
    assert _is_held(victim)
    assert not victim.is_gone()


@pytest.mark.needs("cc", "root", "loop_ext4", "unshare")
def test_mrelease_blocks_on_a_held_mmap_lock_until_it_is_let_go() -> None:
    """No answer while mmap_lock is held for write, and 0 once it is free: the call that had been waiting gets it."""
    with stage.mmap_lock_held() as (victim,):
        victim.kill()
        with killed_at_the_end("mrelease", victim.pid) as caller:
            caller.become_ready()

            assert stage.wait_until(functools.partial(_is_in_d, caller.pid), GONE_S)
            assert not processes.wait_for_pidfd(caller.pidfd, HELD_S)
            assert _is_held(victim)

            victim.release()

            assert caller.expect("answer") == {"errno": "0"}
        assert victim.is_gone(GONE_S)


@pytest.mark.needs("cc", "root", "loop_ext4", "unshare")
def test_a_caller_that_is_blocked_in_mrelease_dies_of_sigkill_at_once() -> None:
    """Only the caller's death ends the wait, and it does so promptly, for one caller after the other."""
    with stage.mmap_lock_held() as (victim,):
        victim.kill()
        for _ in range(3):
            caller = Helper("mrelease", victim.pid)
            caller.become_ready()
            is_blocked = stage.wait_until(functools.partial(_is_in_d, caller.pid), GONE_S)
            caller.kill()

            assert is_blocked
            assert caller.wait(timeout_s=1.0) == -signal.SIGKILL
        assert _is_held(victim)


@pytest.mark.needs("cc", "root", "loop_ext4", "unshare")
def test_mmap_lock_can_be_held_many_times_in_a_row() -> None:
    """Twenty such victims, one after the other, each on a frozen file system of its own."""
    for _ in range(20):
        with stage.mmap_lock_held(size_bytes=8 * stage.MIB) as (victim,):
            victim.kill()

            assert stage.mrelease_in_child(victim.pid, timeout_s=0.05) is None
            assert sorted(victim.states().values()) == ["D", "D", "D"]


@pytest.mark.needs("cc", "root", "loop_ext4", "unshare")
def test_many_hold_their_mmap_lock_on_one_frozen_filesystem() -> None:
    """Twenty such victims at once, another of a different kind beside them, and one release for all."""
    with ExitStack() as stack:
        filesystem = stack.enter_context(stage.frozen_filesystem())
        held = stack.enter_context(stage.mmap_lock_held(20, size_bytes=8 * stage.MIB, filesystem=filesystem))
        writer = stack.enter_context(stage.frozen_write(size_bytes=8 * stage.MIB, filesystem=filesystem))
        for victim in (*held, writer):
            victim.kill()

        assert not any(victim.is_gone() for victim in held)
        _assert_mrelease_blocks(held[0])
        _assert_mrelease_blocks(held[-1])
        assert stage.mrelease_in_child(writer.pid) == 0

        held[7].release()

        assert all(victim.is_gone(GONE_S) for victim in (*held, writer))


@pytest.mark.needs("cc", "root", "userfaultfd", "cgroup_v1_memory")
def test_memory_that_is_pinned_outlives_its_owner() -> None:
    """Dead, waited for, in no process: mrelease says ESRCH and the cgroup stays charged until the reader ends."""
    with stage.pinned_by_remote_read() as victim:
        assert victim.memcg_usage_bytes() >= victim.size_bytes

        victim.kill()

        assert victim.is_gone(GONE_S)
        assert stage.mrelease_in_child(victim.pid) == errno.ESRCH

        victim.collect()

        assert not Path(f"/proc/{victim.pid}").exists()
        assert not stage.wait_until(lambda: victim.memcg_usage_bytes() < 0.9 * victim.size_bytes, HELD_S)

        victim.release()

        assert stage.wait_until(lambda: victim.memcg_usage_bytes() < 0.1 * victim.size_bytes, GONE_S)


# ---- nothing stays behind ---------------------------------------------------------------------------------------

_NEEDS_OF_THE_REST: dict[str, tuple[str, ...]] = {
    "plain": (),
    "many_threads": (),
    "zombie_leader": (),
    "vfork_parent": (),
    "frozen_cgroup_v2": ("cgroup_v2",),
    "mmap_lock_held": ("root", "loop_ext4", "unshare"),
    "core_dump_to_pipe": ("root", "core_pattern"),
    "core_dump_to_frozen_filesystem": ("root", "core_pattern", "loop_ext4", "unshare"),
    "pinned_by_remote_read": ("root", "userfaultfd", "cgroup_v1_memory"),
    "init_shares_memory": ("root", "unshare"),
}
EVERY_STAGE = [
    pytest.param(name, id=name, marks=pytest.mark.needs("cc", *needs))
    for name, needs in {**{case.name: case.needs for case in _REAPABLE}, **_NEEDS_OF_THE_REST}.items()
]

_STAGE_AND_WAIT = """
import signal, sys
from tests.victims import stage
with getattr(stage, sys.argv[1])(size_bytes=8 * stage.MIB):
    sys.stdout.write("staged\\n")
    sys.stdout.flush()
    signal.pause()
"""


def _sub_run(**variables: str) -> dict[str, str]:
    """The environment of a run within this run: it finds our code and our program."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        PROGRAM_VARIABLE: str(compiled_program()),
        **variables,
    }


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
@pytest.mark.parametrize("name", EVERY_STAGE)
def test_a_run_that_is_ended_in_the_middle_leaves_nothing(name: str, how: signal.Signals, tmp_path: Path) -> None:
    """Interrupted or killed while the victim stands: no process, cgroup, loop device, no changed core pattern."""
    watch = Watch()
    run = subprocess.Popen(
        [sys.executable, "-c", _STAGE_AND_WAIT, name],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_sub_run(TMPDIR=str(tmp_path)),
    )
    with run:
        assert run.stdout is not None
        assert run.stderr is not None
        assert run.stdout.readline() == b"staged\n", run.stderr.read()
        run.send_signal(how)

    def leftovers() -> list[object]:
        return [*watch.find(), *groups_named(f"{NAME_PREFIX}{run.pid}-"), *loop_devices_of(str(tmp_path))]

    stage.wait_until(lambda: not leftovers(), GONE_S)
    assert leftovers() == []


def test_a_wait_that_is_not_met_is_told_in_time() -> None:
    """wait_until gives up when its time is over, not before and not much later."""
    start_s = time.monotonic()

    assert not stage.wait_until(lambda: False, 0.05)
    assert 0.05 <= time.monotonic() - start_s < 1.0
