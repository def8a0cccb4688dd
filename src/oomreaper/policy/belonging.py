"""Belonging: which systemd unit and which container a process is in, told by the path of its control group. Pure.

The path is the user's to shape below the point where a group is delegated to him: whoever may make groups can name
one ``sshd.service``. So both questions are answered from the outside in, as systemd itself answers the first
(sd_pid_get_unit(3), sd_pid_get_user_unit(3)): what a container's or a service's own root makes inside names nothing.

Nothing is unescaped: the names are those that ``systemctl`` and ``machinectl`` print and take.
"""

from __future__ import annotations

import re

_UNIT = re.compile(r".+\.(?:service|scope)\Z", re.DOTALL)
_USER_MANAGER = re.compile(r"user@[0-9]+\.service\Z")
# 64 hexadecimal digits, alone (cgroupfs drivers) or behind the engine's prefix: docker-ID.scope, crio-ID.scope,
# cri-containerd-ID.scope, libpod-ID.scope, POD.slice:cri-containerd:ID. A conmon watches its container from outside.
_CONTAINER_ID = re.compile(r"(?:(?:.*[-:])?(?<!conmon-))([0-9a-f]{64})(?:\.scope)?\Z", re.DOTALL)
_LXC_PREFIX = "lxc.payload."
_NSPAWN = re.compile(r"systemd-nspawn@(.+)\.service\Z", re.DOTALL)
_MACHINE = re.compile(r"machine-(.+)\.scope\Z", re.DOTALL)


def unit_of(cgroup: str) -> str | None:
    """The unit the system's own systemd knows it by; for a user's programs, the unit of his own manager. None: neither.

    Slices are skipped; the next part of the path is the unit. Below ``user@UID.service`` the same once more.
    """
    unit, below = _first_unit(_parts(cgroup))
    if unit is not None and _USER_MANAGER.match(unit):
        inner, _ = _first_unit(below)
        return inner if inner is not None else unit
    return unit


def container_of(cgroup: str) -> str | None:
    """The id (or, with LXC and systemd-nspawn, the name) of the outermost container it is in; None: in none."""
    parent = ""
    for part in _parts(cgroup):
        engine = _CONTAINER_ID.match(part)
        if engine is not None:
            return engine[1]
        if part.startswith(_LXC_PREFIX) and part != _LXC_PREFIX:
            return part.removeprefix(_LXC_PREFIX)
        if parent == "lxc":
            return part
        if parent == "machine.slice":
            machine = _MACHINE.match(part) or _NSPAWN.match(part)
            if machine is not None:
                return machine[1]
        parent = part
    return None


def is_within(cgroup: str, path: str) -> bool:
    """Whether ``cgroup`` is ``path`` or lies below it; by whole parts, so /a does not hold /ab."""
    path = path.rstrip("/")
    return cgroup.rstrip("/") == path or cgroup.startswith(path + "/")


def is_root(path: str) -> bool:
    """Whether it is the root of the tree as we see it: the machine, or our container."""
    return not path.strip("/")


def _parts(cgroup: str) -> list[str]:
    # ".." stands for groups above the root of our cgroup namespace.
    return [part for part in cgroup.split("/") if part not in {"", ".."}]


def _first_unit(parts: list[str]) -> tuple[str | None, list[str]]:
    """The first part that is no slice, if it is a unit; and what lies below it."""
    for position, part in enumerate(parts):
        if part.endswith(".slice"):
            continue
        if _UNIT.match(part):
            return part, parts[position + 1 :]
        return None, []
    return None, []
