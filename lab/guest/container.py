"""A container of runc in which one of three processes leaks: ``container.py CGROUP MIB_PER_S``.

It writes the bundle (the root file system lies in the image) and becomes ``runc run``. The container has a control
group at that path, with the limit that the scenario has put there, and no network, no user and no terminal of its own:
what is of interest is who is killed in it, and who is not.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

_ROOT = "/usr/lib/oomreaper-lab/container/rootfs"
# In the container the program may run: its control group bounds it.
_SCRIPT = (
    "export LAB_BOUNDED=1; W=/bin/workload; "
    "LAB_NAME=pod-helper $W hold --mib 20 & LAB_NAME=pod-leak $W leak --mib-per-s {rate} & "
    "LAB_NAME=pod-init exec $W hold --mib 10"
)
_NAMESPACES = ("pid", "ipc", "uts", "mount", "network")


def make_config(cgroup: str, rate: str) -> dict[str, object]:
    """The bundle's config.json, after the OCI runtime specification."""
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": ["/bin/sh", "-c", _SCRIPT.format(rate=rate)],
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": True,
        },
        "root": {"path": _ROOT, "readonly": True},
        "hostname": "pod",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
        },
    }


def main(arguments: list[str]) -> None:
    """Become runc."""
    cgroup, rate = arguments
    bundle = tempfile.mkdtemp(prefix="lab-bundle-")
    with open(f"{bundle}/config.json", "w", encoding="ascii") as file:
        json.dump(make_config(cgroup, rate), file)
    os.execvp("runc", ["runc", "run", "--bundle", bundle, "lab-pod"])


if __name__ == "__main__":
    main(sys.argv[1:])
