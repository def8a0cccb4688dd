"""The system calls, each a step: in place of ``os``, ``select``, ``socket``, ``time`` and ``oomreaper.linux.syscalls``.

Only what our code calls is here, under its own name; anything else is an AttributeError: a fake that was not taught
throws. Descriptors belong to the process that runs (``Userland.user``). The errnos are the kernel's (KERNEL.md section
2); ``Faults`` says which calls fail now and then for want of memory or descriptors.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from oomreaper.sim.engine import Signal
from oomreaper.sim.linux import files
from oomreaper.sim.release import process_mrelease

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oomreaper.sim.engine import Steps
    from oomreaper.sim.tasks import Process, Thread
    from oomreaper.sim.userland import User, Userland

_LOWEST_PID = 2
_MADV_PAGEOUT = 21


class ProcRoot(NamedTuple):
    """The directory /proc."""


class ProcTask(NamedTuple):
    """The directory /proc/PID, bound to one life."""

    process: Process
    thread: Thread


class TaskList(NamedTuple):
    """The directory /proc/PID/task."""

    process: Process


class PidFd(NamedTuple):
    """A pidfd."""

    process: Process


class OpenFile:
    """An open file: what a read gives is made at its first read."""

    def __init__(self, make: Steps | bytes, *, on_write: Any = None) -> None:
        self.make: Steps | None = None if isinstance(make, bytes) else make
        self.content: bytes | None = make if isinstance(make, bytes) else None
        self.position = 0
        self.on_write = on_write


class Mailbox:
    """A socket as a worker sees it: messages with pidfds come in, answers go out."""

    def __init__(self, name: str) -> None:
        self.messages: list[tuple[bytes, PidFd | None]] = []
        self.arrived = Signal(f"a job for {name}", is_interruptible=True)
        self.sent: Any = None  # called with each answer
        self.is_closed = False

    def send(self, message: bytes) -> int:
        """An answer."""
        self.sent(message)
        return len(message)


def _error(number: int, what: object = None) -> OSError:
    return OSError(number, os.strerror(number), what)


class Calls:
    """All doubles of one machine: ``os``, ``select``, ``socket``, ``time``, ``syscalls`` are namespaces of it."""

    def __init__(self, userland: Userland) -> None:
        self._land = userland
        self._machine = userland.machine
        self.os = SimpleNamespace(
            **{
                name: getattr(os, name)
                for name in ("O_RDONLY", "O_WRONLY", "O_DIRECTORY", "O_CLOEXEC", "fsdecode", "path")
            },
            open=self.open,
            read=self.read,
            write=self.write,
            close=self.close,
            dup=self.dup,
            listdir=self.listdir,
            readlink=self.readlink,
            walk=self.walk,
            getxattr=self.getxattr,
            getpid=lambda: self._land.user.process.pid,
            getppid=lambda: getattr(self._land.user.process.parent, "pid", 0),
            getpgrp=lambda: self._land.user.process.process_group,
            getsid=lambda _pid: self._land.user.process.session,
            geteuid=lambda: 0,
            sysconf=os.sysconf,
        )
        self.select = SimpleNamespace(poll=lambda: _Poll(self._land.user), POLLIN=1)
        self.time = SimpleNamespace(
            monotonic_ns=lambda: self._machine.engine.now_ns,
            time_ns=lambda: self._machine.engine.now_ns,
            clock_gettime_ns=lambda _clock: self._machine.engine.now_ns,
            CLOCK_BOOTTIME=time.CLOCK_BOOTTIME,
        )
        self.socket = SimpleNamespace(recv_fds=self.receive)
        self.syscalls = SimpleNamespace(
            LOWEST_PID=_LOWEST_PID,
            MADV_PAGEOUT=_MADV_PAGEOUT,
            pidfd_open=self.pidfd_open,
            pidfd_send_signal=self.pidfd_send_signal,
            process_mrelease=self.process_mrelease,
            kill_and_release=self.kill_and_release,
            is_same_mm=self.is_same_mm,
            process_madvise=self.process_madvise,
            answer_of_mrelease_probe=lambda: errno.EBADF,
        )

    # -- files ---------------------------------------------------------------------------------------------

    def open(self, name: str, flags: int, *, dir_fd: int | None = None) -> int:  # noqa: ARG002 - os.open's
        """A file or directory below another, or below the mounts."""
        land = self._land
        land.call()
        faults = land.faults
        land.fail("open", name, (faults.descriptor, errno.EMFILE), (faults.memory, errno.ENOMEM))
        where = None if dir_fd is None else self._object(dir_fd)
        return land.user.keep(self._find(where, name))

    def read(self, fd: int, limit: int) -> bytes:
        """The file is written down at the first read."""
        land = self._land
        file = self._object(fd)
        if not isinstance(file, OpenFile):
            raise _error(errno.EISDIR)
        if file.content is None:
            land.call()
            land.fail("read", fd, (land.faults.memory, errno.ENOMEM))
            assert file.make is not None
            file.content = land.run(file.make)
        part = file.content[file.position : file.position + limit]
        file.position += len(part)
        return part

    def write(self, fd: int, content: bytes) -> int:
        """To a control file."""
        self._land.call()
        self._object(fd).on_write(content)
        return len(content)

    def close(self, fd: int) -> None:
        """The descriptor is free."""
        if self._land.user.descriptors.pop(fd, None) is None:
            raise _error(errno.EBADF)

    def dup(self, fd: int) -> int:
        """One more descriptor of the same."""
        self._land.fail("dup", fd, (self._land.faults.descriptor, errno.EMFILE))
        return self._land.user.keep(self._object(fd))

    def listdir(self, fd: int) -> list[str]:
        """getdents(2)."""
        self._land.call()
        self._land.fail("getdents", fd, (self._land.faults.memory, errno.ENOMEM))
        directory = self._object(fd)
        if isinstance(directory, ProcRoot):
            return ["self", "meminfo", *(str(pid) for pid in sorted(self._machine.processes))]
        if isinstance(directory, TaskList):
            if directory.process.is_waited:
                raise _error(errno.ENOENT)
            return [str(thread.tid) for thread in directory.process.threads]
        raise _error(errno.ENOTDIR)

    def readlink(self, _name: str | bytes, *, dir_fd: int) -> str | bytes:
        """readlinkat(2): /proc/self, and exe."""
        self._land.call()
        where = self._object(dir_fd)
        if isinstance(where, ProcRoot):
            return str(self._land.user.process.pid)
        assert isinstance(where, ProcTask)
        if where.process.is_waited or where.process.mm is None:
            raise _error(errno.ENOENT)
        return b"/usr/bin/" + bytes(where.process.comm)

    def open_path(self, path: str, mode: str) -> io.BytesIO:  # noqa: ARG002 - open's
        """The builtin ``open`` of a control file, for reading."""
        self._land.call()
        return io.BytesIO(files.read_group_file(self._machine, *_split(path)))

    def walk(self, directory: str, onerror: Any = None) -> Iterator[tuple[str, list[str], list[str]]]:
        """os.walk of a group without children."""
        try:
            self.open_path(f"{directory}/cgroup.procs", "rb")
        except OSError as error:
            if onerror is not None:
                onerror(error)
            return
        yield directory, [], ["cgroup.procs"]

    def getxattr(self, path: str, name: str) -> bytes:
        """None has any."""
        raise _error(errno.ENODATA, f"{path}: {name}")

    # -- processes -----------------------------------------------------------------------------------------

    def pidfd_open(self, pid: int) -> int:
        """Of whoever holds the pid now."""
        land = self._land
        if pid < _LOWEST_PID:
            message = f"pid {pid} can never be a victim"
            raise ValueError(message)
        land.call()
        faults = land.faults
        land.fail("pidfd_open", pid, (faults.descriptor, errno.EMFILE), (faults.memory, errno.ENOMEM))
        process = self._machine.processes.get(pid)
        if process is None:
            raise _error(errno.EINVAL if pid in self._machine.threads else errno.ESRCH)
        return land.user.keep(PidFd(process))

    def pidfd_send_signal(self, pidfd: int, number: int) -> None:
        """SIGKILL, SIGTERM, or 0 for a question."""
        self._land.call()
        process = self._process(pidfd)
        if process.is_waited:
            raise _error(errno.ESRCH)
        sender = self._land.user.process
        if number == signal.SIGKILL:
            if not process.is_dead:
                self._machine.kill(process, sender)
        elif number == signal.SIGTERM:
            self._machine.terminate(process, sender)
        elif number:
            raise _error(errno.EINVAL)

    def process_mrelease(self, pidfd: int) -> None:
        """What it does is in ``sim.release``."""
        land = self._land
        land.call()
        process = self._process(pidfd)
        land.fail("process_mrelease", process.pid, (land.faults.reap, errno.EAGAIN))
        number = land.run(process_mrelease(self._machine, land.user.thread, process))
        if number:
            raise _error(number)

    def kill_and_release(self, pidfd: int) -> tuple[int, int | None]:
        """The two calls back to back; whoever wants may come in between."""
        try:
            self.pidfd_send_signal(pidfd, signal.SIGKILL)
        except OSError as error:
            return error.errno or 0, None
        try:
            self.process_mrelease(pidfd)
        except OSError as error:
            return 0, error.errno
        return 0, 0

    def is_same_mm(self, pid: int, other_pid: int) -> bool:
        """kcmp(2), KCMP_VM: of two threads; two that have none are equal."""
        self._land.call()
        one, other = self._machine.threads.get(pid), self._machine.threads.get(other_pid)
        if one is None or other is None:
            raise _error(errno.ESRCH)
        return one.mm is other.mm

    def process_madvise(self, pidfd: int, ranges: list[tuple[int, int]], advice: int) -> int:  # noqa: ARG002 - the real one's
        """MADV_PAGEOUT: the ranges are taken, and nothing is moved here."""
        self._land.call()
        process = self._process(pidfd)
        if process.is_waited or process.mm is None:
            raise _error(errno.ESRCH)
        return sum(length for _, length in ranges)

    def receive(self, mailbox: Mailbox, _limit: int, _descriptors: int) -> tuple[bytes, list[int], int, None]:
        """recvmsg(2) of a worker: a job with a pidfd, or b"" when the other end has gone."""
        land = self._land
        land.call()
        while not mailbox.messages and not mailbox.is_closed:
            land.run(_wait(mailbox.arrived))
            land.call()
        if not mailbox.messages:
            return b"", [], 0, None
        message, pidfd = mailbox.messages.pop(0)
        has_arrived = pidfd is not None and not self._machine.engine.chance(land.faults.passing)
        return message, [land.user.keep(pidfd)] if has_arrived else [], 0, None

    # -- inside --------------------------------------------------------------------------------------------

    def _object(self, fd: int) -> Any:
        found = self._land.user.descriptors.get(fd)
        if found is None:
            raise _error(errno.EBADF)
        return found

    def _process(self, pidfd: int) -> Process:
        found = self._object(pidfd)
        if not isinstance(found, PidFd):
            raise _error(errno.EBADF)
        return found.process

    def _find(self, where: object, name: str) -> object:
        machine = self._machine
        if where is None:
            return ProcRoot() if name == "/proc" else self._find_group_file(name)
        if isinstance(where, ProcRoot):
            return self._find_in_root(name)
        if isinstance(where, ProcTask):
            process, thread = where
            if process.is_waited:
                raise _error(errno.ENOENT)
            if name == "task":
                return TaskList(process)
            if name.startswith("task/"):
                tid, _, name = name[5:].partition("/")
                found = machine.threads.get(int(tid))
                if found is None or found.process is not process:
                    raise _error(errno.ENOENT)
                thread = found
            return OpenFile(
                files.read_task_file(machine, self._land.user.thread, process, thread, name),
                on_write=lambda content: _set_score(process, content),
            )
        raise _error(errno.ENOTDIR)

    def _find_in_root(self, name: str) -> object:
        machine = self._machine
        if name.isdigit():
            thread = machine.threads.get(int(name))
            if thread is None:
                raise _error(errno.ENOENT)
            return ProcTask(thread.process, thread)
        if name == "meminfo":
            return OpenFile(_now(lambda: files.meminfo(machine)))
        if name == "self/mountinfo":
            return OpenFile(files.MOUNTINFO)
        if name.startswith("self/fdinfo/"):
            found = self._land.user.descriptors.get(int(name.rpartition("/")[2]))
            if not isinstance(found, PidFd):
                raise _error(errno.ENOENT)
            process = found.process
            return OpenFile(_now(lambda: b"pos:\t0\nPid:\t%d\n" % (-1 if process.is_waited else process.pid)))
        raise _error(errno.ENOENT, name)

    def _find_group_file(self, path: str) -> object:
        controller, group, name = _split(path)
        if name == "tasks":
            return OpenFile(b"", on_write=lambda content: self._move(controller, group, int(content)))
        return OpenFile(files.read_group_file(self._machine, controller, group, name))

    def _move(self, controller: str, group: str, tid: int) -> None:
        """A thread into the root group of a hierarchy: it thaws, or its quota ends."""
        thread = self._machine.threads.get(tid)
        if thread is None:
            raise _error(errno.ESRCH)
        if group != "/":
            raise _error(errno.EINVAL)
        if controller == "freezer":
            self._machine.leave_freezer(thread)
        elif controller == "cpu":
            self._machine.leave_cpu_group(thread)


class _Poll:
    """poll(2) of pidfds, without waiting."""

    def __init__(self, user: User) -> None:
        self._user = user
        self._fds: list[int] = []

    def register(self, fd: int, _events: int) -> None:
        self._fds.append(fd)

    def poll(self, _timeout_ms: int) -> list[tuple[int, int]]:
        return [(fd, 1) for fd in self._fds if self._user.descriptors[fd].process.is_dead]


def _split(path: str) -> tuple[str, str, str]:
    """Controller, group and file of a path below the mounts of control groups."""
    if not path.startswith(f"{files.CGROUPS}/"):
        raise _error(errno.ENOENT, path)
    directory, _, name = path[len(files.CGROUPS) + 1 :].rpartition("/")
    controller, _, group = directory.partition("/")
    return controller, f"/{group}", name


def _set_score(process: Process, content: bytes) -> None:
    if process.is_waited:
        raise _error(errno.ESRCH)
    process.oom_score_adj = int(content)


def _now(make: Any) -> Steps:
    yield
    return make()


def _wait(what: Signal) -> Steps:
    yield what
