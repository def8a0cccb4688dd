"""``oomreaper reap`` on this kernel, on victims that really cannot die, and on those that can."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, get_args

import pytest

from oomreaper.linux import proc
from oomreaper.linux.interpreter import python_command
from oomreaper.model.outcome import OutcomeKind
from oomreaper.model.process import Scouting
from oomreaper.reaper.jobs import Job, JobKind, Struck
from oomreaper.reaper.worker.pool import Answered, Pool
from oomreaper.watch.errand import Errand, Target, _Opened, make_settings
from tests.interpreters import NOBODY
from tests.real.command import COMMAND, reap
from tests.victims import stage
from tests.victims.processes import start_time_ticks, states, status_of_mm, wait_until
from tests.victims.staged import victim as victim_of

MIB = stage.MIB
SIZE_BYTES = 64 * MIB
Staging = Callable[..., AbstractContextManager[stage.StagedVictim]]
CONTRACT_KEYS = {
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
}


def resident_anon_bytes(pid: int) -> int:
    """RssAnon alone, without what is in swap."""
    return int(status_of_mm(pid)["RssAnon"].split()[0]) * 1024


def _needs(staging: Staging, *names: str) -> object:
    return pytest.param(staging, marks=pytest.mark.needs("cc", *names), id=staging.__name__)


# -- victims that cannot die -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "staging",
    [
        _needs(stage.inode_lock, "root", "userfaultfd"),
        _needs(stage.fuse_read, "root", "fuse", "unshare"),
        _needs(stage.frozen_write, "root", "loop_ext4", "unshare"),
        _needs(stage.parked_in_exit, "ptrace"),
        _needs(stage.zombie_leader_stuck, "ptrace"),
        _needs(stage.starved_by_busy_loops),
        _needs(stage.starved_by_fifo, "sched_fifo"),
    ],
)
def test_the_memory_of_a_victim_that_cannot_die_comes_back(staging: Staging) -> None:
    """Reaped while it is still stuck: the memory is back, the process is not gone, and the record says both.

    One that is merely starved gets a moment of RT throttling or of the fair server, and may leave at any time: before
    the record is made, or between that and our look. What it cannot is be gone, by the record, and still be there.
    """
    with staging(size_bytes=SIZE_BYTES) as victim:
        before_bytes = victim.anon_bytes()
        run = reap(victim.pid)
        left_bytes = victim.anon_bytes()
        is_gone = victim.is_gone()

        assert run.record["outcome"] == "reaped"
        assert run.status == 0
        assert run.record["freed_bytes"] >= 0.9 * SIZE_BYTES
        assert left_bytes <= 0.1 * before_bytes
        if staging in (stage.starved_by_busy_loops, stage.starved_by_fifo):
            assert run.record["still_dying"] or is_gone
        else:
            assert (run.record["still_dying"], is_gone) == (True, False)


@pytest.mark.parametrize(
    "staging",
    [
        _needs(stage.frozen_cgroup_v1, "root", "cgroup_v1_freezer"),
        _needs(stage.frozen_cgroup_v2, "root", "cgroup_v2"),
    ],
)
def test_a_frozen_victim_is_reaped_and_helped_out(staging: Staging) -> None:
    """The v1 freezer holds a killed process: it is reaped there, then moved out and gone; v2 lets it go by itself."""
    with staging(size_bytes=SIZE_BYTES) as victim:
        run = reap(victim.pid)

        assert run.record["outcome"] in ("reaped", "exited")
        assert run.record["freed_bytes"] >= 0.9 * SIZE_BYTES
        assert victim.is_gone(timeout_s=1.0)


# -- victims that can die ----------------------------------------------------------------------------------


@pytest.mark.needs("cc")
@pytest.mark.parametrize(
    "kind", [kind for kind in get_args(stage.MemoryKind) if kind not in ("shared", "memfd", "swapped")]
)
def test_every_kind_of_private_memory_comes_back(kind: stage.MemoryKind) -> None:
    """4 KiB pages, locked, huge, copied from a file: all reaped or gone with the exit, and verified."""
    with stage.plain(kind, size_bytes=SIZE_BYTES) as victim:
        run = reap(victim.pid)

        assert run.status == 0
        assert run.record["outcome"] in ("reaped", "exited")
        assert run.record["freed_bytes"] >= 0.9 * SIZE_BYTES
        assert victim.is_gone(timeout_s=1.0)


@pytest.mark.needs("cc", "swap")
def test_swapped_memory_comes_back() -> None:
    """What was swapped out counts as the victim's and comes back with the rest."""
    with stage.small_swap(), stage.plain("swapped", size_bytes=SIZE_BYTES) as victim:
        in_swap_bytes = victim.anon_bytes() - resident_anon_bytes(victim.pid)
        run = reap(victim.pid)

        assert in_swap_bytes >= 0.5 * SIZE_BYTES
        assert run.record["anon_before_bytes"] >= 0.9 * SIZE_BYTES
        assert run.record["freed_bytes"] >= 0.9 * SIZE_BYTES


