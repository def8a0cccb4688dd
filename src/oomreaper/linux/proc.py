"""/proc of one process: bytes to values, through descriptors that can never come to name another process.

A descriptor of the directory /proc/PID stays bound to that one life: when the process has gone, opening
below it answers ENOENT or ESRCH, also after the pid has been given to somebody else. Every reader takes
such a descriptor, and None means "it has gone" (or: not ours to see).

Reading ``stat``, ``statm`` or ``status`` takes a short reference to the address space. When the process exits
in that moment, the *reader* does the tear-down, which takes 70 ms a GiB and may wait for unfinished asynchronous
I/O without bound. So nothing that must not block reads a victim here: workers do.
``cmdline``, ``environ``, ``maps``, ``smaps`` and ``pagemap`` wait for mmap_lock as well: of a victim they are never
read, and a worker that reads ``cmdline`` or ``maps`` of anybody else is given up when that blocks.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from oomreaper.errors import KernelError
from oomreaper.model.identity import Identity
from oomreaper.model.memory import VictimMemory

PF_KTHREAD = 0x00200000  # include/linux/sched.h; field 9 of stat
_KIB = 1024
_READ_CHUNK_BYTES = 16384


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that we use, under the kernel's names (proc_pid_stat(5))."""

    pid: int
    comm: bytes
    state: str
    ppid: int
    pgrp: int
    session: int
    flags: int
    num_threads: int
    starttime: int

    @property
    def identity(self) -> Identity:
        """This life of this pid."""
        return Identity(self.pid, self.starttime)

    @property
    def is_kernel_thread(self) -> bool:
        """Whether it is a thread of the kernel, which has no memory of its own and cannot be killed."""
        return bool(self.flags & PF_KTHREAD)


class Status(NamedTuple):
    """The lines of /proc/PID/status that we use. ``memory`` is None when the thread has no address space."""

    tgid: int
    uid: int
    is_dumping_core: bool
    memory: VictimMemory | None


