"""What runs in a worker: wait for a job, do it, answer. Disposable.

A worker is forked before the emergency, locks its memory and takes the lowest real-time priority. It may block for good
in what it does, on the victim's mmap_lock above all; it is then ended by its crew, and nothing is lost with it: all it
holds is the job at hand. It ends with its parent.

The last door before the kernel is here: whatever a job says, nobody is signalled but the process that the pidfd names,
if its pid is above 1, its life is the one that was chosen, and it is neither this program nor its worker.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import time
import traceback
from typing import TYPE_CHECKING, NoReturn

from oomreaper.errors import BrokenPromiseError
from oomreaper.linux import cgroup, look, proc, syscalls
from oomreaper.linux.resident import become_resident
from oomreaper.policy import protection
from oomreaper.reaper.jobs import (
    Accounted,
    Hello,
    Helped,
    Inquired,
    Job,
    JobKind,
    Probed,
    Report,
    Scouted,
    SharersPart,
    Struck,
)
from oomreaper.reaper.wire import MESSAGE_LIMIT_BYTES, SHARERS_A_PART, decode_job, encode_report

if TYPE_CHECKING:
    from oomreaper.model.identity import Identity
    from oomreaper.model.memory import VictimMemory

_FIRST_OWN_FD = 3  # after stdin, stdout, stderr
_HIGHEST_FD = 1 << 30  # NR_OPEN_MAX; close_range(2) takes it as "all"
_OOM_SCORE_ADJ_FIRST = b"1000"  # the kernel's own killer then agrees on the victim


class WorkerChild:
    """One worker: its socket, its own /proc, and whom it must never signal."""

    def __init__(self, connection: socket.socket, proc_root: int, ourselves: protection.Ourselves) -> None:
        self._connection = connection
        self._proc = proc_root
        self._ourselves = ourselves
        self._mounts = cgroup.read_mounts(proc_root)

    def serve(self) -> None:
        """Do jobs until the other end closes."""
        while True:
            message, pidfds, _flags, _address = socket.recv_fds(self._connection, MESSAGE_LIMIT_BYTES, 1)
            if not message:
                return
            try:
                self.answer(self.do(decode_job(message), pidfds[0]))
            finally:
                os.close(pidfds[0])

    def answer(self, report: Report) -> None:
        """Send a report; the sharers of a scouting go ahead in parts when they are many."""
        if isinstance(report, Scouted) and report.scouting is not None:
            sharers = report.scouting.sharers
            for start in range(SHARERS_A_PART, len(sharers), SHARERS_A_PART):
                self._connection.send(encode_report(SharersPart(sharers[start : start + SHARERS_A_PART])))
            report = Scouted(report.scouting._replace(sharers=sharers[:SHARERS_A_PART]), report.problem)
        self._connection.send(encode_report(report))

    def do(self, job: Job, pidfd: int) -> Report:
        """One job. A victim that has gone is an answer, not an error."""
        process = self._open_life(job)
        try:
            match job.kind:
                case JobKind.SCOUT:
                    return self._scout(process, pidfd)
                case JobKind.STRIKE:
                    return self._strike(job, process, pidfd)
                case JobKind.PROBE:
                    return Probed(None if process is None else proc.read_memory(process))
                case JobKind.ACCOUNT:
                    return self._account(job, process)
                case JobKind.HELP:
                    return Helped((), ()) if process is None else self._help(process)
                case JobKind.INQUEST:
                    return Inquired(() if process is None else look.read_threads(process))
        finally:
            if process is not None:
                os.close(process)

    # -- the jobs ------------------------------------------------------------------------------------------

    def _scout(self, process: int | None, pidfd: int) -> Scouted:
        if process is not None:
            return Scouted(look.scout(self._proc, process, pidfd, self._mounts))
        if look.errno_of_signal(pidfd) is None:
            return Scouted(None)
        return Scouted(None, "it exists, but this /proc does not show it (hidepid); ask as root")

    def _strike(self, job: Job, process: int | None, pidfd: int) -> Struck:
        now_ns = time.monotonic_ns()
        if process is None:
            return Struck(errno.ESRCH, None, now_ns, now_ns, now_ns, None, is_dumping_core=False)
        if proc.read_pid_of_pidfd(self._proc, pidfd) != job.pid or protection.refuse_pid(job.pid, self._ourselves):
            raise BrokenPromiseError(f"a worker was told to signal {job.pid}, which it never may")
        if job.spare_dump and _is_dumping_core(process):
            memory = proc.read_memory(process)
            return Struck(None, None, now_ns, now_ns, now_ns, memory, is_dumping_core=True)
        if not job.sharer_pids and not job.rescan:
            # The common case: nobody shares the memory. Nothing between this line and the two calls.
            signal_ns = time.monotonic_ns()
            signal_errno, mrelease_errno = _kill(pidfd, can_release=job.can_release)
            released_ns = time.monotonic_ns()
            killed, protected = _Killed(), tuple[int, ...]()
        else:
            signal_ns = time.monotonic_ns()
            killed, protected = self._kill_sharers(job, process)
            signal_errno, mrelease_errno = _kill(pidfd, can_release=job.can_release)
            released_ns = time.monotonic_ns()
        memory = proc.read_memory(process)
        if mrelease_errno == errno.ESRCH and memory is None:
            mrelease_errno, memory = self._release_through(killed)
            released_ns = time.monotonic_ns()
        killed.close()
        return Struck(
            signal_errno,
            mrelease_errno,
            signal_ns,
            released_ns,
            time.monotonic_ns(),
            memory,
            is_dumping_core=mrelease_errno == errno.EINVAL and _is_dumping_core(process),
            sharers_killed=tuple(killed.identities),
            protected=protected,
        )

    def _kill_sharers(self, job: Job, process: int) -> tuple[_Killed, tuple[int, ...]]:
        """Kill whoever shares the memory, before the victim: the victim is to be the last that lets go of it."""
        killed = _Killed()
        protected: list[int] = []
        victim_thread = look.find_thread_with_memory(process)
        if victim_thread is None:
            return killed, ()
        pids: list[int] = list(job.sharer_pids)
        if job.rescan:
            known = set(pids)
            found, _ = look.find_sharers(self._proc, process, job.pid)
            led_by_zombies = look.find_zombie_led_sharers(self._proc, victim_thread, job.pid)
            pids += [pid for pid in (*(sharer.identity.pid for sharer in found), *led_by_zombies) if pid not in known]
            protected = [sharer.identity.pid for sharer in found if protection.refuse_sharer(sharer, self._ourselves)]
        for pid in pids:
            if pid not in protected and protection.refuse_pid(pid, self._ourselves) is None:
                killed.kill(self._proc, victim_thread, pid)
        return killed, tuple(protected)

    def _release_through(self, killed: _Killed) -> tuple[int, VictimMemory | None]:
        """The victim has let go of the memory; reap it through a sharer that has not."""
        for pidfd, identity in killed.kept:
            try:
                syscalls.process_mrelease(pidfd)
            except ProcessLookupError:
                continue
            except OSError as error:
                return error.errno or 0, self._memory_of(identity)
            return 0, self._memory_of(identity)
        return errno.ESRCH, None

    def _memory_of(self, identity: Identity) -> VictimMemory | None:
        process = self._open_life(Job(JobKind.PROBE, *identity))
        if process is None:
            return None
        try:
            return proc.read_memory(process)
        finally:
            os.close(process)

    def _account(self, job: Job, process: int | None) -> Accounted:
        memory = None if process is None else proc.read_memory(process)
        charged = look.read_charged(self._proc, job.memcg_directory, deep=job.deep)
        holders = look.find_holders(self._proc, job.pid) if job.deep else ()
        return Accounted(memory, charged, holders)

    def _help(self, process: int) -> Helped:
        done: list[str] = []
        refused: list[str] = []
        try:
            score = os.open("oom_score_adj", os.O_WRONLY | os.O_CLOEXEC, dir_fd=process)
            try:
                os.write(score, _OOM_SCORE_ADJ_FIRST)
            finally:
                os.close(score)
            done.append("oom_score_adj 1000")
        except (FileNotFoundError, ProcessLookupError):
            return Helped(tuple(done), tuple(refused))
        except OSError as error:
            refused.append(f"oom_score_adj: {error.strerror}")
        try:
            done += cgroup.release_from_v1_holds(self._mounts, process, proc.read_thread_ids(process))
        except OSError as error:
            refused.append(f"moving it out of a frozen or throttled group: {error.strerror}")
        return Helped(tuple(done), tuple(refused))

    def _open_life(self, job: Job) -> int | None:
        """The /proc directory of the job's victim; None when that life is over, whoever holds its pid now."""
        process = proc.open_process(self._proc, job.pid)
        if process is None or job.start_time_ticks is None:
            return process
        stat = proc.read_stat(process)
        if stat is None or stat.starttime != job.start_time_ticks:
            os.close(process)
            return None
        return process