@pytest.mark.needs("cc", "swap", "ptrace")
def test_swapped_memory_of_a_victim_that_cannot_die_comes_back() -> None:
    """The reap frees the swap entries of a stuck victim, while it is still stuck."""
    with stage.small_swap(), stage.parked_in_exit("swapped", size_bytes=SIZE_BYTES) as victim:
        in_swap_bytes = victim.anon_bytes() - resident_anon_bytes(victim.pid)
        run = reap(victim.pid)

        assert in_swap_bytes >= 0.5 * SIZE_BYTES
        assert run.record["outcome"] == "reaped"
        assert run.record["still_dying"] is True
        assert victim.anon_bytes() <= 0.1 * SIZE_BYTES


@pytest.mark.needs("cc")
@pytest.mark.parametrize("kind", ["shared", "memfd"])
def test_shared_memory_is_honestly_reported_as_not_freed(kind: stage.MemoryKind) -> None:
    """Shared memory is nobody's own: the record claims nothing for it and says why."""
    with stage.plain(kind, size_bytes=SIZE_BYTES) as victim:
        run = reap(victim.pid)

        assert run.record["freed_bytes"] < 8 * MIB
        if run.record["outcome"] == "reaped":
            assert "64 MiB of shared memory" in run.record["reason"]


@pytest.mark.needs("cc")
def test_two_thousand_threads() -> None:
    """A victim with 2,000 threads is counted once, killed and reaped."""
    with stage.many_threads(2000, size_bytes=SIZE_BYTES) as victim:
        run = reap(victim.pid)

        assert run.status == 0
        assert SIZE_BYTES <= run.record["anon_before_bytes"] <= 2 * SIZE_BYTES
        assert victim.is_gone(timeout_s=2.0)


@pytest.mark.needs("cc")
def test_a_zombie_leader_does_not_hide_its_memory() -> None:
    """A leader that has ended shows zeros; the memory of its living thread is seen, and comes back."""
    with stage.zombie_leader(size_bytes=SIZE_BYTES) as victim:
        assert victim.states()[victim.pid] == "Z"
        run = reap(victim.pid)

        assert run.status == 0
        assert run.record["freed_bytes"] >= 0.9 * SIZE_BYTES
        assert victim.is_gone(timeout_s=1.0)


@pytest.mark.needs("cc")
@pytest.mark.parametrize("count", [1, 1000])
def test_those_who_share_the_memory_die_with_it(count: int) -> None:
    """CLONE_VM sharers keep the memory: they are found, killed first, named, and the memory comes back."""
    with stage.plain(sharers=count, size_bytes=SIZE_BYTES) as victim:
        run = reap(victim.pid)

        assert run.status == 0
        assert run.record["freed_bytes"] >= 0.9 * SIZE_BYTES
        assert set(run.record["sharers"]) == set(victim.pids) - {victim.pid}
        assert victim.is_gone(timeout_s=2.0)


@pytest.mark.needs("cc")
def test_a_vfork_child_is_a_sharer() -> None:
    """A parent in vfork and its child are one address space; both go."""
    with stage.vfork_parent(size_bytes=SIZE_BYTES) as victim:
        run = reap(victim.pid)

        assert run.status == 0
        assert len(run.record["sharers"]) == 1
        assert victim.is_gone(timeout_s=1.0)


