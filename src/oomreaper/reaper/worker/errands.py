"""The side jobs as a worker does them: who processes are, a whole unit killed, memory moved out.

Here, too, nobody is signalled but through a pidfd, after his life was found to be the one that was meant: the
directory /proc/PID is opened, then the pidfd, then the start time is read through the directory. If that answers, the
process held its pid all the while, and both name one life. Whoever may never be killed is left out and named.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from typing import TYPE_CHECKING

from oomreaper.linux import cgroup, proc, syscalls
from oomreaper.model.sample import Profile, Wish
from oomreaper.policy import protection
from oomreaper.reaper.jobs import Profiled, ProfileRow, Reclaimed, UnitKilled

if TYPE_CHECKING:
    from oomreaper.model.identity import Identity
    from oomreaper.model.memory import VictimMemory
    from oomreaper.reaper.jobs import ProfileOrder, ReclaimOrder, UnitOrder

# Enough for what tells two programs apart by their arguments; the rest of a long command line is never matched.
_CMDLINE_BYTES = 4096
# A unit is gone through until nobody new is found; what still grows after ten passes is not to be had this way.
_PASSES = 10
_PASSES_LIMIT_NS = 500_000_000
# What an answer names at most: 1,000 lives more or less are what one message holds, and nobody reads more reasons.
_NAMED_LIVES = 2_000
_NAMED_REFUSALS = 50
# Of one process: the first ranges are its program, its libraries and the heap; a thousand cover most processes whole.
_RECLAIMED_RANGES = 1_000
_MAPS_BYTES = 256 * 1024
# What a look may fail with in a shortage; nothing of it says anything of the one who was looked at.
LOOK_FAILURES = (OSError, MemoryError)


def describe_failure(error: Exception) -> str:
    """A failure by the kernel's name for it."""
    if isinstance(error, OSError) and error.errno is not None:
        return f"{errno.errorcode.get(error.errno, error.errno)}, {error.strerror}"
    return type(error).__name__


# -- profiles ----------------------------------------------------------------------------------------------


def profile(proc_root: int, mounts: list[cgroup.Mount], order: ProfileOrder) -> Profiled:
    """Who the lives are; None for one that is over. What cannot be read of one is None in its profile."""
    return Profiled(
        tuple(
            ProfileRow(life, _profile_one(proc_root, mounts, life, with_cmdline=order.with_cmdline))
            for life in order.lives
        )
    )


def _profile_one(proc_root: int, mounts: list[cgroup.Mount], life: Identity, *, with_cmdline: bool) -> Profile | None:
    try:
        process = proc.open_process(proc_root, life.pid)
    except LOOK_FAILURES:
        return Profile()
    if process is None:
        return None
    try:
        stat = proc.read_stat(process)
        if stat is None or stat.identity != life:
            return None
        group, directories = cgroup.read_groups(mounts, process)
        return Profile(
            exe=_read_exe(process),
            cmdline=_read_cmdline(process) if with_cmdline else None,
            cgroup=group,
            oom_group=cgroup.read_oom_group(mounts, process),
            wish=_read_wish(directories),
        )
    except LOOK_FAILURES:
        return Profile()
    finally:
        os.close(process)


def _read_exe(process: int) -> bytes | None:
    try:
        return os.readlink(b"exe", dir_fd=process)
    except OSError:
        return None  # a kernel thread has none; somebody else's is not ours to see


def _read_cmdline(process: int) -> bytes | None:
    try:
        content = proc.read_head(process, "cmdline", _CMDLINE_BYTES)
    except LOOK_FAILURES:
        return None
    return None if content is None else content.replace(b"\0", b" ").rstrip()


def _read_wish(directories: list[str]) -> Wish | None:
    """``user.oomd_omit`` goes before ``user.oomd_avoid``, as in systemd-oomd."""
    wishes = {wish for directory in directories for wish in Wish if cgroup.has_trusted_mark(directory, f"oomd_{wish}")}
    return Wish.OMIT if Wish.OMIT in wishes else Wish.AVOID if wishes else None


# -- a unit ------------------------------------------------------------------------------------------------


