"""Pressure: the totals of recorded files, triggers on this kernel, and every open failing once."""

from __future__ import annotations

import errno
import os
import select
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import psi
from oomreaper.linux.psi import Refusal, Trigger
from tests.linux.sources import count_descriptors, failing, squeezed_child
from tests.victims.surroundings import own_cgroup

if TYPE_CHECKING:
    from pathlib import Path

PRESSURE = b"some avg10=1.00 avg60=0.50 avg300=0.10 total=123456\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7890\n"
MACHINE_PRESSURE = "/proc/pressure/memory"


def test_the_totals_are_read_and_not_the_averages() -> None:
    """Both totals in microseconds."""
    assert psi.parse_pressure(PRESSURE) == (123456, 7890)


@pytest.mark.parametrize("content", [b"", b"some avg10=0.00 total=1\n", b"some total=x\nfull total=1\n", b"max\n"])
def test_what_is_no_pressure_file_is_an_error(content: bytes) -> None:
    """A file that ends early, or tells something else, gives no number."""
    with pytest.raises(ValueError, match=r".*"):
        psi.parse_pressure(content)


def test_totals_are_read_again_through_one_descriptor(tmp_path: Path) -> None:
    """The descriptor is kept: a later reading tells the later totals."""
    path = tmp_path / "memory"
    path.write_bytes(PRESSURE)
    file = os.open(path, os.O_RDONLY)
    try:
        first = psi.read_totals(file)
        path.write_bytes(PRESSURE.replace(b"123456", b"200000"))

        assert (first, psi.read_totals(file)) == ((123456, 7890), (200000, 7890))
    finally:
        os.close(file)


def test_an_alarm_is_true_when_the_total_has_grown_by_half_the_threshold(tmp_path: Path) -> None:
    """A false first event (5 ms of 150) is told; growth is counted from the alarm before."""
    path = tmp_path / "memory"
    path.write_bytes(PRESSURE)
    trigger = psi.open_trigger(str(path), "some", stall_us=150_000, window_us=2_000_000)
    assert isinstance(trigger, Trigger)
    try:
        answers = []
        for total_us in (123456 + 5_000, 123456 + 5_000 + 75_000, 123456 + 5_000 + 75_000 + 74_999):
            path.write_bytes(PRESSURE.replace(b"123456", b"%d" % total_us))
            answers.append(trigger.has_grown())

        assert answers == [False, True, False]
    finally:
        trigger.close()


def test_where_there_is_no_pressure_the_reason_is_kept(tmp_path: Path) -> None:
    """No file, or one that is none of pressure: no trigger, no exception, a reason that names the file."""
    (tmp_path / "memory").write_bytes(b"nothing\n")

    missing = psi.open_trigger(str(tmp_path / "none"), "full", stall_us=1, window_us=2_000_000)
    odd = psi.open_trigger(str(tmp_path / "memory"), "full", stall_us=1, window_us=2_000_000)

    assert missing == Refusal(f"{tmp_path}/none: No such file or directory")
    assert odd == Refusal(f"{tmp_path}/memory: no pressure file of memory")


@pytest.mark.parametrize(
    ("number", "is_refusal"),
    [
        (errno.EOPNOTSUPP, True),
        (errno.EACCES, True),
        (errno.EPERM, True),
        (errno.EROFS, True),
        (errno.ENODEV, False),
        (errno.EMFILE, False),
        (errno.ENOMEM, False),
        (errno.EIO, False),
    ],
)
@pytest.mark.parametrize("call", ["open", "pread", "write"])
def test_each_call_failing_leaks_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, *, is_refusal: bool
) -> None:
    """What is for good is a refusal with its reason, what may pass is an OSError; at each call of each function."""
    path = tmp_path / "memory"
    before = count_descriptors()
    turn = 0
    while True:
        path.write_bytes(PRESSURE)
        trigger = None
        with failing(monkeypatch, call, number, turn) as fault:
            try:
                trigger = psi.open_trigger(str(path), "some", stall_us=150_000, window_us=2_000_000)
            except OSError as error:
                is_documented = error.errno == number and not is_refusal
                assert is_documented
        if not fault.was_reached:
            break
        if is_refusal:
            assert trigger == Refusal(f"{path}: {os.strerror(number)}")

        assert count_descriptors() == before
        turn += 1
    assert isinstance(trigger, Trigger)
    trigger.close()

    assert turn >= 1
    assert count_descriptors() == before


