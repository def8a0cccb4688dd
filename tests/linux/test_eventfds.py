"""Notifications of real groups, v1 and v2; what a missing group and a failing call answer."""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import eventfds
from oomreaper.linux.memcg import GroupGoneError
from tests.linux.sources import LIMIT_BYTES, count_descriptors, failing, filling_child, squeezed_child, write_tree
from tests.victims.processes import wait_until
from tests.victims.program import END_TIMEOUT_S
from tests.victims.surroundings import own_cgroup

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from oomreaper.linux.eventfds import GroupEvents

EVENTS = "low 0\nhigh 1\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n"


def _is_woken(events: GroupEvents, timeout_s: float) -> bool:
    waiting = select.epoll()
    try:
        waiting.register(events.fileno(), events.poll_events)
        return bool(waiting.poll(timeout_s))
    finally:
        waiting.close()


def _open_oom(directory: str) -> GroupEvents:
    return eventfds.open_oom_event(directory)


def _open_pressure(directory: str) -> GroupEvents:
    return eventfds.open_pressure_event(directory, "medium")


def _open_v2(directory: str) -> GroupEvents:
    return eventfds.open_events(directory)


def test_growth_of_all_counts_together_is_told(tmp_path: Path) -> None:
    """memory.events: by how much since the last look; nothing new is 0, and so is a count that went back."""
    write_tree(tmp_path, {"memory.events": EVENTS})
    events = eventfds.open_events(str(tmp_path))
    first = events.drain()
    write_tree(tmp_path, {"memory.events": EVENTS.replace("oom 3", "oom 4").replace("oom_kill 2", "oom_kill 4")})
    second, third = events.drain(), events.drain()
    write_tree(tmp_path, {"memory.events": EVENTS})
    fourth = events.drain()
    events.close()

    assert (first, second, third, fourth) == (0, 3, 0, 0)


def test_a_reader_that_is_closed_says_so(tmp_path: Path) -> None:
    """Closing twice is nothing; drain afterwards is EBADF, never another file's content."""
    write_tree(tmp_path, {"memory.events": EVENTS})
    events = eventfds.open_events(str(tmp_path))
    events.close()
    events.close()

    with pytest.raises(OSError, match="Bad file descriptor"):
        events.drain()


@pytest.mark.parametrize("opener", [_open_oom, _open_pressure, _open_v2])
def test_a_group_that_is_not_there_is_gone_and_a_missing_file_is_not(
    tmp_path: Path, opener: Callable[[str], GroupEvents]
) -> None:
    """No directory: gone. A directory without the files: this kernel has no such thing, ENOENT."""
    before = count_descriptors()
    with pytest.raises(GroupGoneError):
        opener(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError):
        opener(str(tmp_path))

    assert count_descriptors() == before


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ENODEV, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("call", ["open", "pread", "write", "eventfd"])
@pytest.mark.parametrize("opener", [_open_oom, _open_pressure, _open_v2])
def test_each_call_failing_once_leaks_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opener: Callable[[str], GroupEvents], call: str, number: int
) -> None:
    """ENODEV is a group that has gone; anything else, in a group that is there, is an OSError."""
    files = ("memory.oom_control", "memory.pressure_level", "cgroup.event_control")
    write_tree(tmp_path, {"memory.events": EVENTS, **dict.fromkeys(files, "")})
    before = count_descriptors()
    turn, was_reached = 0, True
    while was_reached:
        answer: int | None = None
        with failing(monkeypatch, call, number, turn) as fault:
            try:
                opener(str(tmp_path)).close()
            except GroupGoneError:
                answer = errno.ENODEV
            except OSError as error:
                answer = error.errno
        was_reached = fault.was_reached
        turn += 1

        assert answer == (number if was_reached else None)
        assert count_descriptors() == before


