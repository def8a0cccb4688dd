"""Who is never killed, and why. Pure.

Each refusal names its reason, as the kernel's own OOM killer does in oom_unkillable_task() and
__oom_kill_process(), and says what the user can do when he meant it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from oomreaper.model.process import Process, Scouting, Sharer

INIT_PID = 1
OOM_SCORE_ADJ_NEVER = -1000  # OOM_SCORE_ADJ_MIN, include/uapi/linux/oom.h
# pid_max can be no higher: PID_MAX_LIMIT, include/linux/threads.h.
HIGHEST_PID = 4 * 1024 * 1024


class Ourselves(NamedTuple):
    """Who asks: the pids that are its own, workers included, and the group and session it stands in (0: unseen).

    ``ancestors`` are its parent, that one's parent and so on: to end one of them usually ends us in mid-work.
    """

    pids: frozenset[int]
    ancestors: frozenset[int]
    process_group: int
    session: int


class Refusal(NamedTuple):
    """Why a target is not signalled. ``needs_permission``: other rights would change the answer."""

    reason: str
    needs_permission: bool = False


def refuse_pid(pid: int, ourselves: Ourselves) -> Refusal | None:
    """What can be refused by the number alone, before anything is opened; None when nothing speaks against it."""
    if pid < 0:
        return Refusal("a negative pid names a process group; name the processes themselves")
    if pid == 0:
        return Refusal("pid 0 names the caller's own process group")
    if pid == INIT_PID:
        return Refusal("pid 1 is init; the machine (or the container) ends with it")
    if pid > HIGHEST_PID:
        return Refusal(f"no process can have a pid above {HIGHEST_PID}")
    if pid in ourselves.pids:
        return Refusal("that is oomreaper itself")
    if pid in ourselves.ancestors:
        return Refusal("oomreaper descends from it and would be taken along; start oomreaper from somewhere else")
    if pid == ourselves.process_group:
        return Refusal("it leads the process group of oomreaper and would take it along")
    if pid == ourselves.session:
        return Refusal("it leads the session of oomreaper and would take it along")
    return None


def refuse_process(scouting: Scouting, ourselves: Ourselves) -> Refusal | None:
    """What is refused by what the process is, and by who shares its memory; None when it may be killed."""
    process = scouting.process
    by_pid = refuse_pid(process.identity.pid, ourselves)
    if by_pid is not None:
        return by_pid
    if process.is_kernel_thread:
        return Refusal("it is a kernel thread: it has no memory of its own and cannot be killed")
    own = _refuse_life(process)
    if own is not None:
        return own
    for sharer in scouting.sharers:
        refusal = refuse_sharer(sharer, ourselves)
        if refusal is not None:
            return Refusal(
                f"it shares its memory with process {sharer.identity.pid}, which is protected: {refusal.reason}",
                needs_permission=refusal.needs_permission,
            )
    return None


def refuse_sharer(sharer: Sharer, ourselves: Ourselves) -> Refusal | None:
    """Whether a process that shares the victim's memory, and so would die with it, is protected."""
    return refuse_pid(sharer.identity.pid, ourselves) or _refuse_life(sharer)


def _refuse_life(process: Process | Sharer) -> Refusal | None:
    if process.oom_score_adj == OOM_SCORE_ADJ_NEVER:
        pid = process.identity.pid
        return Refusal(
            f"its oom_score_adj is {OOM_SCORE_ADJ_NEVER}, which means never; if you mean it: "
            f"echo 0 > /proc/{pid}/oom_score_adj"
        )
    if process.signal_errno == errno.EPERM:
        return Refusal("it is somebody else's, and you have no right to signal it; ask as root", needs_permission=True)
    return None