@pytest.mark.needs("cc")
def test_a_sharer_whose_leader_has_ended_dies_with_it() -> None:
    """It shows no memory of its own in /proc/PID and keeps the victim's: found by a living thread, killed and named."""
    with victim_of("zombie-led-sharer", size_bytes=SIZE_BYTES) as victim:
        (sharer,) = set(victim.pids) - {victim.pid}
        assert wait_until(lambda: states(sharer).get(sharer) == "Z" and len(states(sharer)) > 1, timeout_s=5)
        run = reap(victim.pid)

        assert run.status == 0, run.record
        assert run.record["sharers"] == [sharer]
        assert run.record["freed_bytes"] >= 0.9 * SIZE_BYTES
        assert victim.is_gone(timeout_s=1.0)


# -- core dumps --------------------------------------------------------------------------------------------


@pytest.mark.needs("cc", "root", "core_pattern")
def test_a_core_dump_is_aborted_by_default() -> None:
    """coredump=abort: SIGKILL ends the dump and the memory comes back."""
    with stage.core_dump_to_pipe(size_bytes=SIZE_BYTES) as victim:
        assert victim.is_dumping_core()
        run = reap(victim.pid)

        assert run.status == 0
        assert run.record["outcome"] in ("reaped", "exited")
        assert victim.is_gone(timeout_s=1.0)


@pytest.mark.needs("cc", "root", "core_pattern")
def test_a_core_dump_is_spared_when_asked_and_its_end_awaited() -> None:
    """coredump=wait: nothing is signalled while it dumps; when the dump is done, its memory is back: exited."""
    with stage.core_dump_to_pipe(size_bytes=SIZE_BYTES) as victim:
        threading.Timer(1.0, victim.release).start()
        run = reap("--coredump", "wait", victim.pid)

        assert run.record["outcome"] == "exited"
        assert run.record["elapsed_ms"] > 500


@pytest.mark.needs("cc", "root", "core_pattern")
def test_a_spared_core_dump_that_does_not_end_is_given_up_unsignalled() -> None:
    """coredump=wait and the time is over: unreapable, and the dump still goes on, since nothing was signalled."""
    with stage.core_dump_to_pipe(size_bytes=SIZE_BYTES) as victim:
        run = reap("--coredump", "wait", "--timeout", "0.5", victim.pid)

        assert run.record["outcome"] == "unreapable"
        assert "dumping core" in run.record["reason"]
        assert run.status == 1
        assert victim.is_dumping_core()
        assert victim.anon_bytes() >= 0.9 * SIZE_BYTES


@pytest.mark.needs("cc", "root", "core_pattern", "loop_ext4", "unshare")
def test_a_core_dump_that_cannot_be_aborted_is_given_up_in_time() -> None:
    """A dumper in uninterruptible sleep: EINVAL ten times, given up within 1.3 s, with where it stands."""
    with stage.core_dump_to_frozen_filesystem(size_bytes=SIZE_BYTES) as victim:
        run = reap(victim.pid)

        assert run.record["outcome"] == "unreapable"
        assert run.record["attempts"] == 10
        assert run.record["elapsed_ms"] <= 1300
        assert any(thread["state"] == "D" for thread in run.record["threads"])


# -- mmap_lock ---------------------------------------------------------------------------------------------

# A process that only runs an errand, as the command is: forking a replacement for a lost worker costs what the parent
# is large, and the tests' own process is. It prints the outcomes as they settle, then the crew's counts.
_ERRAND = """
import json, sys
from oomreaper.watch.errand import Errand, Target, make_settings
targets = [Target(int(word)) for word in sys.argv[1:]]
def tell(event):
    if event.outcome is not None:
        print(json.dumps(event.outcome.as_json()))
errand = Errand(targets, make_settings(timeout_seconds=30, coredump="abort", victims=len(targets)), on_event=tell)
errand.run()
print(json.dumps(errand.statistics()._asdict()))
"""


def _settle(*pids: int) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The outcomes in the order in which they were settled, and the crew's counts."""
    done = subprocess.run(
        python_command(_ERRAND, *map(str, pids)), stdout=subprocess.PIPE, check=True, timeout=50, start_new_session=True
    )
    *outcomes, statistics = [json.loads(line) for line in done.stdout.splitlines()]
    return outcomes, statistics


