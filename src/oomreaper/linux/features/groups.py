"""Control groups: which version, which controllers, and whether a victim can be helped out of them.

Which controllers a machine offers is read from what is mounted and from cgroup.controllers. The freezer of
version 2 is no controller: it is there when a group below the root has a cgroup.freeze.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from oomreaper.linux import cgroup
from oomreaper.model.features import Feature, FeatureState

if TYPE_CHECKING:
    from oomreaper.linux.features.tree import Tree

_NAME = "cgroup"
_LOST_WITHOUT = {
    "memory": "what a group uses and may use is not seen: no rule can have a scope",
    "freezer": "a victim that somebody else froze cannot be thawed",
    "cpu": "a victim that somebody else throttles cannot be relieved",
}
_WANTED = tuple(_LOST_WITHOUT)


def describe_cgroup(tree: Tree) -> Feature:
    """Judge the hierarchies: v1, v2 or both, the controllers that matter, and whether we may write there."""
    mounts = cgroup.parse_mounts(tree.read_proc("self/mountinfo") or b"")
    if not mounts:
        return Feature(
            _NAME,
            FeatureState.MISSING,
            "none mounted",
            lost="; ".join(_LOST_WITHOUT.values()),
            remedy="mount -t cgroup2 none /sys/fs/cgroup",
        )
    controllers_by_version: dict[int, set[str]] = {}
    for mount in mounts:
        controllers_by_version.setdefault(mount.version, set()).update(_find_controllers(tree, mount))
    # A v1 mount with nothing of ours (name=systemd beside v2) does not make a machine hybrid.
    if len(controllers_by_version) > 1 and not controllers_by_version[1]:
        del controllers_by_version[1]
    kind = "hybrid: " if len(controllers_by_version) > 1 else ""
    found = kind + "; ".join(
        f"v{version} {' '.join(name for name in _WANTED if name in controllers) or 'bare'}"
        for version, controllers in sorted(controllers_by_version.items())
    )
    present = set().union(*controllers_by_version.values())
    absent = [name for name in _WANTED if name not in present]
    if absent:
        return Feature(
            _NAME,
            FeatureState.LIMITED,
            found,
            lost="; ".join(_LOST_WITHOUT[name] for name in absent),
            remedy=_tell_how_to_get(tree, absent),
        )
    if not any(_is_writable(tree, mount) for mount in mounts if _find_controllers(tree, mount)):
        return Feature(
            _NAME,
            FeatureState.LIMITED,
            f"{found}; read-only for us",
            lost="a victim that is frozen or throttled cannot be helped, and stays until that ends",
            remedy="run as root; in the unit: ProtectControlGroups=no; docker run --privileged",
        )
    return Feature(_NAME, FeatureState.AVAILABLE, found)


def find_groups_without_realtime(tree: Tree) -> list[str]:
    """Find the v1 cpu groups without a real-time budget: our own and those above it, outermost first.

    Their control files have to be written in this order: a group cannot be given what the one above it lacks.
    None where real-time time is not dealt out by group (v2, or a kernel without RT_GROUP_SCHED).
    """
    mounts = cgroup.parse_mounts(tree.read_proc("self/mountinfo") or b"")
    for membership in cgroup.parse_memberships(tree.read_proc("self/cgroup") or b""):
        for mount in mounts:
            if mount.version == 1 and "cpu" in membership.controllers & mount.controllers:
                return _walk_without_budget(tree, mount, membership.group)
    return []


def _walk_without_budget(tree: Tree, mount: cgroup.Mount, group: str) -> list[str]:
    directory = mount.path_of(group)
    found: list[str] = []
    while directory is not None and directory.startswith(mount.directory + "/"):
        directory = directory.rstrip("/")
        try:
            with open(f"{tree.locate(directory)}/cpu.rt_runtime_us", "rb") as file:
                budget_us = int(file.read())
        except (OSError, ValueError):
            break
        if budget_us == 0:
            found.insert(0, directory)
        directory = os.path.dirname(directory)
    return found


def _find_controllers(tree: Tree, mount: cgroup.Mount) -> set[str]:
    if mount.version == 1:
        return set(_WANTED) & mount.controllers
    directory = tree.locate(mount.directory)
    try:
        with open(f"{directory}/cgroup.controllers", "rb") as file:
            names = {os.fsdecode(word) for word in file.read().split()}
        folders = [directory, *(entry.path for entry in os.scandir(directory) if entry.is_dir())]
    except OSError:
        return set()
    if any(os.path.exists(f"{folder}/cgroup.freeze") for folder in folders):
        names.add("freezer")
    return names & set(_WANTED)


def _is_writable(tree: Tree, mount: cgroup.Mount) -> bool:
    # With the rights in force, not those of the real user; a read-only mount answers no to root too.
    return os.access(tree.locate(mount.directory), os.W_OK, effective_ids=True)


def _tell_how_to_get(tree: Tree, absent: list[str]) -> str:
    """Tell a controller switched off at boot, which /proc/cgroups shows, from one not mounted for us."""
    is_enabled: dict[str, bool] = {}
    for line in (tree.read_proc("cgroups") or b"").split(b"\n")[1:]:
        fields = line.split()
        if len(fields) == 4:  # noqa: PLR2004 - name, hierarchy, number of groups, enabled
            is_enabled[os.fsdecode(fields[0])] = fields[3] == b"1"
    disabled = [name for name in absent if not is_enabled.get(name, True)]
    if disabled:
        return " ".join(f"cgroup_enable={name}" for name in disabled) + " on the kernel's command line"
    return "mount the hierarchy that has it, or run on the host: docker run --cgroupns=host"
