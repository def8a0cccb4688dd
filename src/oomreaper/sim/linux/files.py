"""The files of /proc and of the control groups, as text: what the kernel writes, byte for byte where we read it.

Reading ``stat``, ``statm`` and ``status`` takes a reference to the address space for a moment; whoever reads while the
process drops its own does the tear-down. ``cmdline`` and ``maps`` wait for mmap_lock as well.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from oomreaper.sim.memory import Kind

if TYPE_CHECKING:
    from oomreaper.sim.engine import Steps
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.tasks import Process, Thread

_KIB = 1024
_PF_KTHREAD = 0x00200000
CGROUPS = "/sys/fs/cgroup"
_CONTROLLERS = ("memory", "freezer", "cpu")
MOUNTINFO = "".join(
    f"{30 + number} 25 0:{30 + number} / {CGROUPS}/{name} rw,relatime - cgroup cgroup rw,{name}\n"
    for number, name in enumerate(_CONTROLLERS)
).encode()


def _missing(number: int, name: str) -> OSError:
    # Made of OSError itself: only then it is a ProcessLookupError or FileNotFoundError, as the real one.
    return OSError(number, os.strerror(number), name)


def read_task_file(machine: Machine, reader: Thread, process: Process, thread: Thread, name: str) -> Steps:
    """The content of a file of a task; a generator.

    Raises:
        OSError: ESRCH when it has gone.
    """
    if process.is_waited or (thread.is_over and thread is not process.threads[0]):
        raise _missing(errno.ESRCH, name)
    match name:
        case "stat" | "status" | "statm":
            mm = thread.mm
            if mm is None or not mm.get_not_zero():
                return _text(machine, process, thread, name)
            try:
                yield
                content = _text(machine, process, thread, name)
            finally:
                yield from machine.mmput(mm, reader.actor)
            return content
        case "cmdline" | "maps":
            mm = thread.mm
            if mm is None or not mm.get_not_zero():
                return b""
            try:
                yield from mm.lock.read(reader.actor, is_killable=True)
                yield
                mm.lock.unlock_read(reader.actor)
            finally:
                yield from machine.mmput(mm, reader.actor)
            return process.comm + b"\0" if name == "cmdline" else _maps(machine, thread)
        case _:
            return _text(machine, process, thread, name)


def _text(machine: Machine, process: Process, thread: Thread, name: str) -> bytes:
    if name == "stat":
        return _stat(process, thread)
    if name == "status":
        return _status(machine, process, thread)
    if name == "statm":
        mm, page = thread.mm, machine.parameters.page_bytes
        if mm is None:
            return b"0 0 0 0 0 0 0\n"
        shared = mm.file_pages + mm.shmem_pages
        return b"%d %d %d 0 0 0 0\n" % (mm.anon_pages + shared, mm.anon_pages + shared, shared) if page else b""
    if name == "oom_score_adj":
        return b"%d\n" % process.oom_score_adj
    if name == "comm":
        return process.comm + b"\n"
    if name == "cgroup":
        return _cgroup(process, thread)
    if name == "stack":
        return "".join(f"[<0>] {frame}\n" for frame in thread.stack).encode()
    if name == "wchan":
        return (thread.stack[0] if thread.stack and thread.letter != "R" else "0").encode()
    if name == "syscall":
        return b"running\n" if thread.letter == "R" else b"0 0x0 0x0\n"
    raise _missing(errno.ENOENT, name)


def _count_threads(process: Process) -> int:
    """As the kernel counts them: a leader that has ended stays until the last thread has."""
    is_led_by_zombie = process.threads[0].is_over and not process.is_dead
    return max(1, process.live_threads + is_led_by_zombie)


def _stat(process: Process, thread: Thread) -> bytes:
    flags = _PF_KTHREAD if process.is_kernel_thread else 0
    parent = 0 if process.parent is None else process.parent.pid
    return b"%d (%s) %s %d %d %d 0 -1 %d 0 0 0 0 0 0 0 0 20 0 %d 0 %d 0 0\n" % (
        thread.tid,
        process.comm,
        thread.letter.encode(),
        parent,
        process.process_group,
        process.session,
        flags,
        _count_threads(process),
        process.start_ticks,
    )


def _status(machine: Machine, process: Process, thread: Thread) -> bytes:
    head = b"Name:\t%s\nState:\t%s\nTgid:\t%d\nPid:\t%d\nUid:\t%d\t%d\t%d\t%d\n" % (
        *(process.comm.replace(b"\\", b"\\\\").replace(b"\n", b"\\n"), thread.letter.encode()),
        *(process.pid, thread.tid),
        *(process.uid, process.uid, process.uid, process.uid),
    )
    mm = thread.mm
    if mm is None:
        return head + b"Threads:\t%d\n" % _count_threads(process)
    kib = machine.parameters.page_bytes // _KIB
    return (
        head
        + b"RssAnon:\t%d kB\nRssFile:\t%d kB\nRssShmem:\t%d kB\nVmPTE:\t0 kB\nVmSwap:\t%d kB\nCoreDumping:\t%d\n"
        % (
            mm.anon_pages * kib,
            mm.file_pages * kib,
            mm.shmem_pages * kib,
            mm.swap_pages * kib,
            process.is_dumping,
        )
    )


def _cgroup(process: Process, thread: Thread) -> bytes:
    memory = "/" if process.group is None else process.group.path
    freezer = "/" if thread.freezer is None else thread.freezer.path
    cpu = "/" if thread.cpu_group is None else thread.cpu_group.path
    return f"3:memory:{memory}\n2:freezer:{freezer}\n1:cpu:{cpu}\n0::/\n".encode()


def _maps(machine: Machine, thread: Thread) -> bytes:
    mm = thread.mm
    lines = []
    start = 0x10000000
    for area in [] if mm is None else mm.areas:
        end = start + max(1, area.resident + area.swapped) * machine.parameters.page_bytes
        sharing = "s" if area.kind is Kind.SHARED else "p"
        lines.append(f"{start:x}-{end:x} rw-{sharing} 00000000 00:00 0 \n")
        start = end
    return "".join(lines).encode()


def meminfo(machine: Machine) -> bytes:
    """/proc/meminfo."""
    kib = machine.parameters.page_bytes // _KIB
    pages = machine.allocator
    fields = {
        "MemTotal": pages.total,
        "MemFree": pages.free,
        "MemAvailable": pages.available,
        "Cached": pages.cache + pages.mapped_file + pages.shmem,
        "SwapTotal": pages.swap_total,
        "SwapFree": pages.swap_free,
        "AnonPages": pages.anon,
        "Shmem": pages.shmem,
    }
    return "".join(f"{name}: {count * kib} kB\n" for name, count in fields.items()).encode()


def read_group_file(machine: Machine, controller: str, path: str, name: str) -> bytes:
    """The content of a file of a control group.

    Raises:
        OSError: ENOENT: v1 has no such file, or the group has gone.
    """
    page = machine.parameters.page_bytes
    if controller == "memory" and path in machine.groups:
        group = machine.groups[path]
        match name:
            case "memory.usage_in_bytes" | "memory.memsw.usage_in_bytes":
                return b"%d\n" % (group.charged * page)
            case "memory.stat":
                return b"total_rss %d\n" % (group.anon * page)
            case "cgroup.procs":
                return b"".join(b"%d\n" % process.pid for process in group.members)
    if controller == "freezer" and path in machine.freezers and name == "freezer.state":
        return b"FROZEN\n" if machine.freezers[path].is_frozen else b"THAWED\n"
    if controller == "cpu" and path in machine.cpu_groups and name == "cpu.cfs_quota_us":
        return b"%d\n" % (machine.cpu_groups[path].quota_ns // 1000)
    raise _missing(errno.ENOENT, f"{path}/{name}")