@pytest.mark.needs("cc", "root", "loop_ext4", "unshare")
def test_a_held_mmap_lock_is_given_up_and_the_next_victim_served_meanwhile() -> None:
    """The one case that no reaper can win: given up within 1.3 s, and another victim's memory is back long before."""
    with stage.mmap_lock_held(1, size_bytes=SIZE_BYTES) as (stuck,), stage.plain(size_bytes=SIZE_BYTES) as healthy:
        (first, second), statistics = _settle(stuck.pid, healthy.pid)

        assert first["pid"] == healthy.pid
        assert first["outcome"] in ("reaped", "exited")
        assert first["elapsed_ms"] < second["elapsed_ms"]
        assert second["outcome"] == "unreapable"
        assert second["attempts"] == 10
        assert second["elapsed_ms"] <= 1300
        assert "mmap_lock" in second["reason"]
        assert any(thread["wchan"] == "__vma_start_write" for thread in second["threads"])
        assert statistics["workers_lost"] == 10


@pytest.mark.needs("cc", "root", "loop_ext4", "unshare")
def test_twenty_held_mmap_locks_cost_no_capacity() -> None:
    """Twenty such victims one after the other, then a healthy one: it is served as if nothing had been."""
    with stage.mmap_lock_held(20, size_bytes=4 * MIB) as stuck, stage.plain(size_bytes=SIZE_BYTES) as healthy:
        outcomes, statistics = _settle(*(victim.pid for victim in stuck), healthy.pid)
        by_pid = {outcome.pop("pid"): outcome for outcome in outcomes}
        served = by_pid.pop(healthy.pid)

        assert set(by_pid) == {victim.pid for victim in stuck}
        assert [outcome for outcome in by_pid.values() if outcome["outcome"] != "unreapable"] == []
        assert [outcome["elapsed_ms"] for outcome in by_pid.values() if outcome["elapsed_ms"] > 1300] == []
        assert served["outcome"] in ("reaped", "exited")
        assert statistics["workers_lost"] == 200
        assert statistics["workers_started"] == 203
        assert statistics["workers_idle"] == 3


# -- pinned memory -----------------------------------------------------------------------------------------


@pytest.mark.needs("cc", "root", "userfaultfd", "cgroup_v1_memory")
def test_a_pinned_address_space_is_freed_when_reaped_in_time() -> None:
    """A blocked process_vm_readv pins it: a reap before its exit frees the memory all the same, twice of three times.

    The race with the victim's own exit is won at least 95 times of 100 where nobody takes our CPU away. A host may, and
    a race that was lost so is recorded as what it is: lost. One of three is granted to the host; two would be ours.
    """
    records: list[dict[str, Any]] = []
    fallen_bytes: list[int] = []
    for _ in range(3):
        with stage.pinned_by_remote_read(size_bytes=SIZE_BYTES) as victim:
            charged_before = victim.memcg_usage_bytes()
            run = reap(victim.pid)
            fallen_bytes.append(charged_before - victim.memcg_usage_bytes())
        records.append(run.record)
        assert run.status == (0 if run.record["outcome"] == "reaped" else 1)
    outcomes = [record["outcome"] for record in records]

    assert set(outcomes) <= {"reaped", "lost"}
    assert outcomes.count("reaped") >= 2, records
    assert [fallen >= 0.9 * SIZE_BYTES for fallen in fallen_bytes] == [outcome == "reaped" for outcome in outcomes]


@pytest.mark.needs("cc", "root", "userfaultfd", "cgroup_v1_memory")
def test_a_pinned_address_space_is_lost_when_reaped_too_late() -> None:
    """It ended between the choice and the signal: nothing can be reaped, the memory stays, and who pins it is named."""
    with stage.pinned_by_remote_read(size_bytes=SIZE_BYTES) as victim:

        class TooLate(Errand):
            def _submit(self, opened: _Opened, scouting: Scouting) -> None:
                victim.kill()
                assert wait_until(lambda: victim.state() == "Z", timeout_s=5)
                super()._submit(opened, scouting)

        outcome = TooLate([Target(victim.pid)], make_settings(timeout_seconds=30, coredump="abort")).run()[0]
        usage_bytes = victim.memcg_usage_bytes()

        assert outcome.kind is OutcomeKind.LOST
        assert outcome.freed_bytes == 0
        assert "pinned by" in outcome.reason
        assert usage_bytes >= 0.9 * SIZE_BYTES


