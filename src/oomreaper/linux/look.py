"""Looking at a victim: what it is, who shares its memory, what is charged for it, where its threads stand.

Everything here may block on a lock that the victim holds, so it runs in workers only.

Sharers are found with kcmp(2), which compares the address spaces of two *threads*. A thread that has ended has none,
and two that have none compare equal: so a match counts only when the other side is seen to have an address space.
Otherwise a zombie victim would "share" with every kernel thread and every zombie leader on the machine.
"""

from __future__ import annotations

import errno
import os
import select

from oomreaper.linux import cgroup, proc, syscalls
from oomreaper.model.memory import ChargedMemory, VictimMemory
from oomreaper.model.process import Process, Scouting, Sharer, ThreadReport

_KTHREADD_PID = 2
# The report on a victim that was given up: enough threads to see what they wait for.
_REPORTED_THREADS = 16
_REPORTED_FRAMES = 12
# An address space of this size that is added up twice hides an orphan that is worth a look (half of 32 MiB). Few
# processes are as large, and kcmp is asked only of those that hold about as much as another.
_LARGE_BYTES = 8 << 20
# What is read of one address space twice within some milliseconds is as good as equal; an eighth is a fast grower's.
_ALIKE_PART = 8
# What says nothing of the one who was to be looked at.
_SHORTAGES = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# Kernel functions in the stack of a task that stands in a call on another process's memory.
_REMOTE_ACCESS_FRAMES = (b"process_vm_rw", b"mem_rw", b"access_remote_vm", b"__access_remote_vm")


def scout(proc_root: int, process: int, pidfd: int, mounts: list[cgroup.Mount]) -> Scouting | None:
    """All there is to know of a target before the decision; None when it has gone.

    ``process`` is its /proc directory, opened after ``pidfd``: when the pidfd still answers at the end,
    both name one life.
    """
    stat = proc.read_stat(process)
    status = proc.read_status(process)
    if stat is None or status is None:
        return None
    memory = proc.read_memory(process)
    sharers: tuple[Sharer, ...] = ()
    can_compare = True
    if memory is not None and not stat.is_kernel_thread:
        sharers, can_compare = find_sharers(proc_root, process, stat.pid)
    is_dead = has_ended(pidfd)
    memcg_directory = _memcg_directory(mounts, process)
    charged = read_charged(proc_root, memcg_directory, deep=is_dead)
    signal_errno = errno_of_signal(pidfd)
    if signal_errno is None:
        return None
    return Scouting(
        process=Process(
            identity=stat.identity,
            comm=stat.comm,
            state=stat.state,
            parent_pid=stat.ppid,
            process_group=stat.pgrp,
            session=stat.session,
            uid=status.uid,
            thread_count=stat.num_threads,
            oom_score_adj=proc.read_oom_score_adj(process),
            is_kernel_thread=stat.is_kernel_thread,
            is_dumping_core=status.is_dumping_core,
            is_dead=is_dead,
            signal_errno=signal_errno,
        ),
        memory=memory,
        charged=charged,
        sharers=sharers,
        can_compare=can_compare,
        holders=find_holders(proc_root, stat.pid) if is_dead else (),
    )


def find_sharers(proc_root: int, process: int, pid: int) -> tuple[tuple[Sharer, ...], bool]:
    """Every other process on the victim's address space, and whether this kernel and these rights can tell."""
    sharers: tuple[Sharer, ...] = ()
    thread = find_thread_with_memory(process)
    while thread is not None:
        try:
            syscalls.is_same_mm(thread, os.getpid())
        except ProcessLookupError:
            pass
        except OSError:
            return (), False  # ENOSYS, or EPERM: somebody else's
        else:
            sharers = _find_sharers_of(proc_root, thread, pid)
        compared, thread = thread, find_thread_with_memory(process)
        if compared == thread:
            break  # else it ended in between, and who was compared with it since looked like a stranger
    return sharers, True


def _find_sharers_of(proc_root: int, victim_thread: int, pid: int) -> tuple[Sharer, ...]:
    sharers = []
    kthreadd = _KTHREADD_PID if _sees_whole_machine(proc_root) else None
    for other_pid in proc.read_pids(proc_root):
        if other_pid == pid:
            continue
        is_sharer = shares_memory(proc_root, victim_thread, other_pid)
        if not is_sharer and _leads_no_memory(other_pid, kthreadd):
            is_sharer = process_shares_memory(proc_root, victim_thread, other_pid)
        if is_sharer:
            sharer = _read_sharer(proc_root, other_pid)
            if sharer is not None:
                sharers.append(sharer)
    return tuple(sharers)


def shares_memory(proc_root: int, victim_thread: int, other_pid: int) -> bool:
    """Whether ``other_pid`` is seen to have an address space and it is that of ``victim_thread``."""
    try:
        is_same = syscalls.is_same_mm(victim_thread, other_pid)
    except OSError:
        return False  # it has gone, or is not ours to look at
    if is_same:
        status = _read_status_of(proc_root, other_pid)
        return status is not None and status.memory is not None
    return False