def open_root(path: str = "/proc") -> int:
    """A descriptor of the /proc to read.

    Raises:
        KernelError: There is none; it shows processes only (subset=pid); or it shows those of another pid namespace,
            so that its numbers name other processes to the kernel than to us.
    """
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _no_procfs(path, str(error.strerror)) from error
    try:
        own_pid = os.readlink("self", dir_fd=root)
        os.close(os.open("meminfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=root))
    except OSError as error:
        os.close(root)
        raise _no_procfs(path, f"{error.filename}: {error.strerror}") from error
    if own_pid != str(os.getpid()):
        os.close(root)
        raise _no_procfs(path, "it belongs to another pid namespace")
    return root


def open_process(root: int, pid: int) -> int | None:
    """A descriptor of /proc/PID, bound to the process that holds ``pid`` now; None when none is seen."""
    try:
        return os.open(str(pid), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root)
    except (FileNotFoundError, ProcessLookupError):
        return None


def read_file(directory: int, name: str) -> bytes | None:
    """The whole of a small file below ``directory``; None when its process has gone."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        content = chunk = os.read(file, _READ_CHUNK_BYTES)
        while chunk:
            chunk = os.read(file, _READ_CHUNK_BYTES)
            content += chunk
    except ProcessLookupError:
        return None
    finally:
        os.close(file)
    return content


def read_head(directory: int, name: str, limit_bytes: int) -> bytes | None:
    """The first ``limit_bytes`` of a file below ``directory``; None when its process has gone."""
    try:
        file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        content = chunk = os.read(file, limit_bytes)
        while chunk and len(content) < limit_bytes:  # maps come a page at a time
            chunk = os.read(file, limit_bytes - len(content))
            content += chunk
    except ProcessLookupError:
        return None
    finally:
        os.close(file)
    return content


def parse_private_ranges(maps: bytes, *, limit: int) -> list[tuple[int, int]]:
    """Address and length of the first private mappings in /proc/PID/maps, the kernel's own ([vdso]…) left out."""
    ranges = []
    for line in maps.split(b"\n"):
        words = line.split(maxsplit=5)
        if len(words) < 5 or words[1][3:4] != b"p" or words[1] == b"---p":  # noqa: PLR2004 - 5 columns, then the name
            continue
        if words[-1].startswith(b"[v"):
            continue
        start, _, end = words[0].partition(b"-")
        ranges.append((int(start, 16), int(end, 16) - int(start, 16)))
        if len(ranges) >= limit:
            break
    return ranges


def parse_stat(line: bytes) -> Stat:
    """Parse /proc/PID/stat. A comm may hold anything, also ``") Z "``: it ends at the *last* parenthesis."""
    opened = line.index(b"(")
    closed = line.rindex(b")")
    fields = line[closed + 2 :].split()
    return Stat(
        pid=int(line[:opened]),
        comm=line[opened + 1 : closed],
        state=fields[0].decode("ascii"),
        ppid=int(fields[1]),
        pgrp=int(fields[2]),
        session=int(fields[3]),
        flags=int(fields[6]),
        num_threads=int(fields[17]),
        starttime=int(fields[19]),
    )


def parse_status(content: bytes) -> Status:
    """Parse /proc/PID/status. The Name line is escaped by the kernel, so lines are lines."""
    fields: dict[bytes, bytes] = {}
    for line in content.split(b"\n"):
        key, _, value = line.partition(b":")
        fields[key] = value
    memory = None
    if b"RssAnon" in fields:
        memory = VictimMemory(
            anon_bytes=_kib_field(fields, b"RssAnon"),
            swap_bytes=_kib_field(fields, b"VmSwap"),
            file_bytes=_kib_field(fields, b"RssFile"),
            shmem_bytes=_kib_field(fields, b"RssShmem"),
            page_table_bytes=_kib_field(fields, b"VmPTE"),
        )
    return Status(
        tgid=int(fields[b"Tgid"]),
        uid=int(fields[b"Uid"].split()[0]),
        is_dumping_core=fields.get(b"CoreDumping", b"").strip() == b"1",
        memory=memory,
    )


def read_stat(process: int) -> Stat | None:
    """The stat line of the process whose directory is ``process``."""
    line = read_file(process, "stat")
    return parse_stat(line) if line else None


def read_status(process: int) -> Status | None:
    """The status of the thread-group leader."""
    content = read_file(process, "status")
    return parse_status(content) if content else None


def read_thread_ids(process: int) -> list[int]:
    """The ids of the threads that are left, in the kernel's order; empty when the process has gone."""
    try:
        tasks = os.open("task", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=process)
    except (FileNotFoundError, ProcessLookupError):
        return []
    try:
        return [int(name) for name in os.listdir(tasks)]
    except (FileNotFoundError, ProcessLookupError):
        return []
    finally:
        os.close(tasks)


def read_memory(process: int) -> VictimMemory | None:
    """What the process's address space holds; None when no thread of it has one any more.

    The counters belong to the address space, so one thread that still has it tells for all; adding up the
    threads would count it once for each. A leader that has ended (a zombie) shows none while its threads live.
    """
    status = read_status(process)
    if status is not None and status.memory is not None:
        return status.memory
    for thread_id in read_thread_ids(process):
        content = read_file(process, f"task/{thread_id}/status")
        if content:
            memory = parse_status(content).memory
            if memory is not None:
                return memory
    return None


def read_oom_score_adj(process: int) -> int | None:
    """The user's wish for this process, -1000 (never) to 1000."""
    content = read_file(process, "oom_score_adj")
    return int(content) if content else None


def read_pids(root: int) -> list[int]:
    """Every process that this /proc shows."""
    return [int(name) for name in os.listdir(root) if name.isdigit()]


def read_ancestors(root: int) -> frozenset[int]:
    """Our parent, its parent and so on, as far as this /proc shows them."""
    ancestors: set[int] = set()
    pid = os.getppid()
    while pid > 0 and pid not in ancestors:
        ancestors.add(pid)
        process = open_process(root, pid)
        if process is None:
            break
        stat = read_stat(process)
        os.close(process)
        pid = stat.ppid if stat is not None else 0
    return frozenset(ancestors)


def read_pid_of_pidfd(root: int, pidfd: int) -> int | None:
    """The pid that a pidfd names, as our pid namespace sees it; None when it has gone or is not ours to see."""
    content = read_file(root, f"self/fdinfo/{pidfd}")
    for line in (content or b"").split(b"\n"):
        if line.startswith(b"Pid:"):
            pid = int(line[4:])
            return pid if pid > 0 else None
    return None


def is_asleep(root: int, pid: int) -> bool:
    """Whether a process sleeps in the kernel, rather than runs or waits for a CPU; so does one that has gone.

    Where that cannot be read (ENOMEM in a shortage, measured twice in ten kills in a full cgroup; EMFILE) it counts as
    asleep: the one who asks decides on the victim's memory then, and is not to end for want of an answer.
    """
    try:
        process = open_process(root, pid)
        if process is None:
            return True
        try:
            stat = read_stat(process)
        finally:
            os.close(process)
    except OSError:
        return True
    return stat is None or stat.state != "R"


def parse_meminfo(content: bytes) -> dict[str, int]:
    """/proc/meminfo as bytes by field name."""
    table: dict[str, int] = {}
    for line in content.split(b"\n"):
        key, _, value = line.partition(b":")
        words = value.split()
        if words:
            table[key.decode("ascii")] = int(words[0]) * (_KIB if len(words) > 1 else 1)
    return table


def _no_procfs(path: str, why: str) -> KernelError:
    return KernelError(
        f"{path} is no usable procfs ({why}); without one no process can be identified. "
        f"Mount one: mount -t proc proc {path}"
    )


def _kib_field(fields: dict[bytes, bytes], name: bytes) -> int:
    value = fields.get(name)
    return int(value.split()[0]) * _KIB if value else 0