@pytest.mark.needs("cc", "root", "userfaultfd", "cgroup_v2_memory")
def test_a_corpse_whose_memory_outlived_it_is_lost() -> None:
    """A process that had ended before it was named: gone would be half the truth while its memory stays pinned.

    A zombie's own group is told by v2 only; v1 shows it in the root group, where its memory is one part of many.
    """
    with stage.pinned_by_remote_read(size_bytes=SIZE_BYTES) as victim:
        victim.kill()
        assert wait_until(lambda: victim.state() == "Z", timeout_s=5)
        run = reap(victim.pid)

        assert run.record["outcome"] == "lost", run.record["reason"]
        assert run.status == 1
        assert "MiB are still charged" in run.record["reason"]


# -- several at once, and the record -----------------------------------------------------------------------


@pytest.mark.needs("cc")
def test_the_record_has_the_contract_s_keys() -> None:
    """One JSON object a line with exactly the keys of the contract (threads only for a victim given up)."""
    with stage.plain(size_bytes=SIZE_BYTES) as victim:
        started = start_time_ticks(victim.pid)
        run = reap(victim.pid)

        assert set(run.record) == CONTRACT_KEYS
        assert run.record["pid"] == victim.pid
        assert run.record["start_time_ticks"] == started
        assert run.errors == ""


@pytest.mark.needs("cc")
def test_two_pids_of_one_address_space_are_reaped_once_and_reported_for_both() -> None:
    """Named by two of its pids: one reaping, two records that say so."""
    with stage.plain(sharers=1, size_bytes=SIZE_BYTES) as victim:
        (sharer,) = set(victim.pids) - {victim.pid}
        run = reap(victim.pid, sharer)

        assert [record["pid"] for record in run.records] == [victim.pid, sharer]
        assert [record["outcome"] for record in run.records] == ["reaped", "reaped"]
        assert sum("reaped once" in record["reason"] for record in run.records) == 1
        assert run.status == 0