def process_shares_memory(proc_root: int, victim_thread: int, pid: int) -> bool:
    """Whether it shares the memory of ``victim_thread``: through its leader or, if that has ended, a thread."""
    if shares_memory(proc_root, victim_thread, pid):
        return True
    other = proc.open_process(proc_root, pid)
    if other is None:
        return False
    try:
        stat = proc.read_stat(other)
        if stat is None or stat.num_threads == 1:
            return False
        status = proc.read_status(other)
        if status is None or status.memory is not None:
            return False  # the leader has an address space, and it is another one
        return any(shares_memory(proc_root, victim_thread, thread) for thread in proc.read_thread_ids(other))
    finally:
        os.close(other)


def _leads_no_memory(pid: int, kthreadd: int | None) -> bool:
    """Whether this leader may have no address space: as kernel threads have none, kcmp calls the two equal.

    That spares a look into /proc for everybody else; where it cannot be asked so, /proc is asked of all.
    """
    if kthreadd is None:
        return True
    try:
        return syscalls.is_same_mm(kthreadd, pid)
    except ProcessLookupError:
        return False
    except OSError:
        return True


def find_thread_with_memory(process: int) -> int | None:
    """A thread of the process that still has its address space; the leader if it can be."""
    for thread_id in proc.read_thread_ids(process):
        content = proc.read_file(process, f"task/{thread_id}/status")
        if content and proc.parse_status(content).memory is not None:
            return thread_id
    return None


def read_charged(proc_root: int, memcg_directory: str | None, *, deep: bool = False) -> ChargedMemory:
    """What is charged for a victim now; ``deep`` also adds up what living processes own, to find orphans.

    Pages that processes share since a fork are added up once for each, so orphans are found too small, never too large.
    """
    meminfo = proc.parse_meminfo(proc.read_file(proc_root, "meminfo") or b"")
    machine_anon_bytes = meminfo.get("AnonPages", 0)
    memcg_bytes = None if memcg_directory is None else cgroup.read_group_charge_bytes(memcg_directory)
    orphan_bytes = None
    if deep:
        anon_bytes = None
        if memcg_directory is not None:
            anon_bytes = cgroup.read_group_anon_bytes(memcg_directory)
        if memcg_directory is not None and anon_bytes is not None:
            orphan_bytes = anon_bytes - _sum_anon_bytes(proc_root, cgroup.read_group_pids(memcg_directory))
        elif _sees_whole_machine(proc_root):
            orphan_bytes = machine_anon_bytes - _sum_anon_bytes(proc_root, proc.read_pids(proc_root))
    return ChargedMemory(
        machine_anon_bytes=machine_anon_bytes,
        machine_swap_bytes=meminfo.get("SwapTotal", 0) - meminfo.get("SwapFree", 0),
        memcg_directory=memcg_directory,
        memcg_bytes=memcg_bytes,
        orphan_bytes=orphan_bytes,
    )


def find_holders(proc_root: int, victim_pid: int) -> tuple[str, ...]:
    """Processes of which a thread stands in a call on another process's memory: who may pin a victim's.

    The system call's first argument names whose memory (process_vm_readv); a kernel stack needs CAP_SYS_ADMIN.
    """
    holders = []
    for pid in proc.read_pids(proc_root):
        other = proc.open_process(proc_root, pid)
        if other is None:
            continue
        try:
            if any(_is_remote_access(other, thread, victim_pid) for thread in proc.read_thread_ids(other)):
                holders.append(_name(pid, other))
        except OSError:
            continue  # not ours to look at
        finally:
            os.close(other)
    return tuple(holders)


def find_newcomers(proc_root: int, born_after_ticks: int, held_bytes: int) -> tuple[str, ...]:
    """Processes that began at that time or later and hold about as much: each may share what a victim left behind.

    Whether one does nobody can tell once the victim has let go of it: kcmp has nothing to compare with any more.
    """
    found = []
    for pid in proc.read_pids(proc_root):
        process = proc.open_process(proc_root, pid)
        if process is None:
            continue
        try:
            stat = proc.read_stat(process)
            memory = None if stat is None or stat.starttime < born_after_ticks else proc.read_memory(process)
            if memory is not None and _are_alike(memory.reapable_bytes, held_bytes):
                found.append(_name(pid, process))
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise  # whoever is left out would be taken for nobody
        finally:
            os.close(process)
    return tuple(found)