class UnitKill:
    """Kills one unit, once; make one for each order."""

    def __init__(
        self, proc_root: int, mounts: list[cgroup.Mount], ourselves: protection.Ourselves, order: UnitOrder
    ) -> None:
        self._proc = proc_root
        self._mounts = mounts
        self._ourselves = ourselves
        self._order = order
        self._parent, self._session = os.getppid(), os.getsid(0)
        self._done: set[Identity] = set()  # killed, or left out for good
        self._killed: list[Identity] = []
        self._refused: dict[int, str] = {}  # by pid; a reason is said once

    def run(self) -> UnitKilled:
        """Go through the unit until nobody new is found in it, or the time is over."""
        limit_ns = time.monotonic_ns() + _PASSES_LIMIT_NS
        if self._is_unit_to_be_spared():
            self._order = self._order._replace(cgroup_directory=None, process_group=None, session=None)
        elif self._order.cgroup_directory is not None:
            self._kill_group_at_once(self._order.cgroup_directory)
        for life in self._order.lives:
            self._kill(life.pid, life)
        passes = 1
        while self._has_unit and passes < _PASSES and time.monotonic_ns() < limit_ns:
            passes += 1
            before = len(self._killed)
            for pid in self._find_members():
                self._kill(pid, None)
            if len(self._killed) == before:
                break
        reasons = list(self._refused.values())
        if len(reasons) > _NAMED_REFUSALS:
            reasons[_NAMED_REFUSALS:] = [f"and {len(reasons) - _NAMED_REFUSALS} more"]
        return UnitKilled(tuple(self._killed[:_NAMED_LIVES]), tuple(reasons), passes, len(self._killed))

    @property
    def _has_unit(self) -> bool:
        order = self._order
        return order.cgroup_directory is not None or order.process_group is not None or order.session is not None

    def _is_unit_to_be_spared(self) -> bool:
        """A unit that is ours, or no unit at all, is not gone through; who was named in it is served one by one."""
        order, ours = self._order, self._ourselves
        if order.process_group is not None and order.process_group in (ours.process_group, 0):
            self._refused[0] = "others of its process group: it is oomreaper's own"
        elif order.session is not None and order.session in (ours.session, 0):
            self._refused[0] = "others of its session: it is oomreaper's own"
        elif order.cgroup_directory is not None and not cgroup.is_below_root(self._mounts, order.cgroup_directory):
            self._refused[0] = f"others in {order.cgroup_directory}: that is no control group below a root"
        else:
            return False
        return True

    def _kill_group_at_once(self, directory: str) -> None:
        """cgroup.kill (v2, Linux 5.14) leaves nobody time to fork, and spares nobody: nobody there may be protected."""
        try:
            pids = cgroup.read_group_pids_surely(directory)
            members = [self._look(pid, None) for pid in pids]
            if any(isinstance(member, str) for member in members):
                return
            cgroup.kill_group(directory)
        except LOOK_FAILURES:
            return  # v1 has none; whoever it was for is killed one by one
        for member in members:
            if member is not None and not isinstance(member, str):
                self._note_killed(member)

    def _note_killed(self, life: Identity) -> None:
        if life not in self._done:
            self._done.add(life)
            self._killed.append(life)

    def _find_members(self) -> list[int]:
        order = self._order
        try:
            if order.cgroup_directory is not None:
                return cgroup.read_group_pids(order.cgroup_directory)
            everybody = (
                proc.read_pids(self._proc)
                if order.within_directory is None
                else cgroup.read_group_pids(order.within_directory)
            )
            return [pid for pid in everybody if self._is_member(pid)]
        except LOOK_FAILURES as error:
            self._refused[0] = f"others of the unit, perhaps: could not look ({describe_failure(error)})"
            return []

    def _is_member(self, pid: int) -> bool:
        try:
            stat = self._read_stat_of(pid)
        except LOOK_FAILURES:
            return False
        order = self._order
        return (
            stat is not None
            and stat.identity not in self._done
            and order.process_group in (None, stat.pgrp)
            and order.session in (None, stat.session)
            and stat.starttime >= (order.born_after_ticks or 0)
            and stat.state not in "ZX"
        )

    def _read_stat_of(self, pid: int) -> proc.Stat | None:
        process = proc.open_process(self._proc, pid)
        if process is None:
            return None
        try:
            return proc.read_stat(process)
        finally:
            os.close(process)

    def _look(self, pid: int, life: Identity | None) -> Identity | str | None:
        """Who holds ``pid`` (it must be ``life``, where one is given), without a signal; words: why he is left out."""
        refusal = protection.refuse_pid(pid, self._ourselves)
        if refusal is not None:
            return refusal.reason
        process = proc.open_process(self._proc, pid)
        if process is None:
            return None
        try:
            return self._check(process, life)
        finally:
            os.close(process)

    def _check(self, process: int, life: Identity | None) -> Identity | str | None:
        stat = proc.read_stat(process)
        if stat is None or (life is not None and stat.identity != life):
            return None
        if stat.is_kernel_thread:
            return "it is a kernel thread"
        if stat.ppid == self._parent and stat.session == self._session:
            return "that is oomreaper itself"  # a worker, perhaps one that was forked after us
        if proc.read_oom_score_adj(process) == protection.OOM_SCORE_ADJ_NEVER:
            return f"its oom_score_adj is {protection.OOM_SCORE_ADJ_NEVER}, which means never"
        return stat.identity

    def _kill(self, pid: int, life: Identity | None) -> None:
        """Signal one, if it may be; it is said of whoever may not."""
        if life is not None and life in self._done:
            return
        refusal = protection.refuse_pid(pid, self._ourselves)
        if refusal is not None:
            self._refused[pid] = f"{pid}: {refusal.reason}"
            return
        try:
            self._kill_checked(pid, life)
        except ProcessLookupError:
            return  # it has gone
        except LOOK_FAILURES as error:
            self._refused[pid] = f"{pid}: {describe_failure(error)}"

    def _kill_checked(self, pid: int, life: Identity | None) -> None:
        process = proc.open_process(self._proc, pid)
        if process is None:
            return
        pidfd = None
        try:
            pidfd = syscalls.pidfd_open(pid)
            found = self._check(process, life)
            if isinstance(found, str):
                self._refused[pid] = f"{pid}: {found}"
            elif found is not None and found not in self._done:
                syscalls.pidfd_send_signal(pidfd, signal.SIGKILL)
                self._refused.pop(pid, None)  # an earlier look at it had failed
                self._note_killed(found)
        finally:
            for descriptor in (process, pidfd):
                if descriptor is not None:
                    os.close(descriptor)


