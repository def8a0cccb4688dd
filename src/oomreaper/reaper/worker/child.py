"""What runs in a worker: wait for a job, do it, answer. Disposable.

A worker is forked before the emergency, locks its memory and takes the lowest real-time priority. It may block for good
in what it does, on the victim's mmap_lock above all; it is then ended by its crew, and nothing is lost with it: all it
holds is the job at hand. It ends with its parent.

What it must read of a victim may be refused in a shortage (ENOMEM, EMFILE, EIO). Then a look says so, and a strike is
struck all the same: the pidfd was opened for the chosen life and names no other. What was not seen is not claimed.
Only for those who share its memory a victim is spared a few times: were one of them missed, the victim could go by
itself, and the memory would live on with him. Where it has gone, the memory is looked for with them.

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
from typing import TYPE_CHECKING, NoReturn, TypeVar

from oomreaper.errors import BrokenPromiseError
from oomreaper.linux import cgroup, look, proc, syscalls
from oomreaper.linux.resident import become_resident
from oomreaper.model.identity import Identity
from oomreaper.policy import protection
from oomreaper.reaper import verify
from oomreaper.reaper.jobs import (
    Accounted,
    CouldNotLook,
    Hello,
    Helped,
    Inquired,
    Job,
    JobKind,
    Probed,
    Profiled,
    ProfileOrder,
    ProfilesPart,
    ReclaimOrder,
    Report,
    Scouted,
    SharersPart,
    Struck,
    UnitOrder,
)
from oomreaper.reaper.wire import (
    MESSAGE_LIMIT_BYTES,
    SHARERS_A_PART,
    decode_job,
    encode_report,
    parts_of_profiles,
)
from oomreaper.reaper.worker import errands
from oomreaper.reaper.worker.errands import LOOK_FAILURES, describe_failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from oomreaper.model.memory import VictimMemory

_FIRST_OWN_FD = 3  # after stdin, stdout, stderr
_HIGHEST_FD = 1 << 30  # NR_OPEN_MAX; close_range(2) takes it as "all"
# Given up when the kernel has no descriptor left for us: a look at a victim needs up to four at a time.
_RESERVED_DESCRIPTORS = 4
# A call that had no memory or no descriptor is made again at once: somebody may have let go of some meanwhile.
_TRIES = 3
# What a shortage says. Anything else that a call of the rehearsal answers is a refusal: a sandbox may choose its errno.
_SHORTAGES = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
# What an answer names at most; a message has room for twice as many.
_NAMED_SHARERS = 2_000
# There is no such process, or its pid has gone to somebody's thread.
_NO_PROCESS = (errno.ESRCH, errno.EINVAL, errno.ENOENT)
_OOM_SCORE_ADJ_FIRST = b"1000"  # the kernel's own killer then agrees on the victim

T = TypeVar("T")


class WorkerChild:
    """One worker: its socket, its own /proc, and whom it must never signal."""

    def __init__(self, connection: socket.socket, proc_root: int, ourselves: protection.Ourselves) -> None:
        self._connection = connection
        self._proc = proc_root
        self._ourselves = ourselves
        self._mounts = cgroup.read_mounts(proc_root)
        self._reserve = [os.dup(proc_root) for _ in range(_RESERVED_DESCRIPTORS)]

    def serve(self) -> None:
        """Do jobs until the other end closes."""
        while True:
            message, pidfds, _flags, _address = socket.recv_fds(self._connection, MESSAGE_LIMIT_BYTES, 1)
            if not message:
                return
            try:
                self.answer(self.do(decode_job(message), pidfds[0] if pidfds else None))
            finally:
                for pidfd in pidfds:
                    os.close(pidfd)

    def answer(self, report: Report) -> None:
        """Send a report; the sharers of a scouting go ahead in parts when they are many, and so do profiles."""
        if isinstance(report, Profiled):
            *ahead, last = parts_of_profiles(report.rows)
            for rows in ahead:
                self._connection.send(encode_report(ProfilesPart(rows)))
            report = Profiled(last)
        if isinstance(report, Scouted) and report.scouting is not None:
            sharers = report.scouting.sharers
            for start in range(SHARERS_A_PART, len(sharers), SHARERS_A_PART):
                self._connection.send(encode_report(SharersPart(sharers[start : start + SHARERS_A_PART])))
            report = Scouted(report.scouting._replace(sharers=sharers[:SHARERS_A_PART]), report.problem)
        self._connection.send(encode_report(report))

    def do(self, job: Job, pidfd: int | None) -> Report:
        """One job. A victim that has gone is an answer, not an error, and so is a look that the kernel refuses."""
        order = job.order
        if isinstance(order, UnitOrder):
            return errands.UnitKill(self._proc, self._mounts, self._ourselves, order).run()
        if isinstance(order, ProfileOrder):
            return errands.profile(self._proc, self._mounts, order)
        if isinstance(order, ReclaimOrder):
            return errands.reclaim(self._proc, pidfd, order)
        if pidfd is None:
            return CouldNotLook("its pidfd did not arrive: there is no descriptor left for it")
        if job.kind is JobKind.STRIKE:
            return self._strike(job, pidfd)
        try:
            return self._insist(lambda: self._look(job, pidfd))
        except LOOK_FAILURES as error:
            problem = describe_failure(error)
            if job.kind is JobKind.SCOUT and isinstance(error, PermissionError):
                return Scouted(None, f"could not look at it: {problem}; ask as root", needs_permission=True)
            return CouldNotLook(problem)

    def _look(self, job: Job, pidfd: int) -> Report:
        process = self._open_life(job)
        try:
            match job.kind:
                case JobKind.SCOUT:
                    return self._scout(process, pidfd)
                case JobKind.PROBE:
                    return Probed(None if process is None else proc.read_memory(process))
                case JobKind.ACCOUNT:
                    return self._account(job, process)
                case JobKind.HELP:
                    return Helped((), ()) if process is None else self._help(process)
                case JobKind.INQUEST:
                    return Inquired(() if process is None else look.read_threads(process))
                case other:
                    raise BrokenPromiseError(f"a worker was asked for a {other} that says nothing of what to do")
        finally:
            if process is not None:
                os.close(process)

    # -- the jobs ------------------------------------------------------------------------------------------

    def _scout(self, process: int | None, pidfd: int) -> Scouted:
        if process is not None:
            looked_ns = time.monotonic_ns()
            scouting = look.scout(self._proc, process, pidfd, self._mounts)
            return Scouted(None if scouting is None else scouting._replace(looked_ns=looked_ns))
        if look.errno_of_signal(pidfd) is None:
            return Scouted(None)
        return Scouted(None, "it exists, but this /proc does not show it (hidepid); ask as root", needs_permission=True)

    def _strike(self, job: Job, pidfd: int) -> Struck:
        now_ns = time.monotonic_ns()
        process = None
        try:
            process = self._insist(lambda: self._open_life(job))
            is_over = process is None or not self._insist(lambda: self._is_named(job.pid, pidfd))
        except LOOK_FAILURES:
            is_over = False  # not seen; the pidfd is proof enough, see above
        try:
            if is_over:  # its pid may be one of our own workers' by now
                return self._strike_heirs(job, now_ns)
            if protection.refuse_pid(job.pid, self._ourselves):
                raise BrokenPromiseError(f"a worker was told to signal {job.pid}, which it never may")
            if job.spare_dump and _is_dumping_core(process):
                memory, problem = self._read_left(job, process)
                return Struck(None, None, now_ns, now_ns, now_ns, memory, is_dumping_core=True, memory_problem=problem)
            return self._strike_life(job, process, pidfd)
        finally:
            if process is not None:
                os.close(process)

    def _is_named(self, pid: int, pidfd: int) -> bool:
        """Whether the pidfd names this pid; False: it has been waited for in this moment and names nobody."""
        named = proc.read_pid_of_pidfd(self._proc, pidfd)
        if named is None and look.errno_of_signal(pidfd) is None:
            return False
        if named != pid:
            raise BrokenPromiseError(f"a worker was told to signal {pid} through a pidfd that names {named}")
        return True

    def _strike_life(self, job: Job, process: int | None, pidfd: int) -> Struck:
        """The two calls, and what is to be seen around them; ``process`` None: nothing could be seen before."""
        # What it was chosen by may be a second old, and it may have grown by a gigabyte since.
        before, unread = (None, None) if process is None else self._read_left(job, process)
        if not job.sharers and not job.rescan:
            # The common case: nobody shares the memory. Nothing between this line and the two calls.
            signal_ns = time.monotonic_ns()
            signal_errno, mrelease_errno = _kill(pidfd, can_release=job.can_release)
            released_ns = time.monotonic_ns()
            killed = _Killed()
        else:
            signal_ns = time.monotonic_ns()
            killed = self._kill_sharers(job, process)
            if killed.missed and job.can_wait:
                killed.close()
                return _spare(killed, signal_ns, before, unread)
            signal_errno, mrelease_errno = _kill(pidfd, can_release=job.can_release)
            released_ns = time.monotonic_ns()
            if signal_errno == errno.ESRCH:
                killed.close()  # it has been waited for, whatever could be seen of it before
                heirs = self._strike_heirs(job, signal_ns)
                return heirs._replace(sharers_killed=tuple(dict.fromkeys((*killed.identities, *heirs.sharers_killed))))
        memory, problem = self._read_left(job, process)
        if mrelease_errno == errno.ESRCH and memory is None and killed.kept:
            mrelease_errno, memory, problem = self._release_through(killed)
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
            protected=tuple(killed.protected),
            memory_problem=problem,
            before=before,
            missed=tuple(killed.missed),
        )

    def _strike_heirs(self, job: Job, now_ns: int) -> Struck:
        """The victim has gone: strike those who shared its memory and hold it still."""
        killed = self._kill_sharers(job, None, is_over=True)
        try:
            if not killed.kept:
                gone = Struck(errno.ESRCH, None, now_ns, now_ns, now_ns, None, is_dumping_core=False)
                return _spare(killed, now_ns, None, None) if killed.missed or killed.protected else gone
            mrelease_errno: int | None = None
            memory, problem = None, None
            if job.can_release:
                mrelease_errno, memory, problem = self._release_through(killed)
            released_ns = time.monotonic_ns()
            return Struck(
                0,
                mrelease_errno,
                now_ns,
                released_ns,
                time.monotonic_ns(),
                memory,
                is_dumping_core=False,
                sharers_killed=tuple(killed.identities),
                protected=tuple(killed.protected),
                memory_problem=problem,
                missed=tuple(killed.missed),
            )
        finally:
            killed.close()

    def _read_left(self, job: Job, process: int | None) -> tuple[VictimMemory | None, str | None]:
        """What the address space holds now; words: why that could not be read."""
        try:
            if process is None:
                return self._with_reserve(lambda: self._memory_of(Identity(job.pid, job.start_time_ticks or 0))), None
            return self._with_reserve(lambda: proc.read_memory(process)), None
        except LOOK_FAILURES as error:
            return None, describe_failure(error)

    def _kill_sharers(self, job: Job, process: int | None, *, is_over: bool = False) -> _Killed:
        """Kill whoever shares the memory, before the victim: the victim is to be the last that lets go of it.

        ``process`` None: the victim has gone (``is_over``), or it could not be looked at.
        """
        killed = _Killed()
        lives = [life for life in job.sharers if protection.refuse_pid(life.pid, self._ourselves) is None]
        if process is None and not is_over:
            killed.missed += [life.pid for life in lives]
            return killed
        if process is not None and job.rescan:
            with contextlib.suppress(*LOOK_FAILURES):  # the crew asks for it until it has been of use
                found, _ = self._insist(lambda: look.find_sharers(self._proc, process, job.pid))
                killed.protected += [s.identity.pid for s in found if protection.refuse_sharer(s, self._ourselves)]
                lives += [s.identity for s in found if s.identity not in lives]
        for life in lives:
            if life.pid not in killed.protected and not self._reach(killed, job, process, life):
                killed.missed.append(life.pid)
        return killed

    def _reach(self, killed: _Killed, job: Job, process: int | None, life: Identity) -> bool:
        """Whether it could be looked at; it is killed if it shares the memory."""
        try:
            self._insist(lambda: killed.kill(self._proc, life, self._is_sharer(job, process, life)))
        except LOOK_FAILURES:
            return False
        return True

    def _is_sharer(self, job: Job, process: int | None, life: Identity) -> Callable[[int], bool]:
        """How a sharer is known, by his /proc directory: he may have left the memory by exec, as a vfork child does."""
        was_killed = life in job.sharers[len(job.sharers) - job.killed_count :]

        def is_sharer(sharer: int) -> bool:
            # The victim's threads may end at any moment; what was compared with one that has ended says nothing.
            thread = None if process is None else look.find_thread_with_memory(process)
            while process is not None and thread is not None:
                if look.process_shares_memory(self._proc, thread, life.pid):
                    return True
                compared, thread = thread, look.find_thread_with_memory(process)
                if compared == thread:
                    return False
            return verify.is_heir(job.held_bytes, proc.read_memory(sharer), was_killed=was_killed)

        return is_sharer

    def _release_through(self, killed: _Killed) -> tuple[int, VictimMemory | None, str | None]:
        """The victim has let go of the memory; reap it through a sharer that has not."""
        for pidfd, identity in killed.kept:
            answer = 0
            try:
                syscalls.process_mrelease(pidfd)
            except ProcessLookupError:
                continue
            except OSError as error:
                answer = error.errno or 0
            return answer, *self._read_left(Job(JobKind.PROBE, *identity), None)
        return errno.ESRCH, None, None

    def _memory_of(self, identity: Identity) -> VictimMemory | None:
        process = self._open_life(Job(JobKind.PROBE, *identity))
        if process is None:
            return None
        try:
            return proc.read_memory(process)
        finally:
            os.close(process)

    def _insist(self, look_at_it: Callable[[], T]) -> T:
        """Look; where the kernel has no memory or no descriptor for it, a few times."""
        for _ in range(_TRIES - 1):
            with contextlib.suppress(*LOOK_FAILURES):
                return self._with_reserve(look_at_it)
        return self._with_reserve(look_at_it)

    def _with_reserve(self, look_at_it: Callable[[], T]) -> T:
        """Look; where there is no descriptor for it, once more with the reserve given up meanwhile."""
        try:
            return look_at_it()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._reserve:
                raise
        while self._reserve:
            os.close(self._reserve.pop())
        try:
            return look_at_it()
        finally:
            with contextlib.suppress(OSError):  # there is none to be had: without, until the next time
                self._reserve += [os.dup(self._proc) for _ in range(_RESERVED_DESCRIPTORS)]

    def _account(self, job: Job, process: int | None) -> Accounted:
        memory = None if process is None else proc.read_memory(process)
        charged = look.read_charged(self._proc, job.memcg_directory, deep=job.deep)
        holders = look.find_holders(self._proc, job.pid) if job.deep else ()
        newcomers: tuple[str, ...] = ()
        if job.deep and job.looked_ns is not None and job.held_bytes >= verify.SMALLEST_JUDGED_BYTES:
            newcomers = look.find_newcomers(self._proc, _start_ticks_of(job.looked_ns), job.held_bytes)
        return Accounted(memory, charged, holders, newcomers)

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
        try:
            stat = proc.read_stat(process)
        except LOOK_FAILURES:
            os.close(process)
            raise
        if stat is None or stat.starttime != job.start_time_ticks:
            os.close(process)
            return None
        return process


class _Killed:
    """Sharers that were signalled, and those that were not; the descriptors of some are kept, to reap through."""

    _KEPT = 8  # any one that still has the memory will do

    def __init__(self) -> None:
        self.identities: list[Identity] = []
        self.kept: list[tuple[int, Identity]] = []
        self.protected: list[int] = []  # not ours to kill
        self.missed: list[int] = []  # could not be looked at

    def kill(self, proc_root: int, life: Identity, is_sharer: Callable[[int], bool]) -> None:
        """Signal this life if it is seen to share the victim's memory at this moment.

        Raises:
            OSError, MemoryError: It could not be looked at; nothing was done.
        """
        process = proc.open_process(proc_root, life.pid)
        if process is None:
            return
        pidfd = None
        try:
            # The start time is read after the pidfd was opened, through a directory that was opened before: one life.
            pidfd = _open_pidfd(life.pid)
            stat = proc.read_stat(process)
            if pidfd is None or stat is None or stat.identity != life or not is_sharer(process):
                return
            try:
                syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
            except ProcessLookupError:
                return
            except PermissionError:
                self.protected.append(life.pid)
                return
            if len(self.identities) < _NAMED_SHARERS and life not in self.identities:
                self.identities.append(life)
            if len(self.kept) < self._KEPT:
                self.kept.append((pidfd, life))
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
    """Walk the kill path with signal 0: a sandbox that kills for it does so now, and before any victim is touched.

    Raises:
        OSError: There is no memory or no descriptor for it at this moment: the worker cannot start, another one may.
    """
    with contextlib.suppress(OSError):
        syscalls.is_same_mm(own_pid, own_pid)
    for tries_left in reversed(range(_TRIES)):
        call = "pidfd_open"
        pidfd = None
        try:
            pidfd = syscalls.pidfd_open(own_pid)
            call = "pidfd_send_signal"
            syscalls.pidfd_send_signal(pidfd, 0)
        except OSError as error:
            if error.errno not in _SHORTAGES:
                return f"this kernel or sandbox refuses {call} ({error.strerror}), so nobody can be signalled safely"
            if not tries_left:
                raise
        else:
            return None
        finally:
            if pidfd is not None:
                os.close(pidfd)
    return None


def _start_ticks_of(moment_ns: int) -> int:
    """A moment on the clock of start times, which goes on while the machine is suspended."""
    ago_ns = time.monotonic_ns() - moment_ns
    return (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ago_ns) * os.sysconf("SC_CLK_TCK") // 1_000_000_000


def _open_pidfd(pid: int) -> int | None:
    """A pidfd; None when there is no such process."""
    try:
        return syscalls.pidfd_open(pid)
    except OSError as error:
        if error.errno in _NO_PROCESS:
            return None
        raise


def _spare(killed: _Killed, now_ns: int, memory: VictimMemory | None, problem: str | None) -> Struck:
    """Somebody was missed, or may not be killed: nothing more is done this time."""
    return Struck(
        None,
        None,
        now_ns,
        now_ns,
        time.monotonic_ns(),
        memory,
        is_dumping_core=False,
        sharers_killed=tuple(killed.identities),
        protected=tuple(killed.protected),
        memory_problem=problem,
        missed=tuple(killed.missed),
    )


def _kill(pidfd: int, *, can_release: bool) -> tuple[int, int | None]:
    if can_release:
        return syscalls.kill_and_release(pidfd)
    try:
        syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError as error:
        return error.errno or 0, None
    return 0, None


def _is_dumping_core(process: int | None) -> bool:
    """Whether it is seen to dump core; one that cannot be looked at is not spared for a dump that it may not have."""
    try:
        status = None if process is None else proc.read_status(process)
    except LOOK_FAILURES:
        return False
    return status is not None and status.is_dumping_core
