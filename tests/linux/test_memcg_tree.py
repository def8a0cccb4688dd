"""Finding groups: recorded trees of v1, v2, hybrid and a container, 2,000 groups in steps, churn, hostile names."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import memcg_tree
from oomreaper.linux.cgroup import Mount
from oomreaper.linux.memcg import GroupGoneError
from oomreaper.linux.memcg_tree import Change, Discovery, Group
from oomreaper.model.plan import MACHINE
from oomreaper.model.sample import ScopeSample
from tests.linux.sources import count_descriptors, failing, write_tree
from tests.victims.surroundings import own_cgroup

if TYPE_CHECKING:
    from pathlib import Path

MACHINE_BYTES = 1 << 33
LIMITED = {"memory.max": "1000\n", "memory.current": "10\n", "cgroup.procs": ""}
UNLIMITED = {"memory.max": "max\n", "memory.high": "max\n", "cgroup.procs": ""}


def _group(top: Path, name: str, files: dict[str, str]) -> None:
    write_tree(top / name, files)


def _v2(top: Path, root: str = "/") -> Mount:
    return Mount(2, frozenset(), str(top), root)


def _scopes(changes: list[Change]) -> list[str]:
    return sorted(("+" if change.is_new else "-") + change.group.scope for change in changes)


def _walk_once(discovery: Discovery) -> list[str]:
    changes = discovery.step(1)
    while not discovery.is_between_walks:
        changes += discovery.step(1)
    return _scopes(changes)


def test_the_mount_of_the_controller(tmp_path: Path) -> None:
    """v2 when it has the controller; else v1's own, as in a hybrid tree; none on a kernel without it."""
    write_tree(tmp_path, {"unified/cgroup.controllers": "cpu memory pids\n", "bare/cgroup.controllers": "cpu\n"})
    v1 = Mount(1, frozenset({"memory"}), str(tmp_path / "memory"), "/")
    cpu = Mount(1, frozenset({"cpu"}), str(tmp_path / "cpu"), "/")
    unified, bare, odd = (_v2(tmp_path / name) for name in ("unified", "bare", "none"))

    assert memcg_tree.find_memory_mount([cpu, v1, unified]) == unified
    assert memcg_tree.find_memory_mount([bare, cpu, v1]) == v1
    assert memcg_tree.find_memory_mount([bare, cpu, odd]) is None
    assert memcg_tree.find_memory_mount([]) is None


@pytest.mark.parametrize("root", ["/", "/docker/x"])
@pytest.mark.parametrize("below", ["", "/a", "/a/b"])
def test_a_scope_is_what_a_process_calls_its_group(root: str, below: str) -> None:
    """The reverse of Mount.path_of, in whatever part of the tree is mounted."""
    mount = Mount(2, frozenset(), "/sys/fs/cgroup", root)
    scope = memcg_tree.scope_of(mount, "/sys/fs/cgroup" + below)

    assert scope == (root.rstrip("/") + below or "/")
    assert mount.path_of(scope) == "/sys/fs/cgroup" + below


def test_groups_with_a_limit_are_found(tmp_path: Path) -> None:
    """A limit of its own, below the machine's memory, at any depth; memory.high counts; the topmost is left out."""
    write_tree(tmp_path, LIMITED)
    _group(tmp_path, "limited", LIMITED)
    _group(tmp_path, "plain", UNLIMITED)
    _group(tmp_path, "plain/deep/deeper", LIMITED)
    _group(tmp_path, "throttled", {**UNLIMITED, "memory.high": "1000"})
    _group(tmp_path, "vast", {**UNLIMITED, "memory.max": str(MACHINE_BYTES)})
    _group(tmp_path, "without", {"cgroup.procs": ""})
    discovery = Discovery(_v2(tmp_path, "/docker/x"), MACHINE_BYTES)

    assert _walk_once(discovery) == ["+/docker/x/limited", "+/docker/x/plain/deep/deeper", "+/docker/x/throttled"]