# -- reclaim -----------------------------------------------------------------------------------------------


def reclaim(proc_root: int, pidfd: int | None, order: ReclaimOrder) -> Reclaimed:
    """Ask the kernel to move memory out; it does as much of it as it can, and that may be nothing."""
    what = order.describe_source()
    if order.directory is not None:
        try:
            cgroup.reclaim_from_group(order.directory, order.bytes_wanted)
        except BlockingIOError:
            return Reclaimed(order.bytes_wanted, what, "less than that could be moved out (EAGAIN)")
        except OSError as error:
            return Reclaimed(0, what, f"memory.reclaim: {describe_failure(error)}")
        return Reclaimed(order.bytes_wanted, what)
    if order.life is None or pidfd is None:
        return Reclaimed(0, what, "no process was named", life=order.life)
    try:
        asked_bytes, moved_bytes = _page_out(proc_root, order.life, pidfd, order.bytes_wanted)
    except LOOK_FAILURES as error:
        return Reclaimed(0, what, f"process_madvise: {describe_failure(error)}", life=order.life)
    return Reclaimed(asked_bytes, what, None if asked_bytes else "it has gone", moved_bytes, order.life)


def _page_out(proc_root: int, life: Identity, pidfd: int, wanted_bytes: int) -> tuple[int, int]:
    """Of how many bytes of a process the kernel was told, and how much less it holds since."""
    process = proc.open_process(proc_root, life.pid)
    if process is None:
        return 0, 0
    try:
        stat = proc.read_stat(process)
        before = proc.read_memory(process)
        if stat is None or stat.identity != life or before is None:
            return 0, 0
        maps = proc.read_head(process, "maps", _MAPS_BYTES) or b""
        chosen: list[tuple[int, int]] = []
        chosen_bytes = 0
        for start, length in proc.parse_private_ranges(maps, limit=_RECLAIMED_RANGES):
            if chosen_bytes >= wanted_bytes:
                break
            chosen.append((start, length))
            chosen_bytes += length
        if not chosen:
            return 0, 0
        asked_bytes = syscalls.process_madvise(pidfd, chosen, syscalls.MADV_PAGEOUT)
        after = proc.read_memory(process)
        moved_bytes = 0 if after is None else _resident_bytes(before) - _resident_bytes(after)
        return asked_bytes, max(0, moved_bytes)
    finally:
        os.close(process)


def _resident_bytes(memory: VictimMemory) -> int:
    return memory.anon_bytes + memory.file_bytes
