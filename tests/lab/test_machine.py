"""Guests that are ready: places, swap, and what is kept; no guest is started here."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

import pytest

from lab import machine
from lab.packages import LabError
from lab.seam import MachineSpec

if TYPE_CHECKING:
    from pathlib import Path

_SPEC = MachineSpec("small", "newest", 512, 2, 0, 0)


def test_two_guests_at_once_and_no_third(tmp_path: Path) -> None:
    """A third waits until one of the two has ended."""
    has_entered, may_leave = threading.Event(), threading.Event()

    def third() -> None:
        with machine._one_of_the_places(tmp_path):
            has_entered.set()
            may_leave.wait(10)

    waiting = threading.Thread(target=third)
    with machine._one_of_the_places(tmp_path):
        with machine._one_of_the_places(tmp_path):
            waiting.start()
            entered_early = has_entered.wait(1.2)
        entered_later = has_entered.wait(10)
        may_leave.set()
    waiting.join(10)

    assert not entered_early
    assert entered_later


def test_a_place_is_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    """No place is lost to a lab that had no chance to give it back."""
    for _ in range(3):
        pid = os.fork()
        if pid == 0:
            with machine._one_of_the_places(tmp_path):
                os.kill(os.getpid(), 9)
        os.waitpid(pid, 0)

    with machine._one_of_the_places(tmp_path), machine._one_of_the_places(tmp_path):
        pass


def test_zram_is_used_before_the_disk() -> None:
    """With both, zram has the higher priority; without either, nothing is done."""
    both = machine._scripts_of_swap(_SPEC._replace(zram_mib=128, swap_mib=256), "/dev/vdb")

    assert machine._scripts_of_swap(_SPEC, "/dev/vda") == []
    assert len(both) == 2
    assert "echo 128M > /sys/block/zram0/disksize" in both[0]
    assert "/usr/sbin/swapon -p 100 /dev/zram0" in both[0]
    assert "/usr/sbin/swapon -p 10 /dev/vdb" in both[1]


def test_swap_that_cannot_be_set_up_is_an_error() -> None:
    """No scenario runs on a machine that is another than it says."""
    machine._expect_success({"status": 0, "output": ""}, "true")

    with pytest.raises(LabError, match="mkswap: no"):
        machine._expect_success({"status": 1, "output": "mkswap: no"}, "mkswap /dev/vda")


def test_a_spec_in_words() -> None:
    """What is booted is said with everything that makes it what it is."""
    words = machine._in_words(_SPEC._replace(zram_mib=128))

    assert words == "small image, kernel newest, 512 MiB, 128 MiB of zram"
    assert machine._in_words(_SPEC).endswith("no swap")