def test_groups_of_v1_are_found(tmp_path: Path) -> None:
    """memory.limit_in_bytes, whose number for no limit is none; the group says where it is and of what version."""
    _group(tmp_path, "job", {"memory.limit_in_bytes": "1000\n"})
    _group(tmp_path, "free", {"memory.limit_in_bytes": "9223372036854771712\n"})
    discovery = Discovery(Mount(1, frozenset({"memory"}), str(tmp_path), "/"), MACHINE_BYTES)

    assert discovery.step(10) == [Change(Group("/job", f"{tmp_path}/job", 1), True)]


def test_only_what_changed_is_told(tmp_path: Path) -> None:
    """New ones when met; those that went, or lost their limit, at the end of the walk; then nothing."""
    for name in ("a", "b", "c"):
        _group(tmp_path, name, LIMITED)
    discovery = Discovery(_v2(tmp_path), MACHINE_BYTES)
    first, second = _walk_once(discovery), _walk_once(discovery)
    _group(tmp_path, "b", UNLIMITED)
    for file in (tmp_path / "c").iterdir():
        file.unlink()
    (tmp_path / "c").rmdir()
    _group(tmp_path, "d", LIMITED)
    third, fourth = _walk_once(discovery), _walk_once(discovery)

    assert (first, second, third, fourth) == (["+/a", "+/b", "+/c"], [], ["+/d", "-/b", "-/c"], [])


def test_a_group_made_anew_between_walks_is_new_once_it_was_found_gone(tmp_path: Path) -> None:
    """``forget``: the same name is another group."""
    _group(tmp_path, "a", LIMITED)
    discovery = Discovery(_v2(tmp_path), MACHINE_BYTES)
    first = _walk_once(discovery)
    discovery.forget("/a")
    discovery.forget("/never")

    assert (first, _walk_once(discovery)) == (["+/a"], ["+/a"])