@pytest.mark.needs("cc")
def test_each_comrade_gets_the_outcome_of_its_own_address_space() -> None:
    """Two address spaces, two pids of each, named in turns: four records, each about its own memory."""
    with (
        stage.plain(sharers=1, size_bytes=SIZE_BYTES) as first,
        stage.plain(sharers=1, size_bytes=SIZE_BYTES // 2) as second,
    ):
        (of_first,) = set(first.pids) - {first.pid}
        (of_second,) = set(second.pids) - {second.pid}
        run = reap(first.pid, second.pid, of_second, of_first)
        freed = {record["pid"]: record["freed_bytes"] for record in run.records}
        sharers = {record["pid"]: record["sharers"] for record in run.records}

        assert [record["pid"] for record in run.records] == [first.pid, second.pid, of_second, of_first]
        assert run.status == 0
        assert freed[first.pid] == freed[of_first] >= 0.9 * SIZE_BYTES
        assert freed[second.pid] == freed[of_second] < 0.9 * SIZE_BYTES
        assert sharers[of_first] == [first.pid]
        assert sharers[of_second] == [second.pid]
        assert sum("reaped once" in record["reason"] for record in run.records) == 2


@pytest.mark.needs("cc")
def test_the_same_pid_twice_is_reaped_once() -> None:
    """Naming a victim twice does no harm; each mention gets the record."""
    with stage.plain(size_bytes=SIZE_BYTES) as victim:
        run = reap(victim.pid, victim.pid)

        assert run.status == 0
        assert len(run.records) == 2
        assert run.records[0] == run.records[1]


@pytest.mark.needs("cc")
def test_a_dry_run_signals_nobody() -> None:
    """--dry-run says what would be done; the victim lives on with all its memory."""
    with stage.plain(size_bytes=SIZE_BYTES) as victim:
        run = reap("--dry-run", victim.pid)

        assert run.record["outcome"] is None
        assert "would be killed" in run.record["reason"]
        assert run.status == 0
        assert not victim.is_gone(timeout_s=0.2)
        assert victim.anon_bytes() >= SIZE_BYTES


@pytest.mark.needs("cc", "root", "python_for_everybody", "ptrace")
def test_an_ordinary_user_reaps_his_own() -> None:
    """Without root there is no real-time priority and no lock, and a stuck victim is reaped all the same."""
    with stage.parked_in_exit(size_bytes=SIZE_BYTES, user=NOBODY) as victim:
        run = reap(victim.pid, user=NOBODY)

        assert run.record["outcome"] == "reaped"
        assert run.record["still_dying"] is True
        assert run.status == 0


# -- the worker at its last door ---------------------------------------------------------------------------


def _strike_once(job: Job, pidfd: int) -> Struck:
    root = proc.open_root()
    pool = Pool(root, frozenset())
    try:
        worker = pool.start(can_release=True)
        assert worker is not None
        _read(pool, worker)
        assert pool.assign(worker, job, pidfd)
        said = _read(pool, worker)
        assert isinstance(said, Answered)
        assert isinstance(said.report, Struck)
        return said.report
    finally:
        pool.close()
        os.close(root)


def _read(pool: Pool, worker: int) -> object:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        said = pool.read(worker)
        if said is not None:
            return said
        wait_until(lambda: False, timeout_s=0.001)
    raise AssertionError("the worker said nothing")


@pytest.mark.needs("cc")
def test_a_worker_that_has_answered_is_not_taken_for_a_stuck_one() -> None:
    """It sleeps, its job's deadline may have passed, and its answer was not read yet: nobody kills it for that."""
    root = proc.open_root()
    pool = Pool(root, frozenset())
    try:
        worker = pool.start(can_release=True)
        assert worker is not None
        assert wait_until(lambda: _is_readable(pool, worker), 10)
        assert wait_until(lambda: proc.is_asleep(root, worker), 10)
        before = pool.is_waiting(worker)
        _read(pool, worker)

        assert (before, pool.is_waiting(worker)) == (False, True)
    finally:
        pool.close()
        os.close(root)


def _is_readable(pool: Pool, worker: int) -> bool:
    return bool(select.select([pool.filenos()[worker]], [], [], 0)[0])


@pytest.mark.needs("cc")
def test_a_recycled_pid_is_not_signalled() -> None:
    """A worker told to strike a life that is over signals nobody, though somebody holds the pid now."""
    from oomreaper.linux import syscalls

    with stage.plain(size_bytes=SIZE_BYTES) as victim:
        pidfd = syscalls.pidfd_open(victim.pid)
        stale = (start_time_ticks(victim.pid) or 0) - 1
        answer = _strike_once(Job(JobKind.STRIKE, victim.pid, stale), pidfd)

        assert answer.signal_errno is not None
        assert answer.mrelease_errno is None
        assert not victim.is_gone(timeout_s=0.2)


@pytest.mark.needs("cc")
def test_an_interrupted_reap_leaves_no_worker_behind() -> None:
    """SIGINT and SIGTERM in mid-work: the command ends at once, and its workers with it."""
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        with stage.plain(size_bytes=SIZE_BYTES) as victim:
            dumper = subprocess.Popen(
                [*COMMAND, "reap", "--json", str(victim.pid)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            children = f"/proc/{dumper.pid}/task/{dumper.pid}/children"

            def has_children(path: str = children) -> bool:
                with open(path, encoding="ascii") as file:
                    return bool(file.read().split())

            assert wait_until(has_children, timeout_s=10)
            with open(children, encoding="ascii") as file:
                workers = [int(word) for word in file.read().split()]
            dumper.send_signal(number)
            _, errors = dumper.communicate(timeout=10)

            assert dumper.returncode in (status, 0)  # 0: it was quicker than the signal
            assert b"Traceback" not in errors
            for worker in workers:
                assert wait_until(lambda pid=worker: start_time_ticks(pid) is None, timeout_s=2)  # type: ignore[misc]