class _Killed:
    """Sharers that were signalled; the descriptors of some are kept, to reap through."""

    _KEPT = 8  # any one that still has the memory will do

    def __init__(self) -> None:
        self.identities: list[Identity] = []
        self.kept: list[tuple[int, Identity]] = []

    def kill(self, proc_root: int, victim_thread: int, pid: int) -> None:
        """Signal ``pid`` if it shares the victim's memory at this moment; a vfork child may have left it by exec."""
        process = proc.open_process(proc_root, pid)
        try:
            pidfd = syscalls.pidfd_open(pid)
        except OSError:
            pidfd = None
        try:
            stat = proc.read_stat(process) if process is not None else None
            if pidfd is None or stat is None or not look.shares_memory(proc_root, victim_thread, pid):
                return
            with contextlib.suppress(ProcessLookupError, PermissionError):
                syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
                self.identities.append(stat.identity)
                if len(self.kept) < self._KEPT:
                    self.kept.append((pidfd, stat.identity))
                    pidfd = None
        finally:
            for fd in (process, pidfd):
                if fd is not None:
                    os.close(fd)

    def close(self) -> None:
        """Let go of the kept descriptors."""
        for pidfd, _ in self.kept:
            os.close(pidfd)


def run(connection: socket.socket, *, ourselves: protection.Ourselves, can_release: bool) -> NoReturn:
    """Be a worker, until the parent ends or closes the socket; never returns into the parent's code."""
    status = 1
    try:
        # Only the crew decides when a worker ends: a Ctrl-C at the terminal reaches the whole group.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the parent blocks these while it forks
        syscalls.die_with_parent(signal.SIGKILL)
        # Nothing of the parent's stays open here: a worker that is stuck must not keep a pipe or a mount alive.
        os.closerange(_FIRST_OWN_FD, connection.fileno())
        os.closerange(connection.fileno() + 1, _HIGHEST_FD)
        syscalls.set_process_name(b"oomreaper/reap")
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        own_pid = os.getpid()
        worker = WorkerChild(connection, proc.open_root(), ourselves._replace(pids=ourselves.pids | {own_pid}))
        problem = _rehearse(own_pid)
        residency = become_resident()
        mrelease_errno = syscalls.answer_of_mrelease_probe() if can_release else errno.ENOSYS
        worker.answer(Hello(mrelease_errno, residency.is_locked, residency.is_realtime, problem))
        if os.getppid() in ourselves.pids:  # it may have ended before we asked to end with it
            worker.serve()
        status = 0
    except (BrokenPipeError, ConnectionResetError):
        status = 0  # the parent has gone or has done with us
    except BaseException:  # noqa: BLE001 - the last frame of this process: whatever it was, it is said, and it ends here
        traceback.print_exc()
    finally:
        os._exit(status)


def _rehearse(own_pid: int) -> str | None:
    """Walk the kill path with signal 0: a sandbox that kills for it does so now, and before any victim is touched."""
    with contextlib.suppress(OSError):
        syscalls.is_same_mm(own_pid, own_pid)
    call = "pidfd_open"
    try:
        pidfd = syscalls.pidfd_open(own_pid)
        call = "pidfd_send_signal"
        syscalls.pidfd_send_signal(pidfd, 0)
        os.close(pidfd)
    except OSError as error:
        return f"this kernel or sandbox refuses {call} ({error.strerror}), so nobody can be signalled safely"
    return None


def _kill(pidfd: int, *, can_release: bool) -> tuple[int, int | None]:
    if can_release:
        return syscalls.kill_and_release(pidfd)
    try:
        syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError as error:
        return error.errno or 0, None
    return 0, None


def _is_dumping_core(process: int) -> bool:
    status = proc.read_status(process)
    return status is not None and status.is_dumping_core
