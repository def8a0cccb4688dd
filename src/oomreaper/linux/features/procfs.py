"""/proc itself: mounted, of our own pid namespace, complete, and showing everybody.

Everything that is known of a process comes from here, so what hides here hides victims. And a /proc of
another pid namespace lies: its numbers name other processes to pidfd_open.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from oomreaper.linux.features.rights import CAP_SYS_PTRACE
from oomreaper.linux.features.tree import to_text
from oomreaper.model.features import Feature, FeatureState

if TYPE_CHECKING:
    from oomreaper.linux.features.rights import Standing
    from oomreaper.linux.features.tree import Tree

_NAME = "proc"
# proc(5). The numbers are what kernels before 5.8 show.
_HIDING = frozenset({"1", "2", "4", "noaccess", "invisible", "ptraceable"})
# Which of them pay no heed to gid=.
_HIDING_FROM_GROUP_TOO = frozenset({"4", "ptraceable"})


def describe_proc(tree: Tree, standing: Standing) -> Feature:
    """Whether /proc can be relied upon, the first trouble first."""
    if tree.read_proc("self/stat") is None:
        return Feature(
            _NAME,
            FeatureState.MISSING,
            f"{tree.proc_root} shows no processes",
            lost="no process can be identified, so none is killed",
            remedy=f"mount -t proc proc {tree.proc_root}",
            is_needed=True,
        )
    if standing.pid_levels is not None and standing.pid_levels > 1:
        return Feature(
            _NAME,
            FeatureState.FORBIDDEN,
            f"{tree.proc_root} belongs to an outer pid namespace",
            lost="its numbers name other processes here: killing by them would kill wrongly",
            remedy=f"mount -t proc proc {tree.proc_root} in here, or run outside: docker run --pid=host",
            is_needed=True,
        )
    options = parse_mount_options(tree.read_proc("self/mountinfo") or b"", tree.proc_root)
    if options.get("subset") == "pid" or tree.read_proc("meminfo") is None:
        return Feature(
            _NAME,
            FeatureState.FORBIDDEN,
            "no meminfo (subset=pid)",
            lost="how much memory there is, and whether it came back, cannot be seen",
            remedy=f"in the unit: ProcSubset=all; elsewhere: mount -t proc proc {tree.proc_root}",
            is_needed=True,
        )
    hidepid = options.get("hidepid", "off")
    if hidepid in _HIDING and not _sees_through(standing, hidepid, options.get("gid", "0")):
        return Feature(
            _NAME,
            FeatureState.LIMITED,
            f"hidepid={hidepid}",
            lost="other users' processes are not seen, so they are no victims, however large",
            remedy=standing.tell_how_to_get(CAP_SYS_PTRACE) + f"; or mount -o remount,hidepid=0 {tree.proc_root}",
            is_needed=True,
        )
    found = "mounted" if hidepid not in _HIDING else f"hidepid={hidepid}, which does not apply to us"
    return Feature(_NAME, FeatureState.AVAILABLE, found, is_needed=True)


def parse_mount_options(mountinfo: bytes, proc_root: str) -> dict[str, str]:
    """Parse the procfs options of the /proc in use: the last mount at ``proc_root``, else at /proc."""
    options_by_directory: dict[str, dict[str, str]] = {}
    for line in mountinfo.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        filesystem = after.split(b" ")
        if separator and filesystem[0] == b"proc":
            pairs = (option.partition("=") for option in to_text(filesystem[-1]).split(","))
            options_by_directory[to_text(before.split(b" ")[4])] = {key: value for key, _, value in pairs}
    return options_by_directory.get(os.path.realpath(proc_root)) or options_by_directory.get("/proc") or {}


def _sees_through(standing: Standing, hidepid: str, group: str) -> bool:
    is_in_group = group.isdecimal() and int(group) in standing.group_ids
    return standing.has(CAP_SYS_PTRACE) or (is_in_group and hidepid not in _HIDING_FROM_GROUP_TOO)
