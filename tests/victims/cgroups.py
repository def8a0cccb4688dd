"""Where the control groups are mounted, and whether we may make one.

New groups go below the one that the tests run in, so that limits set on the run also hold for its victims.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Mount(NamedTuple):
    """One mount as /proc/self/mountinfo shows it."""

    root: str
    """What of the file system is mounted: "/" for all of it."""
    point: Path
    kind: str
    source: str
    super_options: tuple[str, ...]
    device_minor: int


def read_mounts() -> tuple[Mount, ...]:
    """The mounts of our own namespace."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        _, _, device, root, point, *_ = before.split()
        kind, source, super_options = after.split(" ", 2)
        mounts.append(
            Mount(
                root=root,
                point=Path(point.replace("\\040", " ")),
                kind=kind,
                source=source,
                super_options=tuple(super_options.split(",")),
                device_minor=int(device.partition(":")[2]),
            )
        )
    return tuple(mounts)


def _own_group(controller: str | None) -> str | None:
    """The path of our own group in the hierarchy of a v1 controller, or in v2 for None."""
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        number, controllers, path = line.split(":", 2)
        is_v2 = number == "0" and not controllers
        if (controller is None and is_v2) or (controller is not None and controller in controllers.split(",")):
            return path
    return None


def own_directory(controller: str | None) -> Path | None:
    """The directory of our own group: of a v1 controller by name, or of v2 for None; None if not mounted."""
    own = _own_group(controller)
    for mount in read_mounts():
        is_wanted = mount.kind == "cgroup2" if controller is None else mount.kind == "cgroup"
        if not is_wanted or (controller is not None and controller not in mount.super_options):
            continue
        if own is None or not own.startswith(mount.root.rstrip("/") + "/"):
            # Our group lies outside of what is mounted, as in some containers: use the top of what we have.
            return mount.point
        directory = mount.point / own.removeprefix(mount.root).lstrip("/")
        return directory if directory.is_dir() else mount.point
    return None


def is_v1_controller_of_kernel(controller: str) -> bool:
    """Whether the kernel has the controller, enabled, for v1 hierarchies."""
    try:
        lines = Path("/proc/cgroups").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return False
    return any(line.split()[0] == controller and line.split()[3] == "1" for line in lines if line)


def groups_named(prefix: str) -> tuple[Path, ...]:
    """Every group in any mounted hierarchy whose name begins so, the innermost first."""
    found: list[Path] = []
    for mount in read_mounts():
        if mount.kind in {"cgroup", "cgroup2"}:
            for directory, names, _ in os.walk(mount.point):
                found += [Path(directory, name) for name in names if name.startswith(prefix)]
    return tuple(sorted(found, key=lambda path: -len(path.parts)))
