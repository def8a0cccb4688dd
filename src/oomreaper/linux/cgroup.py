"""Control groups, v1 and v2: who is charged for a victim's memory, and what keeps a killed victim from leaving.

A victim is taken out of what holds it rather than the hold being lifted for all: its threads move to the root
of the v1 hierarchy that freezes or throttles them. That frees the victim alone, leaves every bystander
of the group as it was, and leaves nothing to restore if we are killed in between. A v2 freezer does not hold
a killed process ("can be killed by a fatal signal", cgroup-v2.rst), so there is nothing to do there.

Writing to a control file can wait for locks of the kernel; only workers call this.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from oomreaper.linux import proc

# A v1 hierarchy root, by which a group's own path is recognised as "no group at all".
_ROOT_GROUP = "/"


class Mount(NamedTuple):
    """One mounted hierarchy: ``directory`` shows the group ``root`` of the hierarchy. ``version`` is 1 or 2."""

    version: int
    controllers: frozenset[str]
    directory: str
    root: str

    def path_of(self, group: str) -> str | None:
        """Where ``group`` (as /proc/PID/cgroup names it) is seen; None when it lies outside this mount."""
        if self.root == _ROOT_GROUP:
            return self.directory + group.rstrip("/")
        if group == self.root or group.startswith(self.root + "/"):
            return self.directory + group[len(self.root) :]
        return None


class Membership(NamedTuple):
    """One line of /proc/PID/cgroup; ``controllers`` is empty for the v2 hierarchy."""

    controllers: frozenset[str]
    group: str


def parse_memberships(content: bytes) -> list[Membership]:
    """Parse /proc/PID/cgroup; paths may hold any byte but a newline."""
    memberships = []
    for line in content.split(b"\n"):
        parts = line.split(b":", 2)
        if len(parts) == 3:  # noqa: PLR2004 - hierarchy id, controllers, path
            names = frozenset(os.fsdecode(parts[1]).split(",")) - {""}
            group = os.fsdecode(parts[2]).removesuffix(" (deleted)")
            memberships.append(Membership(names, group))
    return memberships


def parse_mounts(mountinfo: bytes) -> list[Mount]:
    """The cgroup hierarchies of a mountinfo file (proc_pid_mountinfo(5)), in its order."""
    mounts = []
    for line in mountinfo.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        fields, filesystem = before.split(b" "), after.split(b" ")
        if not separator or filesystem[0] not in (b"cgroup", b"cgroup2"):
            continue
        root, directory = (os.fsdecode(_unescape(field)) for field in fields[3:5])
        if filesystem[0] == b"cgroup2":
            mounts.append(Mount(2, frozenset(), directory, root))
        else:
            names = frozenset(os.fsdecode(filesystem[-1]).split(",")) - {"rw", "ro", "xattr"}
            mounts.append(Mount(1, names, directory, root))
    return mounts


def read_mounts(proc_root: int) -> list[Mount]:
    """The hierarchies that this process sees."""
    return parse_mounts(proc.read_file(proc_root, "self/mountinfo") or b"")


def find_group(mounts: list[Mount], process: int, controller: str) -> tuple[Mount, str] | None:
    """The mount and directory of the group by which ``controller`` rules this process; None for the root group.

    A controller stands in exactly one hierarchy: its v1 mount if there is one, otherwise in v2.
    """
    content = proc.read_file(process, "cgroup")
    memberships = parse_memberships(content) if content else []
    for version in (1, 2):
        for mount in mounts:
            if mount.version != version or (version == 1 and controller not in mount.controllers):
                continue
            for membership in memberships:
                is_of_mount = controller in membership.controllers if version == 1 else not membership.controllers
                if not is_of_mount or membership.group == _ROOT_GROUP:
                    continue
                directory = mount.path_of(membership.group)
                if directory is not None:
                    return mount, directory
            if version == 1:
                return None  # the controller is mounted as v1 and the process stands in its root
    return None


def read_groups(mounts: list[Mount], process: int) -> tuple[str | None, list[str]]:
    """The path of the process's memory cgroup, as /proc/PID/cgroup names it, and the directories of its groups.

    The directories are those of its memory cgroup and of its v2 group, where they are seen and are no hierarchy's root.
    Where memory is ruled by no v1 hierarchy, its group is the one of v2. None: it stands in no group that is told.
    """
    content = proc.read_file(process, "cgroup")
    memberships = parse_memberships(content) if content else []
    of_memory = [each for each in memberships if "memory" in each.controllers]
    of_v2 = [each for each in memberships if not each.controllers]
    directories = []
    for version, found in ((1, of_memory), (2, of_v2)):
        for mount in mounts:
            if mount.version == version and found and (version == 2 or "memory" in mount.controllers):  # noqa: PLR2004 - the second version
                directory = mount.path_of(found[0].group)
                if directory is not None and found[0].group != _ROOT_GROUP:
                    directories.append(directory)
                    break
    chosen = of_memory or of_v2
    return (chosen[0].group if chosen else None), directories


def read_oom_group(mounts: list[Mount], process: int) -> str | None:
    """The outermost group around the process that is to be killed as a whole (v2: memory.oom.group 1), by its path."""
    found = find_group(mounts, process, "memory")
    if found is None or found[0].version != 2:  # noqa: PLR2004 - v1 has no such file
        return None
    mount, directory = found
    outermost = None
    while len(directory) > len(mount.directory):
        if _read_int(f"{directory}/memory.oom.group") == 1:
            outermost = directory
        directory = directory.rpartition("/")[0]
    return None if outermost is None else mount.root.rstrip("/") + outermost[len(mount.directory) :]


def has_trusted_mark(directory: str, name: str) -> bool:
    """Whether a group has the extended attribute ``user.NAME`` "1", and root or we ourselves own the group.

    The owner of a group can write to it: what an ordinary user says of his own group is no order to root.
    """
    try:
        return os.getxattr(directory, f"user.{name}") == b"1" and os.stat(directory).st_uid in (0, os.geteuid())
    except OSError:
        return False


def is_below_root(mounts: list[Mount], directory: str) -> bool:
    """Whether this names a group below a hierarchy's root, so that it does not stand for the whole machine."""
    parts = directory.split("/")
    is_plain = ".." not in parts and "." not in parts
    return is_plain and any(directory.rstrip("/").startswith(f"{mount.directory}/") for mount in mounts)


