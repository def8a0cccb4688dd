"""Control groups on recorded trees: v1, v2, hybrid, a container's view, hostile paths."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import cgroup
from oomreaper.linux.cgroup import Membership, Mount

if TYPE_CHECKING:
    from pathlib import Path

V1_MEMORY = Mount(1, frozenset({"memory"}), "/sys/fs/cgroup/memory", "/")
V2 = Mount(2, frozenset(), "/sys/fs/cgroup/unified", "/")


def test_memberships_of_a_hybrid_tree() -> None:
    """Named hierarchies, co-mounted controllers, the v2 line, a removed group, a path with colons."""
    content = b"9:name=systemd:/a\n4:cpu,cpuacct:/b:c\n0::/user.slice (deleted)\n"

    assert cgroup.parse_memberships(content) == [
        Membership(frozenset({"name=systemd"}), "/a"),
        Membership(frozenset({"cpu", "cpuacct"}), "/b:c"),
        Membership(frozenset(), "/user.slice"),
    ]


def test_mounts_of_a_hybrid_tree() -> None:
    """Optional fields before the separator, escaped spaces in a path, other filesystems left out."""
    mountinfo = (
        b"30 25 0:26 / /sys/fs/cgroup/my\\040memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n"
        b"31 25 0:27 /docker/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
        b"32 25 0:28 / /proc rw - proc proc rw\n"
    )

    assert cgroup.parse_mounts(mountinfo) == [
        Mount(1, frozenset({"memory"}), "/sys/fs/cgroup/my memory", "/"),
        Mount(2, frozenset(), "/sys/fs/cgroup", "/docker/x"),
    ]


def test_a_group_is_seen_only_through_a_mount_that_shows_it() -> None:
    """A container's mount shows a part of the tree: what lies outside has no path there."""
    mount = Mount(2, frozenset(), "/sys/fs/cgroup", "/docker/x")

    assert mount.path_of("/docker/x") == "/sys/fs/cgroup"
    assert mount.path_of("/docker/x/y") == "/sys/fs/cgroup/y"
    assert mount.path_of("/docker/xy") is None
    assert mount.path_of("/") is None


@pytest.mark.parametrize(
    ("lines", "mounts", "expected"),
    [
        (b"4:memory:/job\n0::/user\n", [V1_MEMORY, V2], (V1_MEMORY, "/sys/fs/cgroup/memory/job")),
        (b"4:memory:/\n0::/user\n", [V1_MEMORY, V2], None),
        (b"0::/user\n", [V2], (V2, "/sys/fs/cgroup/unified/user")),
        (b"0::/\n", [V2], None),
        (b"0::/user\n", [], None),
        (b"", [V1_MEMORY, V2], None),
    ],
)
def test_the_group_by_which_memory_is_ruled(
    tmp_path: Path, lines: bytes, mounts: list[Mount], expected: tuple[Mount, str] | None
) -> None:
    """The v1 hierarchy of the controller if there is one, else v2; the root group is no group."""
    (tmp_path / "cgroup").write_bytes(lines)
    process = os.open(tmp_path, os.O_RDONLY)
    found = cgroup.find_group(mounts, process, "memory")
    os.close(process)

    assert expected == found


def _files(directory: Path, **contents: str) -> str:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (directory / name.replace("__", ".")).write_text(content)
    return str(directory)


def test_the_charge_of_a_group(tmp_path: Path) -> None:
    """v2 with and without swap, v1 with and without swap accounting, and no memory group at all."""
    v2 = _files(tmp_path / "a", memory__current="100", memory__swap__current="5")
    v2_without = _files(tmp_path / "b", memory__current="100")
    v1 = _files(tmp_path / "c", memory__usage_in_bytes="7", memory__memsw__usage_in_bytes="9")
    v1_without = _files(tmp_path / "d", memory__usage_in_bytes="7")

    charges = [cgroup.read_group_charge_bytes(path) for path in (v2, v2_without, v1, v1_without, str(tmp_path / "e"))]
    assert charges == [105, 100, 9, 7, None]


def test_anonymous_memory_of_a_group_and_its_processes(tmp_path: Path) -> None:
    """memory.stat of both versions; processes of the groups below count too; one that vanishes is skipped."""
    outer = _files(tmp_path / "g", memory__stat="cache 1\ntotal_rss 2\n", cgroup__procs="5\n6\n")
    inner = _files(tmp_path / "g" / "h", memory__stat="anon 3\nfile 4\n", cgroup__procs="7\n")

    assert cgroup.read_group_anon_bytes(outer) == 2
    assert cgroup.read_group_anon_bytes(inner) == 3
    assert cgroup.read_group_anon_bytes(str(tmp_path / "none")) is None
    assert sorted(cgroup.read_group_pids(outer)) == [5, 6, 7]


def test_a_victim_is_moved_out_of_what_holds_it_and_nobody_else(tmp_path: Path) -> None:
    """Frozen and throttled v1 groups: the victim's threads go to the hierarchy's root, the group stays as it was."""
    freezer, cpu = tmp_path / "freezer", tmp_path / "cpu"
    _files(freezer, tasks="")
    _files(freezer / "cold", freezer__state="FROZEN\n")
    _files(cpu, tasks="")
    _files(cpu / "slow", cpu__cfs_quota_us="1000\n")
    process_directory = _files(tmp_path / "process", cgroup="2:freezer:/cold\n1:cpu:/slow\n")
    mounts = [Mount(1, frozenset({"freezer"}), str(freezer), "/"), Mount(1, frozenset({"cpu"}), str(cpu), "/")]
    process = os.open(process_directory, os.O_RDONLY)
    done = cgroup.release_from_v1_holds(mounts, process, [77])
    os.close(process)

    assert done == ["moved out of freezer group /cold", "moved out of cpu group /slow"]
    assert (freezer / "tasks").read_text() == "77"
    assert (freezer / "cold" / "freezer.state").read_text() == "FROZEN\n"
    assert (cpu / "slow" / "cpu.cfs_quota_us").read_text() == "1000\n"


def test_a_victim_that_nothing_holds_is_left_where_it_is(tmp_path: Path) -> None:
    """A thawed group and an unlimited one are no reason to move anybody."""
    freezer, cpu = tmp_path / "freezer", tmp_path / "cpu"
    _files(freezer / "warm", freezer__state="THAWED\n")
    _files(cpu / "free", cpu__cfs_quota_us="-1\n")
    process_directory = _files(tmp_path / "process", cgroup="2:freezer:/warm\n1:cpu:/free\n")
    mounts = [Mount(1, frozenset({"freezer"}), str(freezer), "/"), Mount(1, frozenset({"cpu"}), str(cpu), "/")]
    process = os.open(process_directory, os.O_RDONLY)
    done = cgroup.release_from_v1_holds(mounts, process, [77])
    os.close(process)

    assert done == []
