"""What the processes of the demo do. Each runs in an interpreter of its own, started by ``victims``.

A role speaks in lines on its stdout and takes orders, lines too, from its stdin, whose end ends it. Whatever happens
to whoever started it, it ends: by the end of its orders, by its parent's death, and in any case by an alarm.

=========  ==========================================================================================
victim     makes its memory, fills it when told to, and when told to writes to a file
tracer     holds the victim in its exit, by doing nothing
holder     writes to the file from a page that never comes, and so holds the file's lock
meter      tells what the victim holds, every few milliseconds
=========  ==========================================================================================
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import select
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from oomreaper.linux import proc, syscalls

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# The longest any of it may last, whatever goes wrong; a demo takes 2 s an act. Below the bound that the tests keep.
_BOUND_SECONDS = 50
_METER_INTERVAL_MS = 5
# What has not changed is told again that often, so that the listener sees time pass.
_METER_REPEAT_NS = 50_000_000
# Filled in parts, so that the end of the orders is noticed.
_FILL_PART_BYTES = 16 << 20
_OOM_SCORE_ADJ_FIRST = "1000"
_STDIN, _STDOUT = 0, 1


def main(role: str, parent_pid: int, arguments: list[str]) -> NoReturn:
    """Play ``role`` to its end; never returns."""
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.alarm(_BOUND_SECONDS)
        syscalls.die_with_parent(signal.SIGKILL)
        if os.getppid() == parent_pid:  # it may have ended before we asked to end with it
            syscalls.set_process_name(f"oomdemo-{role}".encode())
            _ROLES[role](*arguments)
        status = 0
    except BrokenPipeError:
        pass  # nobody listens any more
    except _RefusedError as refusal:
        with contextlib.suppress(BrokenPipeError):
            _say("refused", str(refusal.number), refusal.what)
    except BaseException:  # noqa: BLE001 - the last frame of this process: whatever it was, it is said, and it ends here
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


class _RefusedError(Exception):
    """The kernel refused something that the role lives from."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(what)
        self.number = number
        self.what = what


@contextlib.contextmanager
def _asking_for(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _RefusedError(error.errno or 0, what) from error


def _be_victim(size: str, file: str = "") -> None:
    from oomreaper.linux import ptrace

    with contextlib.suppress(OSError):  # should memory run out after all, this is whom to take
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE_ADJ_FIRST, encoding="ascii")
    with contextlib.suppress(OSError):  # the tracer will say what was refused
        ptrace.allow_any_tracer()
    with _asking_for(f"{int(size) >> 20} MiB of memory (mmap)"):
        # The interpreter's own memory is reaped too, so it counts.
        memory = mmap.mmap(-1, int(size) - _read_own_bytes(), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # EINVAL: a kernel without huge pages has nothing to refrain from
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    _say("made")
    for order in _orders():
        if order == "fill":
            _fill(memory)
            _say("full")
        elif order == "write":
            # Not write(2): its lock on the file offset would be met before the inode's.
            os.pwrite(int(file), b"x", 0)
            _say("written")


def _read_own_bytes() -> int:
    memory = proc.read_memory(os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    return 0 if memory is None else memory.reapable_bytes


def _fill(memory: mmap.mmap) -> None:
    """Touch every page; a page that was never written holds no memory."""
    for start in range(0, len(memory), _FILL_PART_BYTES):
        end = min(start + _FILL_PART_BYTES, len(memory))
        memory[start : end : mmap.PAGESIZE] = b"\x55" * len(range(start, end, mmap.PAGESIZE))


def _be_tracer(pid: str, start_time_ticks: str) -> None:
    from oomreaper.linux import ptrace

    os.close(_open_life(pid, start_time_ticks))
    with _asking_for("tracing the victim (ptrace PTRACE_SEIZE)"):
        ptrace.seize(int(pid), ptrace.PTRACE_O_TRACEEXIT)
    _say("attached")
    for _ in _orders():
        pass


def _be_holder(file: str) -> None:
    import threading

    from oomreaper.linux import userfaultfd

    page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with _asking_for("stopping a page fault of the kernel (userfaultfd)"):
        descriptor = userfaultfd.open_userfaultfd()
        userfaultfd.register_missing(descriptor, page)
    threading.Thread(target=_watch_fault, args=(descriptor,), daemon=True).start()
    with _asking_for("writing to a temporary file"):
        os.pwrite(int(file), page, 0)  # does not return: the end of this process is the end of the write


def _watch_fault(descriptor: int) -> None:
    """Say when the write has reached the page; then end with the orders. The other thread can do neither."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(_STDIN, select.POLLIN)
    if any(ready == descriptor for ready, _ in poll.poll()):
        _say("parked")
        for _ in _orders():
            pass
    os._exit(0)


def _be_meter(pid: str, start_time_ticks: str) -> None:
    process = _open_life(pid, start_time_ticks)
    poll = select.poll()
    poll.register(_STDIN, select.POLLIN)
    told_ns, told_bytes = 0, -1
    while not poll.poll(_METER_INTERVAL_MS):
        memory = proc.read_memory(process)
        now_ns = time.monotonic_ns()
        held_bytes = 0 if memory is None else memory.reapable_bytes
        if held_bytes != told_bytes or now_ns - told_ns >= _METER_REPEAT_NS:
            _say("sample", str(now_ns), str(held_bytes))
            told_ns, told_bytes = now_ns, held_bytes


def _open_life(pid: str, start_time_ticks: str) -> int:
    """The /proc directory of the one process that is meant."""
    root = proc.open_root()
    process = proc.open_process(root, int(pid))
    stat = proc.read_stat(process) if process is not None else None
    if process is None or stat is None or stat.starttime != int(start_time_ticks):
        raise _RefusedError(errno.ESRCH, "the victim has gone")
    return process


def _orders() -> Iterator[str]:
    """Orders as they come, until there will be none."""
    unread = b""
    while chunk := os.read(_STDIN, 4096):
        *lines, unread = (unread + chunk).split(b"\n")
        for line in lines:
            yield line.decode("ascii")


def _say(*words: str) -> None:
    os.write(_STDOUT, ("\t".join(words) + "\n").encode())


_ROLES: dict[str, Callable[..., None]] = {
    "victim": _be_victim,
    "tracer": _be_tracer,
    "holder": _be_holder,
    "meter": _be_meter,
}