def test_a_trigger_that_could_not_be_rearmed_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """EMFILE in rearm leaves it unarmed and whole; the next rearm arms it."""
    path = tmp_path / "memory"
    path.write_bytes(PRESSURE)
    before = count_descriptors()
    trigger = psi.open_trigger(str(path), "some", stall_us=150_000, window_us=2_000_000)
    assert isinstance(trigger, Trigger)
    path.write_bytes(PRESSURE)
    with failing(monkeypatch, "open", errno.EMFILE, 0), pytest.raises(OSError, match="open"):
        trigger.rearm()
    with pytest.raises(OSError, match="not armed"):
        trigger.fileno()
    trigger.rearm()
    trigger.close()
    trigger.close()

    assert count_descriptors() == before


@pytest.mark.needs("psi")
def test_the_kernel_takes_a_trigger_of_one_second_or_of_two() -> None:
    """Where 1 s is not permitted the window is 2 s, and the stall is scaled with it; arming anew works."""
    trigger = psi.open_trigger(MACHINE_PRESSURE, "some", stall_us=100_000, window_us=1_000_000)
    assert isinstance(trigger, Trigger)
    try:
        taken = (trigger.stall_us, trigger.window_us)
        trigger.rearm()
        waiting = select.epoll()
        waiting.register(trigger.fileno(), select.EPOLLPRI)
        events = waiting.poll(0)
        waiting.close()

        assert taken in {(100_000, 1_000_000), (200_000, 2_000_000)}
        assert not [poll_events for _, poll_events in events if psi.is_group_gone(poll_events)]
    finally:
        trigger.close()


@pytest.mark.needs("psi")
def test_a_window_that_no_kernel_takes_is_refused() -> None:
    """12 s is above the greatest window: EINVAL on both attempts, told as a refusal."""
    answer = psi.open_trigger(MACHINE_PRESSURE, "full", stall_us=1_000_000, window_us=11_000_000)

    assert answer == Refusal("/proc/pressure/memory: Invalid argument")


@pytest.mark.needs("psi", "cgroup_v2", "root")
def test_a_trigger_of_a_group_that_is_removed_reports_it() -> None:
    """POLLERR for a group that has gone, and its totals answer ENODEV."""
    with own_cgroup(None) as directory:
        trigger = psi.open_trigger(f"{directory}/memory.pressure", "some", stall_us=100_000, window_us=2_000_000)
    assert isinstance(trigger, Trigger)
    try:
        waiting = select.epoll()
        waiting.register(trigger.fileno(), select.EPOLLPRI)
        events = waiting.poll(5)
        waiting.close()

        assert [psi.is_group_gone(poll_events) for _, poll_events in events] == [True]
        with pytest.raises(OSError, match="No such device"):
            trigger.has_grown()
    finally:
        trigger.close()


@pytest.mark.needs("psi", "cgroup_v2", "cgroup_v1_memory", "root")
def test_tasks_that_wait_for_memory_raise_a_true_alarm(tmp_path: Path) -> None:
    """A child that re-reads a file larger than its limit: POLLPRI of its group, and the total has grown."""
    with own_cgroup(None) as group, own_cgroup("memory") as memory:
        trigger = psi.open_trigger(f"{group}/memory.pressure", "some", stall_us=20_000, window_us=2_000_000)
        assert isinstance(trigger, Trigger)
        try:
            poll = select.poll()
            poll.register(trigger.fileno(), select.POLLPRI)
            with squeezed_child(memory, group, file=tmp_path / "read"):
                is_true = False
                for _ in range(20):
                    assert poll.poll(20_000)
                    is_true = trigger.has_grown()
                    if is_true:
                        break

            assert is_true
        finally:
            trigger.close()
