"""What the bench runs on, and whether it is calm there."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from oomreaper import __version__
from oomreaper.linux.features import probe_features

ROOT = Path(__file__).resolve().parent.parent
# Above this somebody else is at work as well, and the figures are his too.
CALM_LOAD = 0.7
_LOOK_INTERVAL_S = 5.0
_MIB = 1 << 20


def read_facts() -> dict[str, Any]:
    """What does not change during a run: results from two sets of facts are never mixed."""
    meminfo = _fields("/proc/meminfo")
    return {
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _fields("/proc/cpuinfo").get("model name", "unknown"),
        "is_virtual": "hypervisor" in _fields("/proc/cpuinfo").get("flags", ""),
        "cpus": len(os.sched_getaffinity(0)),
        "memory_mib": int(meminfo["MemTotal"].split()[0]) * 1024 // _MIB,
        "swap_mib": int(meminfo["SwapTotal"].split()[0]) * 1024 // _MIB,
        "transparent_huge_pages": _chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
        "preemption": _first_line("/sys/kernel/debug/sched/preempt") or "not shown",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": _first_output("cc", "--version"),
        "is_root": os.geteuid() == 0,
        "can_reap": probe_features().can_reap,
        "oomreaper": __version__,
    }


def read_commit() -> str:
    """The commit that was measured, with a mark when the tree differs from it."""
    commit = _first_output("git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD") or "unknown"
    changed = _first_output("git", "-C", str(ROOT), "status", "--porcelain", "--", "src")
    return f"{commit} with changes" if changed else commit


def read_load() -> float:
    """How many tasks ran or stood in D, averaged over the last minute."""
    return os.getloadavg()[0]


def wait_until_calm(limit_s: float) -> float:
    """Wait until nobody else is at work, or the time is over; the load then."""
    deadline_s = time.monotonic() + limit_s
    while read_load() >= CALM_LOAD and time.monotonic() < deadline_s:
        time.sleep(_LOOK_INTERVAL_S)
    return read_load()


def _fields(path: str) -> dict[str, str]:
    """The first value of each "name: value" of a file of /proc."""
    fields: dict[str, str] = {}
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def _chosen(path: str) -> str:
    line = _first_line(path)
    return line.partition("[")[2].partition("]")[0] if "[" in line else line or "none"


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace").splitlines()[0].strip()
    except (OSError, IndexError):
        return ""


def _first_output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.partition("\n")[0].strip()
