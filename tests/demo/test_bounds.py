"""How large the victim may be, and how much room there is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from oomreaper.demo.bounds import choose_size
from oomreaper.errors import KernelError, UsageError
from oomreaper.linux.room import Room, read_room

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30


@pytest.mark.parametrize(
    ("room", "size_bytes"),
    [
        (Room(24 * GIB, None), 512 * MIB),
        (Room(1536 * MIB, None), 512 * MIB),  # leaves 1 GiB
        (Room(1535 * MIB, None), 511 * MIB),
        (Room(1100 * MIB, None), 275 * MIB),  # a quarter is more than what is above 1 GiB
        (Room(700 * MIB, None), 175 * MIB),
        (Room(64 * MIB, None), 16 * MIB),
        (Room(24 * GIB, 1280 * MIB), 320 * MIB),
        (Room(1535 * MIB, 24 * GIB), 511 * MIB),
    ],
)
def test_the_victim_leaves_room_for_others(room: Room, size_bytes: int) -> None:
    """It leaves 1 GiB free, or takes a quarter of what is free; a control group's limit counts like the machine's."""
    size = choose_size(512 * MIB, room)

    assert size.size_bytes == size_bytes
    assert (size.why_less == "") == (size_bytes == 512 * MIB)


def test_a_smaller_victim_says_why() -> None:
    """Who gets less is told what he gets, what he asked for, and how much is free where."""
    on_machine = choose_size(512 * MIB, Room(700 * MIB, None))
    in_group = choose_size(512 * MIB, Room(24 * GIB, 700 * MIB))

    assert on_machine.why_less.startswith("the victim gets 175 MiB, not 512: 700 MiB are free on this machine")
    assert "700 MiB are free below the memory limit of this control group" in in_group.why_less


@pytest.mark.parametrize("room", [Room(63 * MIB, None), Room(24 * GIB, 63 * MIB), Room(0, None)])
def test_too_little_room_is_refused(room: Room) -> None:
    """Where not even 16 MiB are safe nothing is made, and the message says what is free and what would do."""
    with pytest.raises(KernelError, match=r"^only \d+ MiB are free .* free 64 MiB or raise the limit$"):
        choose_size(512 * MIB, room)


def test_a_victim_that_shows_nothing_is_refused() -> None:
    """Less than 16 MiB is the caller's mistake."""
    with pytest.raises(UsageError, match="at least 16 MiB"):
        choose_size(16 * MIB - 1, Room(24 * GIB, None))


class Machine:
    """A /proc and a cgroup mount of plain files."""

    def __init__(self, directory: Path, *, version: int, own_group: str) -> None:
        self.groups = directory / "cgroup"
        self._proc = directory / "proc"
        (self._proc / "self").mkdir(parents=True)
        (self._proc / "meminfo").write_text("MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 4096 kB\n")
        kind, line = ("cgroup2", "0::") if version == 2 else ("cgroup", "4:memory:")
        options = "rw" if version == 2 else "rw,memory"
        mount = f"30 24 0:26 / {self.groups} rw - {kind} none {options}\n"
        (self._proc / "self" / "mountinfo").write_text(mount)
        (self._proc / "self" / "cgroup").write_text(f"{line}{own_group}\n")

    def write(self, group: str, **files: object) -> None:
        """Give a group its files; "_" in a name stands for "."."""
        directory = self.groups / group
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (directory / name.replace("memory_", "memory.", 1)).write_text(f"{content}\n")

    def read(self) -> Room:
        """What ``read_room`` makes of it."""
        root = os.open(self._proc, os.O_RDONLY)
        try:
            return read_room(root)
        finally:
            os.close(root)


@pytest.fixture(params=["/", "/user.slice/demo.scope"])
def own_group(request: pytest.FixtureRequest) -> str:
    """Where we stand: a container sees its own group as the root."""
    group: str = request.param
    return group


def test_a_machine_without_limits_has_its_available_memory(tmp_path: Path, own_group: str) -> None:
    """MemAvailable, and no limit, where no group has one: "max", v1's highest number, or no file at all."""
    second = Machine(tmp_path / "2", version=2, own_group=own_group)
    second.write(own_group[1:], memory_max="max", memory_high="max", memory_current=MIB)
    first = Machine(tmp_path / "1", version=1, own_group=own_group)
    first.write(own_group[1:], memory_limit_in_bytes=9223372036854771712, memory_usage_in_bytes=MIB)

    assert [second.read(), first.read()] == [Room(4 * MIB, None)] * 2


def test_a_limit_of_v2_counts_without_its_cache(tmp_path: Path, own_group: str) -> None:
    """The lower of memory.max and memory.high, less what is used, and what is inactive cache is not used."""
    machine = Machine(tmp_path, version=2, own_group=own_group)
    machine.write(
        own_group[1:],
        memory_max=100 * MIB,
        memory_high=90 * MIB,
        memory_current=50 * MIB,
        memory_stat=f"anon 7\ninactive_file {20 * MIB}",
    )

    assert machine.read() == Room(4 * MIB, 60 * MIB)


def test_a_limit_of_v1_counts_without_its_cache(tmp_path: Path, own_group: str) -> None:
    """memory.limit_in_bytes, with the cache of all groups below."""
    machine = Machine(tmp_path, version=1, own_group=own_group)
    machine.write(
        own_group[1:],
        memory_limit_in_bytes=100 * MIB,
        memory_usage_in_bytes=50 * MIB,
        memory_stat=f"inactive_file 0\ntotal_inactive_file {20 * MIB}",
    )

    assert machine.read() == Room(4 * MIB, 70 * MIB)


def test_the_tightest_group_above_counts(tmp_path: Path) -> None:
    """A limit of a group above ours is ours too; the tightest decides, and one that is overdrawn leaves nothing."""
    machine = Machine(tmp_path, version=2, own_group="/a/b")
    machine.write("a/b", memory_max=100 * MIB, memory_current=10 * MIB)
    machine.write("a", memory_max=40 * MIB, memory_current=30 * MIB)
    tight = machine.read()
    machine.write("a", memory_max=20 * MIB)

    assert tight == Room(4 * MIB, 10 * MIB)
    assert machine.read() == Room(4 * MIB, 0)