def test_a_group_that_nobody_wants_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scope is asked about before the limit is looked at; those below it are asked about all the same."""
    _group(tmp_path, "unwanted/wanted", LIMITED)
    _group(tmp_path, "unwanted", LIMITED)
    discovery = Discovery(_v2(tmp_path), MACHINE_BYTES, lambda scope: scope.endswith("/wanted"))
    with failing(monkeypatch, "open", errno.EMFILE, 2) as fault:
        changes = discovery.step(10)

    assert _scopes(changes) == ["+/unwanted/wanted"]
    assert not fault.was_reached


def test_a_step_looks_at_no_more_than_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2,000 groups in steps of 50: no step opens more than its share, and all are found."""
    for number in range(2000):
        _group(tmp_path, f"pod{number % 20}/{number}", {"memory.max": "1000"})
    discovery = Discovery(_v2(tmp_path), MACHINE_BYTES)
    found, steps, opened = 0, 0, []
    while True:
        with failing(monkeypatch, "open", errno.EMFILE, 101) as fault:
            found += len(discovery.step(50))
        opened.append(fault.was_reached)
        steps += 1
        if discovery.is_between_walks:
            break

    assert (found, steps, any(opened)) == (2000, 2020 // 50 + 1, False)


def test_a_tree_that_is_deeper_than_anybody_needs_ends(tmp_path: Path) -> None:
    """One descriptor a level is kept at most 32 levels down: a hostile depth takes no more."""
    before = count_descriptors()
    _group(tmp_path, "/".join(["d"] * 60), LIMITED)
    _group(tmp_path, "/".join(["e"] * 30), LIMITED)
    discovery = Discovery(_v2(tmp_path), MACHINE_BYTES)
    found: list[Change] = []
    most = 0
    while not (found and discovery.is_between_walks):
        found += discovery.step(1)
        most = max(most, count_descriptors())

    assert _scopes(found) == ["+/" + "/".join(["e"] * 30)]
    assert most <= before + 32
    assert count_descriptors() == before


def test_who_has_come_in_the_place_of_another_is_found(tmp_path: Path) -> None:
    """As many directories as before, and one of them is another: the next walk finds it, at any depth."""
    for name in ("a", "b", "c/d/e", "c/d/f"):
        _group(tmp_path, name, LIMITED)
    discovery = Discovery(_v2(tmp_path), MACHINE_BYTES)
    first = _walk_once(discovery)
    for old, new in (("b", "z"), ("c/d/e", "c/d/g")):
        (tmp_path / old).rename(tmp_path / new)
    second = _walk_once(discovery)
    (tmp_path / "a").rename(tmp_path / "a2")
    _group(tmp_path, "a2/below", LIMITED)
    third, fourth = _walk_once(discovery), _walk_once(discovery)

    assert first == ["+/a", "+/b", "+/c/d/e", "+/c/d/f"]
    assert second == ["+/c/d/g", "+/z", "-/b", "-/c/d/e"]
    assert (third, fourth) == (["+/a2", "+/a2/below", "-/a"], [])


@pytest.mark.parametrize("name", ["fifo", "file", "link"])
def test_what_has_come_in_the_place_of_a_directory_is_not_walked(tmp_path: Path, name: str) -> None:
    """A name that was a directory's and is none's any more is gone, whatever stands there now."""
    _group(tmp_path, "x", LIMITED)
    _group(tmp_path, "b", LIMITED)
    discovery = Discovery(_v2(tmp_path / "."), MACHINE_BYTES)
    _walk_once(discovery)
    (tmp_path / "x").rename(tmp_path.parent / f"moved-{tmp_path.name}")
    if name == "link":
        (tmp_path / "x").symlink_to(tmp_path / "b")
    elif name == "fifo":
        os.mkfifo(tmp_path / "x")
    else:
        (tmp_path / "x").write_text("", encoding="ascii")
    (tmp_path / "y").mkdir()  # the link count is as before
    walked = _walk_once(discovery)

    assert walked == ["-/x"]


@pytest.mark.needs("cgroup_v1_memory", "root")
def test_a_directory_in_which_nothing_changed_is_not_listed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second walk over real groups lists none of them; one that has come below one of them is found all the same."""
    with own_cgroup("memory") as directory:
        for name in ("a", "a/x", "a/y", "b"):
            (directory / name).mkdir()
        mount = Mount(1, frozenset({"memory"}), str(directory), "/run")
        discovery = Discovery(mount, MACHINE_BYTES)
        try:
            first = _walk_once(discovery)
            with failing(monkeypatch, "scandir", errno.EMFILE, 0) as fault:
                again = _walk_once(discovery)
            (directory / "a/y").rmdir()
            (directory / "a/z").mkdir()
            (directory / "a/z/memory.limit_in_bytes").write_text(str(1 << 25), encoding="ascii")
            found = _walk_once(discovery)
        finally:
            for name in ("a/x", "a/y", "a/z", "a", "b"):
                if (directory / name).exists():
                    (directory / name).rmdir()

    assert (first, again, found) == ([], [], ["+/run/a/z"])
    assert not fault.was_reached


@pytest.mark.parametrize("most", [1, 3])
def test_a_list_that_is_too_long_to_be_remembered_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """What is found does not depend on what is remembered."""
    monkeypatch.setattr(memcg_tree, "_MOST_REMEMBERED", most)
    for name in ("a", "b", "c"):
        _group(tmp_path, name, LIMITED)
    discovery = Discovery(_v2(tmp_path), MACHINE_BYTES)
    first = _walk_once(discovery)
    second = _walk_once(discovery)
    (tmp_path / "b").rename(tmp_path / "d")

    assert (first, second, _walk_once(discovery)) == (["+/a", "+/b", "+/c"], [], ["+/d", "-/b"])


def test_names_may_hold_anything(tmp_path: Path) -> None:
    """Newlines, escapes, bytes that are no UTF-8: the name comes back as the kernel has it."""
    names = [b"a\nb", b"\x1b[31m", b"\xff\xfe", b"a b", b" (deleted)"]
    for name in names:
        directory = os.fsencode(tmp_path) + b"/" + name
        os.mkdir(directory)
        with open(directory + b"/memory.max", "w", encoding="ascii") as file:
            file.write("5")
    changes = Discovery(_v2(tmp_path), MACHINE_BYTES).step(100)

    assert sorted(os.fsencode(change.group.scope) for change in changes) == sorted(b"/" + name for name in names)


def test_links_are_not_followed(tmp_path: Path) -> None:
    """A recorded tree, or a bind mount, that points at itself."""
    _group(tmp_path, "a", LIMITED)
    (tmp_path / "a/loop").symlink_to(tmp_path)

    assert _walk_once(Discovery(_v2(tmp_path), MACHINE_BYTES)) == ["+/a"]


def test_a_tree_that_goes_in_mid_walk(tmp_path: Path) -> None:
    """What was being listed has gone: the walk goes on above it, and tells the loss at its end."""
    for name in ("a/x", "a/y", "b/x", "b/y"):
        _group(tmp_path, name, LIMITED)
    discovery = Discovery(_v2(tmp_path), MACHINE_BYTES)
    changes = discovery.step(2)
    gone = changes[0].group.scope.split("/")[1]
    subprocess.run(["rm", "-r", str(tmp_path / gone)], check=True)
    told = _scopes(changes) + _walk_once(discovery) + _walk_once(discovery)
    left = {"a": "b", "b": "a"}[gone]

    assert {each for each in told if each.startswith("+") and f"/{left}/" in each} == {f"+/{left}/x", f"+/{left}/y"}
    assert {each.replace("-", "+") for each in told if each.startswith("-")} == {
        each for each in told if each.startswith("+") and f"/{gone}/" in each
    }


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ENODEV, errno.EMFILE, errno.ENOMEM])
@pytest.mark.parametrize("call", ["open", "pread", "scandir", "stat"])
def test_each_call_failing_once_loses_no_group_and_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """A failure of ours ends the walk and takes no group away; one that says "gone" does, until the next walk."""
    for name in ("a", "a/x", "b"):
        _group(tmp_path, name, LIMITED)
    before = count_descriptors()
    turn, was_reached = 0, True
    while was_reached:
        discovery = Discovery(_v2(tmp_path), MACHINE_BYTES)
        known = set(_walk_once(discovery))
        for parent in ("", "a/"):  # so that both have to be listed again
            (tmp_path / f"{parent}new{turn}").mkdir()
        with failing(monkeypatch, call, number, turn) as fault:
            try:
                changes = discovery.step(100)
            except OSError as error:
                answer, changes = error.errno, []
                assert answer == number
        if number not in {errno.ENOENT, errno.ENODEV}:
            assert changes == []
        found_again = {each.replace("+", "-") for each in _walk_once(discovery)}

        assert known == {"+/a", "+/a/x", "+/b"}
        assert found_again == set(_scopes(changes))
        assert count_descriptors() == before
        was_reached = fault.was_reached
        turn += 1
    assert turn > 1


def test_a_new_group_in_a_step_that_fails_is_found_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of a step that raises is lost; the groups on it are not."""
    for name in ("a", "b", "c"):
        _group(tmp_path, name, LIMITED)
    discovery = Discovery(_v2(tmp_path), MACHINE_BYTES)
    with failing(monkeypatch, "open", errno.EMFILE, 4), pytest.raises(OSError, match="Too many"):
        discovery.step(100)

    assert _walk_once(discovery) == ["+/a", "+/b", "+/c"]


def test_the_top_of_a_container_stands_for_the_machine(tmp_path: Path) -> None:
    """It has a limit that the machine's memory is above; the top of a machine has none."""
    write_tree(tmp_path / "container", LIMITED)
    write_tree(tmp_path / "v1", {"memory.limit_in_bytes": "9223372036854771712"})
    write_tree(tmp_path / "v2", {"cgroup.controllers": "memory"})
    container = _v2(tmp_path / "container", "/docker/x")
    v1 = Mount(1, frozenset({"memory"}), str(tmp_path / "v1"), "/")

    assert memcg_tree.find_own_top(container, MACHINE_BYTES) == Group("/docker/x", str(tmp_path / "container"), 2)
    assert memcg_tree.find_own_top(container, 1000) is None
    assert memcg_tree.find_own_top(v1, MACHINE_BYTES) is None
    assert memcg_tree.find_own_top(_v2(tmp_path / "v2"), MACHINE_BYTES) is None


def test_a_group_that_stands_for_the_machine_is_sampled_as_it(tmp_path: Path) -> None:
    """The limit of the group or of one above it, in a sample of scope MACHINE; outside of the mount there is none."""
    write_tree(tmp_path, {**UNLIMITED, "memory.max": "500"})
    _group(tmp_path, "job", LIMITED)
    mount = _v2(tmp_path, "/docker/x")
    memory = memcg_tree.open_stand_in(mount, "/docker/x/job")
    sample = memory.read(3, ScopeSample(MACHINE, 3, MACHINE_BYTES, 5))
    memory.close()
    for scope in ("/docker/x/none", "/elsewhere"):
        with pytest.raises(GroupGoneError):
            memcg_tree.open_stand_in(mount, scope)

    assert (sample.scope, sample.limit_bytes, sample.current_bytes) == (MACHINE, 500, 10)


def test_members_are_those_of_the_group_and_below(tmp_path: Path) -> None:
    """Each once, however often it is listed; those of other pid namespaces (0) and of threaded groups left out."""
    _group(tmp_path, "job", {"cgroup.procs": "12\n7\n0\n"})
    _group(tmp_path, "job/a/b", {"cgroup.procs": "7\n100\n"})
    _group(tmp_path, "other", {"cgroup.procs": "5\n"})
    _group(tmp_path, "job/empty", {})

    (tmp_path / "job/none").mkdir()
    assert memcg_tree.read_members(str(tmp_path / "job")) == [7, 12, 100]
    with pytest.raises(GroupGoneError):
        memcg_tree.read_members(str(tmp_path / "gone"))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.EMFILE, errno.EOPNOTSUPP])