def kill_group(directory: str) -> None:
    """SIGKILL everybody in a group and below it, whoever it is (v2 cgroup.kill, Linux 5.14).

    Raises:
        OSError: ENOENT (v1, an older kernel), EOPNOTSUPP (a threaded group), EACCES.
    """
    _write(f"{directory}/cgroup.kill", b"1")


def reclaim_from_group(directory: str, wanted_bytes: int) -> None:
    """Move memory of a group out (v2 memory.reclaim, Linux 5.19); it may take seconds.

    Raises:
        OSError: EAGAIN (less than that could be moved out), ENOENT (v1, an older kernel), EACCES.
    """
    _write(f"{directory}/memory.reclaim", b"%d" % wanted_bytes)


def read_group_charge_bytes(directory: str) -> int | None:
    """What is charged to a memory cgroup, swap included where the kernel counts it; None when it is not told.

    v2: memory.current + memory.swap.current. v1: memory.memsw.usage_in_bytes, else memory.usage_in_bytes.
    """
    current = _read_int(f"{directory}/memory.current")
    if current is not None:
        return current + (_read_int(f"{directory}/memory.swap.current") or 0)
    with_swap = _read_int(f"{directory}/memory.memsw.usage_in_bytes")
    return with_swap if with_swap is not None else _read_int(f"{directory}/memory.usage_in_bytes")


def read_group_anon_bytes(directory: str) -> int | None:
    """Anonymous memory charged to a memory cgroup and all below it (memory.stat: total_rss or anon)."""
    try:
        with open(f"{directory}/memory.stat", "rb") as file:
            content = file.read()
    except OSError:
        return None
    table = dict(line.split(b" ", 1) for line in content.splitlines() if b" " in line)
    value = table.get(b"total_rss", table.get(b"anon"))
    return None if value is None else int(value)


def read_group_pids(directory: str) -> list[int]:
    """Every process in a group and in all groups below it."""
    pids: list[int] = []
    for path, _, files in os.walk(directory):
        if "cgroup.procs" in files:
            try:
                with open(f"{path}/cgroup.procs", "rb") as file:
                    pids += [int(word) for word in file.read().split()]
            except OSError:
                continue  # removed in mid-walk, or a threaded group, which lists no processes
    return pids


def read_group_pids_surely(directory: str) -> list[int]:
    """Every process in a group and below it.

    Raises:
        OSError: Some group did not tell. One that was removed meanwhile holds nobody and is passed over.
    """
    pids: list[int] = []
    for path, _, files in os.walk(directory, onerror=_raise_unless_gone):
        if "cgroup.procs" in files:
            try:
                with open(f"{path}/cgroup.procs", "rb") as file:
                    pids += [int(word) for word in file.read().split()]
            except OSError as error:
                _raise_unless_gone(error)
    return pids


def release_from_v1_holds(mounts: list[Mount], process: int, thread_ids: list[int]) -> list[str]:
    """Move the threads of a killed process out of a frozen or throttled v1 group; say what was done.

    Raises:
        OSError: EACCES or EPERM without the right to move it.
    """
    done = []
    for controller, is_held in (("freezer", _is_frozen), ("cpu", _is_throttled)):
        found = find_group(mounts, process, controller)
        if found is None or found[0].version != 1 or not is_held(found[1]):
            continue
        mount, directory = found
        tasks = os.open(f"{mount.directory}/tasks", os.O_WRONLY | os.O_CLOEXEC)
        try:
            for thread_id in thread_ids:
                _move_thread(tasks, thread_id)
        finally:
            os.close(tasks)
        done.append(f"moved out of {controller} group {directory[len(mount.directory) :]}")
    return done


def _raise_unless_gone(error: OSError) -> None:
    if error.errno not in (errno.ENOENT, errno.ENODEV):
        raise error


def _write(path: str, content: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, content)
    finally:
        os.close(file)


def _move_thread(tasks: int, thread_id: int) -> None:
    try:
        os.write(tasks, b"%d" % thread_id)
    except ProcessLookupError:
        return  # that thread has ended


def _is_frozen(directory: str) -> bool:
    return _read_word(f"{directory}/freezer.state") in (b"FROZEN", b"FREEZING")


def _is_throttled(directory: str) -> bool:
    quota = _read_int(f"{directory}/cpu.cfs_quota_us")
    return quota is not None and quota > 0


def _read_word(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read().strip()
    except OSError:
        return None


def _read_int(path: str) -> int | None:
    word = _read_word(path)
    try:
        return None if word is None else int(word)
    except ValueError:
        return None  # "max"


def _unescape(field: bytes) -> bytes:
    for code, char in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        field = field.replace(code, char)
    return field