@pytest.mark.parametrize("opener", [_open_oom, _open_pressure])
def test_an_eventfd_is_not_left_to_children(tmp_path: Path, opener: Callable[[str], GroupEvents]) -> None:
    """Not inherited by a program that we start, and nobody waits in drain when nothing has happened."""
    files = ("memory.oom_control", "memory.pressure_level", "cgroup.event_control")
    write_tree(tmp_path, dict.fromkeys(files, ""))
    events = opener(str(tmp_path))
    try:
        assert not os.get_inheritable(events.fileno())
        assert events.drain() == 0
    finally:
        events.close()


@pytest.mark.needs("cgroup_v1_memory", "root")
def test_the_oom_of_a_real_group_is_told() -> None:
    """The kernel's killer off, a child that hits the limit: one event, and none once it is drained."""
    before = count_descriptors()
    with own_cgroup("memory", ("memory.oom_control", "0")) as directory:
        (directory / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES), encoding="ascii")
        (directory / "memory.oom_control").write_text("1", encoding="ascii")
        events = eventfds.open_oom_event(str(directory))
        quiet = (_is_woken(events, 0), events.drain())
        with filling_child(directory):
            is_woken = _is_woken(events, END_TIMEOUT_S)
            count = events.drain()
            again = (_is_woken(events, 0), events.drain())
            # Who comes late is told at once.
            late = eventfds.open_oom_event(str(directory))
            is_late_woken = _is_woken(late, END_TIMEOUT_S)
            late.close()
        events.close()

    assert quiet == again == (False, 0)
    assert (is_woken, count, is_late_woken) == (True, 1, True)
    assert count_descriptors() == before


@pytest.mark.needs("cgroup_v1_memory", "root")
def test_reclaim_in_a_real_group_is_told(tmp_path: Path) -> None:
    """A child that reads more than its limit holds: "low" comes at least."""
    with own_cgroup("memory") as directory:
        events = eventfds.open_pressure_event(str(directory), "low")
        quiet = events.drain()
        with squeezed_child(directory, file=tmp_path / "read"):
            is_woken = _is_woken(events, END_TIMEOUT_S)
            count = events.drain()
        events.close()

    assert (quiet, is_woken) == (0, True)
    assert count >= 1


@pytest.mark.needs("cgroup_v1_memory", "root")
@pytest.mark.parametrize("opener", [_open_oom, _open_pressure])
def test_the_end_of_a_group_is_no_shortage(opener: Callable[[str], GroupEvents]) -> None:
    """v1 signals the removal through the same eventfd: it is told as what it is."""
    with own_cgroup("memory") as directory:
        events = opener(str(directory))
    is_woken = _is_woken(events, END_TIMEOUT_S)
    try:
        assert is_woken
        with pytest.raises(GroupGoneError):
            events.drain()
    finally:
        events.close()


@pytest.mark.needs("cgroup_v2", "root")
def test_a_change_of_a_file_of_v2_is_told(tmp_path: Path) -> None:
    """POLLPRI when it changes, not before, and not again once it was read (cgroup.events is announced as memory's is).

    This machine's v2 tree may have no memory controller; a child that enters makes the group populated.
    """
    with own_cgroup(None) as group, own_cgroup("memory") as memory:
        events = eventfds.open_events(str(group), "cgroup.events")
        before = (_is_woken(events, 0), events.drain())
        with squeezed_child(memory, group, file=tmp_path / "read"):
            is_woken = _is_woken(events, END_TIMEOUT_S)
            count = events.drain()
            after = (_is_woken(events, 0), events.drain())
    removed: list[bool] = []
    try:
        events.drain()
    except GroupGoneError:
        removed.append(True)
    events.close()

    assert before == after == (False, 0)
    assert (is_woken, count, removed) == (True, 1, [True])


@pytest.mark.needs("cgroup_v2_memory", "root")
def test_memory_events_of_a_real_group_are_told(tmp_path: Path) -> None:
    """A child that reads more than memory.max holds makes the count of max grow."""
    with own_cgroup(None) as group:
        events = eventfds.open_events(str(group))
        with squeezed_child(group, file=tmp_path / "read"):
            is_woken = wait_until(lambda: events.drain() > 0, END_TIMEOUT_S)
        events.close()

    assert is_woken
