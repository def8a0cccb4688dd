"""What happens here when memory runs short: PSI, swap, the kernel's own killer, core dumps."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from oomreaper.linux.features.calls import find_remedy
from oomreaper.linux.features.rights import CAP_SYS_RESOURCE
from oomreaper.linux.features.tree import RECORDED, format_kib, to_text
from oomreaper.model.features import Feature, FeatureState

if TYPE_CHECKING:
    from oomreaper.linux.features.interview import Interview
    from oomreaper.linux.features.rights import Standing
    from oomreaper.linux.features.tree import Tree

# The shortest window of a PSI trigger that any kernel takes (WINDOW_MIN_US).
_SHORTEST_WINDOW_MS = 500
_BOOT_REMEDY = "add psi=1 to the kernel's command line (the kernel must be built with CONFIG_PSI)"
_BLIND = "no alarm from the kernel: MemAvailable is looked at on a timer, and thrashing is not seen"


def describe_psi(interview: Interview, standing: Standing) -> Feature:
    """Judge pressure stall information: there, on, and how short a window a trigger may have here."""
    read, trigger = interview.answer_to("psi_read"), interview.answer_to("psi_trigger")
    if read.number == errno.ENOENT:
        return Feature("psi", FeatureState.MISSING, "no /proc/pressure", lost=_BLIND, remedy=_BOOT_REMEDY)
    if read.number == errno.EOPNOTSUPP:
        return Feature("psi", FeatureState.MISSING, "built in, but off", lost=_BLIND, remedy=_BOOT_REMEDY)
    if read.number != 0:
        remedy = find_remedy(read, standing, _BOOT_REMEDY)
        return Feature("psi", FeatureState.FORBIDDEN, str(read), lost=_BLIND, remedy=remedy)
    if trigger.word == RECORDED:
        return Feature("psi", FeatureState.AVAILABLE, "a recorded copy: triggers not tried")
    if trigger.number != 0:
        return Feature(
            "psi",
            FeatureState.LIMITED,
            f"averages only, no trigger ({trigger})",
            lost="no alarm from the kernel: the averages are looked at on a timer, and lag by about 2 s",
            remedy=standing.tell_how_to_get(CAP_SYS_RESOURCE),
        )
    window_ms = int(trigger.word)
    found = f"triggers with a window of {window_ms / 1000:g} s or more"
    if window_ms <= _SHORTEST_WINDOW_MS:
        return Feature("psi", FeatureState.AVAILABLE, found)
    return Feature(
        "psi",
        FeatureState.LIMITED,
        found,
        lost="a rule over a shorter time is evaluated over that window",
        remedy=standing.tell_how_to_get(CAP_SYS_RESOURCE),
    )


def describe_swap(tree: Tree) -> Feature:
    """Judge swap: none, on a disk, or compressed in memory (zram)."""
    name = "swap"
    content = tree.read_proc("swaps")
    if content is None:
        return Feature(name, FeatureState.MISSING, "not known: no /proc/swaps (a kernel without CONFIG_SWAP?)")
    areas = [fields for line in content.split(b"\n")[1:] if len(fields := line.split()) >= 4]  # noqa: PLR2004 - path, type, size, used
    if not areas:
        return Feature(
            name,
            FeatureState.MISSING,
            "none",
            lost="shortages come without warning, and rules on swap_free have nothing to look at",
            remedy="optional, compressed: modprobe zram; dev=$(zramctl -f -s 4G) && mkswap $dev && swapon $dev",
        )
    found = [_tell_of_area(*fields[:4]) for fields in areas]
    if (tree.read_sys("module/zswap/parameters/enabled") or b"N").strip() == b"Y":
        found.append("zswap on")
    return Feature(name, FeatureState.AVAILABLE, ", ".join(found))


def _tell_of_area(path: bytes, kind: bytes, size_kib: bytes, used_kib: bytes) -> str:
    medium = "zram" if os.path.basename(path).startswith(b"zram") else to_text(kind)
    return f"{medium} {format_kib(int(size_kib))} ({format_kib(int(used_kib))} used)"


def describe_oom_killer(tree: Tree) -> Feature:
    """Judge what the kernel's own killer, which stays in force beside us, is set to do."""
    name = "oom_killer"
    panic, allocating, overcommit = (
        to_text(content).strip() if content is not None else None
        for content in (
            tree.read_proc(f"sys/vm/{setting}")
            for setting in ("panic_on_oom", "oom_kill_allocating_task", "overcommit_memory")
        )
    )
    if panic is None:
        return Feature(name, FeatureState.MISSING, "not known: no /proc/sys/vm/panic_on_oom")
    if panic != "0":
        return Feature(
            name,
            FeatureState.LIMITED,
            f"panic_on_oom={panic}",
            lost="if the kernel runs out before we act, the machine panics and nothing is killed",
            remedy="sysctl vm.panic_on_oom=0",
        )
    found = "in force beside us"
    if allocating not in (None, "0"):
        found += ", kills whoever allocates"
    if overcommit == "2":
        found += ", strict overcommit: allocations fail first"
    return Feature(name, FeatureState.AVAILABLE, found)


def describe_core_pattern(tree: Tree) -> Feature:
    """Show where core dumps go: a victim in mid-dump cannot be reaped until that ends or is cut short."""
    content = tree.read_proc("sys/kernel/core_pattern")
    if content is None:
        return Feature("core_pattern", FeatureState.MISSING, "not known: no /proc/sys/kernel/core_pattern")
    pattern = to_text(content)
    if pattern.startswith("|"):
        return Feature("core_pattern", FeatureState.AVAILABLE, f"to a program: {pattern[1:].split(' ')[0]}")
    return Feature("core_pattern", FeatureState.AVAILABLE, f"to a file: {pattern}" if pattern else "no dumps")
