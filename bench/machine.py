"""What the bench runs on, and whether it is calm there."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from oomreaper import __version__
from oomreaper.linux.features import probe_features

ROOT = Path(__file__).resolve().parent.parent
# Above this per cent of the CPUs' time somebody else is at work as well, and the figures are his too.
CALM_BUSY_PERCENT = 3.0
_LOOK_INTERVAL_S = 2.0
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


class CpuTime(NamedTuple):
    """Ticks of all CPUs since boot; source: the first line of /proc/stat."""

    spent: int
    idle: int
    stolen: int

    @classmethod
    def read(cls) -> CpuTime:
        """The ticks now."""
        user, nice, system, idle, iowait, irq, softirq, stolen, *_ = map(int, _first_line("/proc/stat").split()[1:])
        return cls(user + nice + system + irq + softirq + stolen, idle + iowait, stolen)

    def busy_percent_since(self, earlier: CpuTime) -> float:
        """How much of the time was spent, by whomever."""
        spent, idle = self.spent - earlier.spent, self.idle - earlier.idle
        return 100 * spent / max(1, spent + idle)

    def stolen_percent_since(self, earlier: CpuTime) -> float:
        """How much of the time the hypervisor gave to others while somebody here wanted it."""
        spent, idle = self.spent - earlier.spent, self.idle - earlier.idle
        return 100 * (self.stolen - earlier.stolen) / max(1, spent + idle)


def wait_until_calm(limit_s: float) -> float:
    """Wait until nobody else is at work, or the time is over; how busy the CPUs were at the last look, in per cent.

    The load average will not do: it remembers our own victims for minutes, those in D among them.
    """
    deadline_s = time.monotonic() + limit_s
    while True:
        before = CpuTime.read()
        time.sleep(_LOOK_INTERVAL_S)
        busy_percent = CpuTime.read().busy_percent_since(before)
        if busy_percent < CALM_BUSY_PERCENT or time.monotonic() >= deadline_s:
            return round(busy_percent, 1)


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