def read_threads(process: int) -> tuple[ThreadReport, ...]:
    """Where the threads stand, sleeping ones in the kernel first; at most a screenful."""
    reports = []
    for thread_id in proc.read_thread_ids(process)[:_REPORTED_THREADS]:
        content = proc.read_file(process, f"task/{thread_id}/stat")
        if not content:
            continue
        stat = proc.parse_stat(content)
        reports.append(
            ThreadReport(
                tid=thread_id,
                comm=stat.comm,
                state=stat.state,
                wchan=_read_text(process, f"task/{thread_id}/wchan"),
                syscall=_read_text(process, f"task/{thread_id}/syscall"),
                stack=tuple((_read_text(process, f"task/{thread_id}/stack") or "").split("\n")[:_REPORTED_FRAMES]),
            )
        )
    return tuple(sorted(reports, key=lambda report: report.state != "D"))


def errno_of_signal(pidfd: int) -> int | None:
    """0 when we may signal it, the errno when not; None when it has been waited for and is no more."""
    try:
        syscalls.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return None
    except OSError as error:
        return error.errno
    return 0


def has_ended(pidfd: int) -> bool:
    """Whether every thread of the process has ended: a pidfd then becomes readable."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _memcg_directory(mounts: list[cgroup.Mount], process: int) -> str | None:
    found = cgroup.find_group(mounts, process, "memory")
    return None if found is None else found[1]


def _read_sharer(proc_root: int, pid: int) -> Sharer | None:
    try:
        pidfd = syscalls.pidfd_open(pid) if pid >= syscalls.LOWEST_PID else None
    except OSError as error:
        if error.errno in _SHORTAGES:
            raise  # a sharer who is left out would live on with the memory
        return None
    process = proc.open_process(proc_root, pid)
    try:
        stat = proc.read_stat(process) if process is not None else None
        if process is None or stat is None:
            return None
        return Sharer(
            identity=stat.identity,
            oom_score_adj=proc.read_oom_score_adj(process),
            signal_errno=(errno_of_signal(pidfd) or 0) if pidfd is not None else 0,
        )
    finally:
        for fd in (pidfd, process):
            if fd is not None:
                os.close(fd)


def _read_status_of(proc_root: int, pid: int) -> proc.Status | None:
    # /proc/TID works for the threads of a process too, though it is not listed.
    process = proc.open_process(proc_root, pid)
    if process is None:
        return None
    try:
        return proc.read_status(process)
    finally:
        os.close(process)


def _sees_whole_machine(proc_root: int) -> bool:
    """Whether this /proc shows the kernel's threads, and so every process: a container's does not."""
    kthreadd = proc.open_process(proc_root, _KTHREADD_PID)
    if kthreadd is None:
        return False
    try:
        stat = proc.read_stat(kthreadd)
    finally:
        os.close(kthreadd)
    return stat is not None and stat.is_kernel_thread


def _sum_anon_bytes(proc_root: int, pids: list[int]) -> int:
    """What they own. A large address space that several of them share is added up once: it would hide an orphan."""
    total_bytes = 0
    large: list[tuple[int, int]] = []  # a thread that has the address space (a leader may be a zombie), and its bytes
    for pid in pids:
        process = proc.open_process(proc_root, pid)
        if process is None:
            continue
        thread: int | None = None
        try:
            memory: VictimMemory | None = proc.read_memory(process)
            anon_bytes = memory.anon_bytes if memory is not None else 0
            if anon_bytes >= _LARGE_BYTES:
                thread = find_thread_with_memory(process)
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise  # what it owns would be taken for nobody's
            anon_bytes = 0
        finally:
            os.close(process)
        if thread is not None:
            alike = [other for other, other_bytes in large if _are_alike(anon_bytes, other_bytes)]
            if any(process_shares_memory(proc_root, other, pid) for other in alike):
                continue
            large.append((thread, anon_bytes))
        total_bytes += anon_bytes
    return total_bytes


def _are_alike(some_bytes: int, other_bytes: int) -> bool:
    """Whether they may be two readings of one address space, a moment apart."""
    return abs(some_bytes - other_bytes) <= max(some_bytes, other_bytes) // _ALIKE_PART


def _is_remote_access(process: int, thread_id: int, victim_pid: int) -> bool:
    stack = proc.read_file(process, f"task/{thread_id}/stack") or b""
    if not any(frame in stack for frame in _REMOTE_ACCESS_FRAMES):
        return False
    words = (proc.read_file(process, f"task/{thread_id}/syscall") or b"").split()
    is_process_vm = b"process_vm_rw" in stack and len(words) > 1
    return not is_process_vm or int(words[1], 16) == victim_pid


def _name(pid: int, process: int) -> str:
    comm = (proc.read_file(process, "comm") or b"").strip()
    return f"{pid} ({comm.decode('utf-8', 'backslashreplace')})"


def _read_text(process: int, name: str) -> str | None:
    try:
        content = proc.read_file(process, name)
    except OSError:
        return None  # not ours to see
    return None if content is None else content.decode("utf-8", "backslashreplace").strip()