@pytest.mark.parametrize("call", ["open", "read", "scandir"])
def test_each_call_failing_once_while_members_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """A group that goes, or lists nobody, is left out; any other failure is raised; no descriptor stays open."""
    _group(tmp_path, "job", {"cgroup.procs": "12\n"})
    _group(tmp_path, "job/a", {"cgroup.procs": "7\n"})
    _group(tmp_path, "job/a/b", {"cgroup.procs": "8\n"})
    before = count_descriptors()
    turn, was_reached = 0, True
    while was_reached:
        with failing(monkeypatch, call, number, turn) as fault:
            try:
                members = memcg_tree.read_members(str(tmp_path / "job"))
            except GroupGoneError:
                assert (number, call, turn) == (errno.ENOENT, "scandir", 0)
            except OSError as error:
                is_documented = error.errno == number and (number in {errno.EIO, errno.EMFILE} or call == "scandir")
                assert is_documented
            else:
                assert set(members) <= {7, 8, 12}
                assert (members == [7, 8, 12]) == (not fault.was_reached) or call == "read"

        assert count_descriptors() == before
        was_reached = fault.was_reached
        turn += 1
    assert turn > 1


@pytest.mark.needs("cgroup_v1_memory", "root")
def test_a_real_group_comes_and_goes() -> None:
    """Below the group of this run: found with its limit and its members, gone when it is removed."""
    before = count_descriptors()
    with own_cgroup("memory") as directory:
        mount = Mount(1, frozenset({"memory"}), str(directory.parent), "/run")
        scope = f"/run/{directory.name}"
        discovery = Discovery(mount, MACHINE_BYTES, lambda each: each.startswith(scope))
        unlimited = _walk_once(discovery)
        (directory / "memory.limit_in_bytes").write_text(str(1 << 25), encoding="ascii")
        (directory / "below").mkdir()
        limited = _walk_once(discovery)
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", "input()"], stdin=subprocess.PIPE) as child:
            (directory / "below/cgroup.procs").write_text(str(child.pid), encoding="ascii")
            members = memcg_tree.read_members(str(directory))
            child.communicate(b"\n")
        (directory / "below").rmdir()
    gone = _walk_once(discovery)

    assert (unlimited, limited, gone) == ([], [f"+{scope}"], [f"-{scope}"])
    assert members == [child.pid]
    assert count_descriptors() == before
