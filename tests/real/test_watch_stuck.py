"""Victims that do not die of a signal, under a real watcher: reaped where they stand, or given up in time."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from tests.real.watching import memory_group, watching
from tests.victims import stage

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from tests.victims.stage import StagedVictim

pytestmark = pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease", "cc")

# What it does when it is asked is to take more.
PROVOKED = """
def take_more(*_):
    for _ in range(85):
        held.append(bytearray(b"x" * (1 << 20)))
        time.sleep(0.005)
signal.signal(signal.SIGTERM, take_more)
"""
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)\n"
# No hurry: only the time is to call for more, never the level.
BY_TIME = """
[[rule]]
name = "patient"
when = ["mem_available < 15%"]
then = ["terminate", "kill after 500ms"]
"""
# No time: only the level is to call for more.
BY_LEVEL = """
[[rule]]
name = "hasty"
when = ["mem_available < 15%"]
then = ["terminate", "kill after 60s or mem_available < 5%"]
"""


@pytest.mark.parametrize("config", [BY_TIME, BY_LEVEL], ids=["by time", "by level"])
def test_a_hog_that_ignores_the_question_is_killed(config: str) -> None:
    """SIGTERM is announced and sent, and not obeyed; then SIGKILL, in the same incident, and the record is whole."""
    with memory_group(150) as group:
        bystander = group.start_idle(20)
        with watching(group, config=config) as watcher:
            # It stops at a level that is short, and not critical. By level: it goes on when it has been asked.
            hog = group.start_hog(115, prelude=DEAF if config is BY_TIME else PROVOKED, pause_s=0.005)
            status = hog.wait()
            settled = watcher.await_event("settled")
            told = [record for record in watcher.events if record.get("pid") == hog.pid]

            assert status == -9
            assert [record["event"] for record in told] == ["announce", "killed", "killed", "settled"]
            assert [record["signal"] for record in told[:3]] == ["SIGTERM", "SIGTERM", "SIGKILL"]
            assert len({record["incident"] for record in told}) == 1
            assert [record["monotonic_ns"] for record in told] == sorted(record["monotonic_ns"] for record in told)
            assert settled["outcome"] in {"reaped", "exited"}
            assert settled["anon_before_bytes"] > 60 << 20
            assert bystander.is_alive
            assert watcher.has_lost_nothing()


@pytest.mark.parametrize(
    "staged",
    [
        pytest.param(stage.inode_lock, id="inode lock"),
        pytest.param(stage.fuse_read, id="fuse", marks=pytest.mark.needs("unshare", "fuse")),
    ],
)
def test_who_cannot_die_is_reaped_and_nobody_else_pays(
    staged: Callable[..., AbstractContextManager[StagedVictim]],
) -> None:
    """The biggest stands in the kernel with its memory: that is taken from it where it stands, and never asked again.

    The next one who takes too much is chosen then, though the first, still there, was bigger.
    """
    with memory_group(200) as group, contextlib.ExitStack() as stack:
        with group.entered():
            victim = stack.enter_context(staged(size_bytes=120 * stage.MIB))
        bystanders = [group.start_idle(20), group.start_idle(20)]
        with watching(group) as watcher:
            pusher = group.start_hog(60, pause_s=0.003)
            settled = watcher.await_event("settled")
            used_bytes = group.used_bytes
            pusher.await_word("full")

            assert (victim.pid, "reaped", True) == (settled["pid"], settled["outcome"], settled["still_dying"])
            assert settled["freed_bytes"] >= 110 * stage.MIB
            assert not victim.is_gone()
            assert used_bytes < 120 * stage.MIB
            assert [victim.pid] == [record["pid"] for record in watcher.of_kind("announce")]
            assert all(member.is_alive for member in [*bystanders, pusher])

            hog = group.start_hog(300)
            hog.wait()
            watcher.await_event("settled", where=lambda record: record["pid"] == hog.pid)

            assert not victim.is_gone()
            assert [victim.pid, hog.pid] == [record["pid"] for record in watcher.of_kind("announce")]
            assert all(member.is_alive for member in [*bystanders, pusher])
            assert watcher.has_lost_nothing()


@pytest.mark.needs("cgroup_v1_freezer")
def test_a_frozen_one_is_thawed_or_reaped_and_nobody_else_pays() -> None:
    """In a v1 freezer that is FROZEN no signal arrives: its memory comes back all the same."""
    with memory_group(200) as group, contextlib.ExitStack() as stack:
        with group.entered():
            victim = stack.enter_context(stage.frozen_cgroup_v1(size_bytes=120 * stage.MIB))
        bystander = group.start_idle(30)
        with watching(group) as watcher:
            pusher = group.start_hog(80, pause_s=0.003)
            settled = watcher.await_event("settled")
            pusher.await_word("full")

            assert victim.pid == settled["pid"]
            assert settled["outcome"] in {"reaped", "exited"}
            assert [victim.pid] == [record["pid"] for record in watcher.of_kind("announce")]
            assert bystander.is_alive
            assert pusher.is_alive


@pytest.mark.needs("unshare", "loop_ext4")
def test_who_cannot_be_reaped_is_given_up_in_time_and_the_next_makes_room() -> None:
    """The biggest holds its own mmap_lock in the kernel: it is given up within the budget, the next one is taken."""
    with memory_group(200) as group, contextlib.ExitStack() as stack:
        with group.entered():
            (victim,) = stack.enter_context(stage.mmap_lock_held(size_bytes=90 * stage.MIB))
        bystander = group.start_idle(20)
        with watching(group) as watcher:
            hog = group.start_hog(300)
            status = hog.wait()
            given_up = watcher.await_event("settled", where=lambda record: record["pid"] == victim.pid)
            second = watcher.await_event("settled", where=lambda record: record["pid"] == hog.pid)
            pids = [record["pid"] for record in watcher.of_kind("announce")]

            assert status in {-9, -15}
            assert given_up["outcome"] == "unreapable"
            assert given_up["elapsed_ms"] < 1300 + 700  # the budget, and what a busy machine adds
            assert second["outcome"] in {"reaped", "exited"}
            assert sorted(pids) == sorted([victim.pid, hog.pid])
            assert bystander.is_alive
