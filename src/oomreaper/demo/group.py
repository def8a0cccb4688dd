"""A memory control group of the demo's own: small enough to be filled without harm to anybody outside of it.

It knows the files of both versions; it refuses to know who enters and what is done about the shortage.

In v1 the kernel's own killer is switched off for the group (memory.oom_control), so that whoever meets the limit
hangs there until a watcher in user space helps. In v2 there is no such switch: memory.high is the limit, at which the
kernel slows its members down and kills nobody, and memory.max stands a little above it, should all else fail.

Who makes a group is not who removes it: the ``warden`` of ``roles`` does, because it is still there when
the demo was killed.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from oomreaper.demo.victims import RoleFailedError
from oomreaper.linux import memcg_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oomreaper.linux.cgroup import Membership, Mount

# Who is told of a refusal by: ``RoleFailedError.role``.
ROLE = "group"
_V1, _V2 = 1, 2
_CONTROLLER = "memory"
# In v2, from where members are slowed down to where the kernel kills: what they can still take until the watcher has
# killed one. Slowed down, they take a few pages a second.
_V2_MARGIN_PART = 8


class MemoryGroup:
    """A group that was made. ``scope`` is what /proc/PID/cgroup calls it, ``usage_file`` where its use is told."""

    def __init__(self, directory: str, scope: str, version: int, limit_bytes: int) -> None:
        self.directory = directory
        self.scope = scope
        self.version = version
        self.limit_bytes = limit_bytes

    @property
    def usage_file(self) -> str:
        """The path of the file that tells the bytes that are charged to it."""
        return f"{self.directory}/{'memory.usage_in_bytes' if self.version == _V1 else 'memory.current'}"

    def add(self, pid: int) -> None:
        """Move a process in; what it holds already stays charged where it was.

        Raises:
            RoleFailedError: It was refused.
        """
        _write(f"{self.directory}/cgroup.procs", str(pid), "moving a process into a control group")

    def limit(self) -> None:
        """Set the limits.

        Raises:
            RoleFailedError: It was refused.
        """
        limit = str(self.limit_bytes)
        what = "the limit of a control group"
        if self.version == _V1:
            _write(f"{self.directory}/memory.limit_in_bytes", limit, what)
            # Without swap accounting there is no such file; with it, a limit on both leaves no swap to flee to.
            _write_if_there(f"{self.directory}/memory.memsw.limit_in_bytes", limit, what)
            _write(f"{self.directory}/memory.oom_control", "1", "keeping the kernel's killer out of a control group")
        else:
            _write_if_there(f"{self.directory}/memory.swap.max", "0", what)
            most_bytes = self.limit_bytes + self.limit_bytes // _V2_MARGIN_PART
            _write(f"{self.directory}/memory.max", str(most_bytes), what)
            _write(f"{self.directory}/memory.high", limit, what)


def find_places(mounts: list[Mount], memberships: list[Membership]) -> list[MemoryGroup]:
    """Where a group of ours could stand, the best place first; the names are without the last part.

    Beside or below the group that we stand in, so that what limits us limits the demo. v2 wants a parent that hands
    the controller on, and such a one has no processes: that is a group above ours.

    Raises:
        RoleFailedError: No memory controller is mounted.
    """
    mount = memcg_tree.find_memory_mount(mounts)
    if mount is None:
        raise RoleFailedError(ROLE, "the memory controller of control groups is not mounted here")
    own = _find_own(mount, memberships)
    if mount.version == _V1:
        return [MemoryGroup(own, memcg_tree.scope_of(mount, own).rstrip("/"), _V1, 0)]
    places = [
        MemoryGroup(directory, memcg_tree.scope_of(mount, directory).rstrip("/"), _V2, 0)
        for directory in _upwards(own, mount.directory)
        if _CONTROLLER in _read_words(f"{directory}/cgroup.subtree_control")
    ]
    if not places:
        raise RoleFailedError(ROLE, "no control group here hands the memory controller on (cgroup.subtree_control)")
    return places


def choose_place(places: list[MemoryGroup], name: str, limit_bytes: int) -> MemoryGroup:
    """The group of that name, not made yet, in the first place that we may write to, or in the first of all."""
    best = next((place for place in places if os.access(place.directory, os.W_OK)), places[0])
    return MemoryGroup(f"{best.directory}/{name}", f"{best.scope}/{name}", best.version, limit_bytes)


def make(group: MemoryGroup) -> None:
    """Make a group and set its limits; when it is refused, nothing is left.

    Raises:
        RoleFailedError: It was refused, and what.
    """
    try:
        os.mkdir(group.directory)
    except OSError as error:
        raise RoleFailedError(ROLE, "a control group of the demo's own", error.errno) from error
    try:
        group.limit()
    except RoleFailedError:
        with contextlib.suppress(OSError):
            os.rmdir(group.directory)
        raise


def explain(what: str) -> str:
    """Why there is no group here, and what to do."""
    return (
        f"{what}; to make a shortage that harms nobody, a memory control group is needed: run it as root "
        "(sudo oomreaper demo), or where a memory controller is delegated to you and /sys/fs/cgroup can be written"
    )


def _find_own(mount: Mount, memberships: list[Membership]) -> str:
    for membership in memberships:
        is_of_mount = _CONTROLLER in membership.controllers if mount.version == _V1 else not membership.controllers
        directory = mount.path_of(membership.group) if is_of_mount else None
        if directory is not None and os.path.isdir(directory):
            return directory
    return mount.directory  # our group lies outside of what is mounted, as in some containers


def _upwards(directory: str, top: str) -> Iterator[str]:
    while directory.startswith(f"{top}/"):
        yield directory
        directory = directory.rpartition("/")[0]
    yield top


def _write_if_there(path: str, text: str, what: str) -> None:
    try:
        _write(path, text, what)
    except RoleFailedError as failure:
        if failure.number != errno.ENOENT:
            raise


def _write(path: str, text: str, what: str) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)  # never made: an absent file is one that the kernel lacks
        try:
            os.write(file, text.encode("ascii"))
        finally:
            os.close(file)
    except OSError as error:
        raise RoleFailedError(ROLE, what, error.errno) from error


def _read_words(path: str) -> list[str]:
    try:
        with open(path, encoding="ascii") as file:
            return file.read().split()
    except OSError:
        return []
