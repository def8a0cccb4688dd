"""Which memory control groups there are: the mount that shows them, the ones with a limit, and who is in them.

What it knows: the tree below the mount of the memory controller, of whichever version, and how its directories are
named in /proc/PID/cgroup. What it refuses to know: how full a group is (``memcg``).

How it works: ``Discovery`` walks the tree a few directories at a time, so that 10,000 groups hold nobody up, and tells
the difference to the walk before. A directory's link count says how many are below it, so a leaf is never listed, and
neither is a directory that has as many below it as the walk before has found there, as long as each of those is still
there: then there is nobody else. It is a hierarchy that others write, with names that may hold anything but a slash and
a NUL.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from oomreaper.linux.kept import CHUNK_BYTES, open_kept
from oomreaper.linux.memcg import GroupGoneError, GroupMemory, read_own_limit_bytes
from oomreaper.model.plan import MACHINE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from oomreaper.linux.cgroup import Mount

_V1, _V2 = 1, 2
_CONTROLLER = "memory"
_LEAF_LINKS = 2
# A walk keeps one descriptor a level. Kubernetes in a container in a user session makes about 12 levels.
_DEEPEST = 32
# What is below a directory is remembered up to so many names, 0.2 MB of locked memory; more are listed at each walk.
_MOST_REMEMBERED = 2_000
# A directory that is skipped: it went in mid-walk, or is not ours to see.
_PASSED_OVER = frozenset({errno.ENOENT, errno.ENODEV, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG})

_Lists: TypeAlias = "dict[str, tuple[str, ...]]"  # the names of what is below a directory


class Group(NamedTuple):
    """One group: ``scope`` is its path as /proc/PID/cgroup names it, ``directory`` where we see it."""

    scope: str
    directory: str
    version: int


class Change(NamedTuple):
    """A group that a walk has found, or has found no more."""

    group: Group
    is_new: bool


def find_memory_mount(mounts: list[Mount]) -> Mount | None:
    """The mount that shows the memory controller: v2 if it has it, else v1's own; ``version`` tells which.

    A controller stands in one hierarchy only; in a hybrid tree v2 may be mounted without it.
    """
    for mount in mounts:
        if mount.version == _V2 and _CONTROLLER in _read_words(f"{mount.directory}/cgroup.controllers"):
            return mount
    for mount in mounts:
        if mount.version == _V1 and _CONTROLLER in mount.controllers:
            return mount
    return None


def scope_of(mount: Mount, directory: str) -> str:
    """What /proc/PID/cgroup calls the group that is seen in ``directory``: the reverse of ``Mount.path_of``."""
    return (mount.root.rstrip("/") + directory[len(mount.directory) :]) or "/"


def find_own_top(mount: Mount, machine_bytes: int) -> Group | None:
    """The group that stands for the machine, in a container: the topmost that we see, when it has a limit.

    None on a machine itself, and in a container that may take all of it. ``machine_bytes`` is MemTotal.

    Raises:
        OSError: It cannot be told now (EMFILE, ENOMEM and the like).
    """
    # The topmost group of a machine has no limit: v2 gives it no such file, v1 says there is none.
    limit_bytes = read_own_limit_bytes(mount.directory, mount.version)
    if limit_bytes is None or limit_bytes >= machine_bytes:
        return None
    return Group(scope_of(mount, mount.directory), mount.directory, mount.version)


def open_stand_in(mount: Mount, scope: str) -> GroupMemory:
    """The memory of the group ``scope``, a path as /proc/PID/cgroup names it, in samples of scope MACHINE.

    For ``Plan.within`` and for ``find_own_top``; ``memcg.combine`` puts its samples in the machine's place.

    Raises:
        GroupGoneError: There is no such group, our mount does not show it, or it has no memory controller.
        OSError: It cannot be opened.
    """
    directory = mount.path_of(scope)
    if directory is None:
        raise GroupGoneError(scope)
    return GroupMemory(directory, MACHINE, mount.version, top=mount.directory)


def read_members(directory: str) -> list[int]:
    """The processes of a group and of all below it, in ascending order, those of other pid namespaces left out.

    Raises:
        GroupGoneError: There is no such group.
        OSError: A group cannot be read; one that goes meanwhile is left out.
    """
    pids: set[int] = set()
    try:
        paths = [directory, *_walk(directory, {}, {})]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GroupGoneError(directory) from error
    for path in paths:
        try:
            pids.update(map(int, _read(f"{path}/cgroup.procs").split()))
        except OSError as error:
            # A threaded group lists no processes: the domain that it belongs to does.
            if error.errno not in _PASSED_OVER and error.errno != errno.EOPNOTSUPP:
                raise
    pids.discard(0)  # how the kernel shows one that our pid namespace has no number for
    return sorted(pids)


class Discovery:
    """A walk over the groups below the top of ``mount`` that set a limit lower than ``machine_bytes``.

    ``is_wanted`` is asked with a group's scope, before its limit is looked at; each group that is watched costs up
    to eight descriptors. The topmost group is left out: it is the machine, or stands for it.
    """

    def __init__(self, mount: Mount, machine_bytes: int, is_wanted: Callable[[str], bool] | None = None) -> None:
        self._mount = mount
        self._machine_bytes = machine_bytes
        self._is_wanted = is_wanted
        self._known: dict[str, Group] = {}
        self._seen: set[str] = set()
        self._lists: _Lists = {}
        self._new_lists: _Lists = {}
        self._walk: Generator[str] | None = None

    @property
    def is_between_walks(self) -> bool:
        """Whether the last step ended a walk: all groups that were there have been looked at."""
        return self._walk is None

    def step(self, max_directories: int) -> list[Change]:
        """Look at so many directories, or to the end of the walk; the next step goes on, or begins anew.

        A new group is told when it is met, one that has gone or lost its limit at the end of the walk.

        Raises:
            OSError: EMFILE, ENOMEM and the like. What was known stays known, and the next step begins anew.
        """
        changes: list[Change] = []
        if self._walk is None:
            self._seen.clear()
            self._new_lists = {}
            self._walk = _walk(self._mount.directory, self._lists, self._new_lists)
        try:
            for _ in range(max_directories):
                directory = next(self._walk, None)
                if directory is None:
                    self._walk = None
                    self._lists = self._new_lists
                    changes += [Change(self._known.pop(scope), False) for scope in self._known.keys() - self._seen]
                    break
                group = Group(scope_of(self._mount, directory), directory, self._mount.version)
                if (self._is_wanted is None or self._is_wanted(group.scope)) and self._has_limit(directory):
                    self._seen.add(group.scope)
                    if group.scope not in self._known:
                        self._known[group.scope] = group
                        changes.append(Change(group, True))
        except OSError:
            # What this step has found would be lost with its list: let the next walk find it again.
            for change in changes:
                self._known.pop(change.group.scope, None)
            self.close()
            raise
        return changes

    def forget(self, scope: str) -> None:
        """A group was found to be gone: should one of the same name be met, it is new."""
        self._known.pop(scope, None)

    def close(self) -> None:
        """End the walk that is under way, and give its descriptors up."""
        if self._walk is not None:
            self._walk.close()
            self._walk = None

    def _has_limit(self, directory: str) -> bool:
        limit_bytes = read_own_limit_bytes(directory, self._mount.version)
        return limit_bytes is not None and limit_bytes < self._machine_bytes


class _Level:
    """A directory whose subdirectories are gone through: as the kernel lists them, or as they are remembered.

    ``is_whole`` is False once one of them could not be seen; ``found`` has the names of the others.
    """

    __slots__ = ("_entries", "_remembered", "_visited", "directory", "found", "is_whole")

    def __init__(self, directory: str, remembered: tuple[str, ...] | None = None, visited: list[str] | None = None):
        self.directory = directory
        self.found = visited or []
        self.is_whole = True
        self._visited = frozenset(self.found)
        self._remembered = None if remembered is None else iter(remembered)
        self._entries = os.scandir(directory) if remembered is None else None

    @property
    def is_remembered(self) -> bool:
        return self._remembered is not None

    def next_name(self) -> str | None:
        """The next one; None when there is none."""
        if self._remembered is not None:
            return next(self._remembered, None)
        assert self._entries is not None
        for entry in self._entries:
            if entry.is_dir(follow_symlinks=False) and entry.name not in self._visited:
                return entry.name
        return None

    def close(self) -> None:
        """Give its descriptor up."""
        if self._entries is not None:
            self._entries.close()


def _walk(top: str, before: _Lists, after: _Lists) -> Generator[str]:
    """Every directory below ``top``, a parent before its children; links are not followed.

    ``before`` is what was found below each at an earlier walk, {} at the first; into ``after`` goes what is now.
    """
    levels = [_open_level(top, os.stat(top).st_nlink, before) if before else _Level(top)]
    try:
        while levels:
            level = levels[-1]
            try:
                name = level.next_name()
                if name is None:
                    levels.pop().close()
                    if level.is_whole and len(level.found) <= _MOST_REMEMBERED:
                        after[level.directory] = tuple(level.found)
                    elif level.is_remembered:
                        levels.append(_Level(level.directory, visited=level.found))
                    continue
                path = f"{level.directory}/{name}"
                status = os.stat(path, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):  # it was one when it was remembered
                    level.is_whole = False
                    continue
                level.found.append(name)
                yield path
                if len(levels) < _DEEPEST and status.st_nlink != _LEAF_LINKS:
                    levels.append(_open_level(path, status.st_nlink, before))
            except OSError as error:
                # What was being listed has gone: nothing of it comes any more, and what is above it goes on.
                if error.errno not in _PASSED_OVER:
                    raise
                level.is_whole = False
    finally:
        for level in levels:
            level.close()


def _open_level(directory: str, links: int, before: _Lists) -> _Level:
    remembered = before.get(directory)
    is_as_many = remembered is not None and links == _LEAF_LINKS + len(remembered)
    return _Level(directory, remembered if is_as_many else None)


def _read_words(path: str) -> list[str]:
    try:
        return os.fsdecode(_read(path)).split()
    except OSError as error:
        if error.errno in _PASSED_OVER:
            return []
        raise


def _read(path: str) -> bytes:
    file = open_kept(path)
    try:
        content = chunk = os.read(file, CHUNK_BYTES)
        while chunk:
            chunk = os.read(file, CHUNK_BYTES)
            content += chunk
    finally:
        os.close(file)
    return content
