"""Where the demo's own control group stands, and what is written to it: on trees of plain files, of both versions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from oomreaper.demo import group as groups
from oomreaper.demo.group import MemoryGroup, choose_place, explain, find_places, make
from oomreaper.demo.victims import RoleFailedError
from oomreaper.linux.cgroup import Membership, Mount

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
LIMIT_BYTES = 400 * MIB


def mount_of(directory: Path, version: int, root: str = "/") -> Mount:
    """A mounted hierarchy of that version, with the memory controller."""
    directory.mkdir(parents=True, exist_ok=True)
    if version == 2:
        (directory / "cgroup.controllers").write_text("cpu memory\n")
    return Mount(version, frozenset({"memory"} if version == 1 else ()), str(directory), root)


def member_of(group: str, version: int) -> list[Membership]:
    """/proc/self/cgroup of a process in there."""
    other = Membership(frozenset({"cpu"}), "/elsewhere")
    return [other, Membership(frozenset({"memory"} if version == 1 else ()), group)]


def hand_on(directory: Path, controllers: str) -> None:
    """What a v2 group hands on to those below it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "cgroup.subtree_control").write_text(f"{controllers}\n")


def prepare(group: MemoryGroup, *names: str) -> None:
    """A group that is there already, with these files."""
    os.mkdir(group.directory)
    for name in names:
        with open(f"{group.directory}/{name}", "w", encoding="ascii"):
            pass


def read(group: MemoryGroup) -> dict[str, str]:
    """What was written to its files."""
    found = {}
    for name in os.listdir(group.directory):
        with open(f"{group.directory}/{name}", encoding="ascii") as file:
            found[name] = file.read()
    return found


def test_v1_stands_below_our_own_group(tmp_path: Path) -> None:
    """What limits us limits the demo too; the name is the one that /proc/PID/cgroup will have."""
    mount = mount_of(tmp_path, 1)
    (tmp_path / "user.slice").mkdir()

    group = choose_place(find_places([mount], member_of("/user.slice", 1)), "demo", LIMIT_BYTES)

    assert (group.directory, group.scope, group.version) == (f"{tmp_path}/user.slice/demo", "/user.slice/demo", 1)
    assert group.usage_file == f"{tmp_path}/user.slice/demo/memory.usage_in_bytes"


def test_a_container_s_mount_shows_its_own_group_as_the_top(tmp_path: Path) -> None:
    """Where the mount begins at our group, and where our group lies outside of it, the group is made at the top."""
    mount = mount_of(tmp_path, 1, root="/docker/abc")

    places = [choose_place(find_places([mount], member_of(own, 1)), "demo", 1) for own in ("/docker/abc", "/other")]

    assert [(place.directory, place.scope) for place in places] == [(f"{tmp_path}/demo", "/docker/abc/demo")] * 2


def test_v2_stands_in_the_nearest_group_that_hands_memory_on(tmp_path: Path) -> None:
    """Our own group has processes, and so hands nothing on: it is the first above it that does."""
    mount = mount_of(tmp_path, 2)
    hand_on(tmp_path, "cpu memory")
    hand_on(tmp_path / "user.slice", "cpu memory pids")
    hand_on(tmp_path / "user.slice/session.scope", "")

    group = choose_place(find_places([mount], member_of("/user.slice/session.scope", 2)), "demo", LIMIT_BYTES)

    assert (group.directory, group.scope, group.version) == (f"{tmp_path}/user.slice/demo", "/user.slice/demo", 2)
    assert group.usage_file == f"{tmp_path}/user.slice/demo/memory.current"


def test_v2_that_hands_memory_on_nowhere_is_refused(tmp_path: Path) -> None:
    """A container whose only group has processes has no place, and it says what is missing."""
    mount = mount_of(tmp_path, 2)
    hand_on(tmp_path, "cpu")

    with pytest.raises(RoleFailedError, match=r"hands the memory controller on \(cgroup.subtree_control\)"):
        find_places([mount], member_of("/", 2))


def test_no_controller_is_refused(tmp_path: Path) -> None:
    """Without a mount, and with a v2 mount that lacks the controller, it says so."""
    bare = mount_of(tmp_path, 2)
    (tmp_path / "cgroup.controllers").write_text("cpu\n")

    for mounts in ([], [bare]):
        with pytest.raises(RoleFailedError, match="memory controller of control groups is not mounted"):
            find_places(mounts, member_of("/", 2))


def test_v1_keeps_the_kernel_s_killer_out(tmp_path: Path) -> None:
    """The limit holds for memory and swap together where swap is counted, and the killer is off."""
    names = ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control")
    counted, uncounted = (MemoryGroup(str(tmp_path / name), f"/{name}", 1, LIMIT_BYTES) for name in ("a", "b"))
    prepare(counted, *names)
    prepare(uncounted, names[0], names[2])
    counted.limit()
    uncounted.limit()

    assert read(counted) == {names[0]: "419430400", names[1]: "419430400", names[2]: "1"}
    assert read(uncounted) == {names[0]: "419430400", names[2]: "1"}


def test_v2_slows_down_before_it_kills(tmp_path: Path) -> None:
    """memory.high is the limit, memory.max stands an eighth above it, and there is no swap to flee to."""
    group = MemoryGroup(str(tmp_path / "demo"), "/demo", 2, LIMIT_BYTES)
    prepare(group, "memory.high", "memory.max", "memory.swap.max")
    group.limit()

    assert read(group) == {"memory.high": "419430400", "memory.max": "471859200", "memory.swap.max": "0"}


def test_what_is_refused_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    """A directory that cannot be made, and one that gets no limit (no controller), are told, and are not left."""
    nowhere = MemoryGroup(str(tmp_path / "no/where"), "/no/where", 1, LIMIT_BYTES)
    bare = MemoryGroup(str(tmp_path / "bare"), "/bare", 1, LIMIT_BYTES)

    with pytest.raises(RoleFailedError, match="a control group of the demo's own") as refusal:
        make(nowhere)
    with pytest.raises(RoleFailedError, match="the limit of a control group"):
        make(bare)

    assert refusal.value.role == groups.ROLE
    assert list(tmp_path.iterdir()) == []
    assert "sudo oomreaper demo" in explain("it was refused")


@pytest.mark.needs("root", "cgroup_v1_memory")
def test_the_real_files_take_it() -> None:
    """The kernel's own v1 group has each of the files, and takes what is written: the limit, and the killer off."""
    from tests.victims.surroundings import own_cgroup

    with own_cgroup("memory") as parent:
        group = MemoryGroup(str(parent / "demo"), "/demo", 1, LIMIT_BYTES)
        make(group)
        try:
            limit = (parent / "demo/memory.limit_in_bytes").read_text(encoding="ascii")
            control = (parent / "demo/memory.oom_control").read_text(encoding="ascii")
            used = int((parent / "demo/memory.usage_in_bytes").read_text(encoding="ascii"))
        finally:
            os.rmdir(group.directory)

    assert int(limit) == LIMIT_BYTES
    assert "oom_kill_disable 1" in control
    assert used < LIMIT_BYTES
    assert group.usage_file.endswith("/demo/memory.usage_in_bytes")
