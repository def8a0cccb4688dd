"""What the processes of the demo do. Each runs in an interpreter of its own, started by ``victims``.

A role speaks in lines on its stdout and takes orders, lines too, from its stdin, whose end ends it. Whatever happens
to whoever started it, it ends: by the end of its orders, by its parent's death, and in any case by an alarm.

=========  ==========================================================================================
victim     makes its memory, fills it when told to, and when told to writes to a file
tracer     holds the victim in its exit, by doing nothing
holder     writes to the file from a page that never comes, and so holds the file's lock
meter      tells what the victim holds, every few milliseconds
idle       takes a little memory when told to, and does nothing
hog        takes more and more, and does not end when it is asked to (SIGTERM)
gauge      tells what a control group holds, every few milliseconds
watcher    becomes ``oomreaper run``
warden     removes the control group and the event socket, when its orders end
=========  ==========================================================================================

The warden alone outlives who started it, by the moment that it needs.
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

# What the event socket of the watcher is called in its folder.
EVENTS_NAME = "events"
# The longest any of it may last, whatever goes wrong; a demo takes 2 s an act. Below the bound that the tests keep.
_BOUND_SECONDS = 50
_METER_INTERVAL_MS = 5
# What has not changed is told again that often, so that the listener sees time pass.
_METER_REPEAT_NS = 50_000_000
# Filled in parts, so that the end of the orders is noticed.
_FILL_PART_BYTES = 16 << 20
_OOM_SCORE_ADJ_FIRST = "1000"
# A hog is smooth at the scale of a chart, and its parts are no more than the kernel charges at once for each CPU.
_HOG_PART_BYTES = 256 << 10
# How long a control group may take to be empty: its members are killed before, and gone 5 ms later (2026-11).
_REMOVE_LIMIT_NS = 10_000_000_000
_REMOVE_EVERY_SECONDS = 0.02
# Whom the death of their parent does not end.
_OUTLIVE = frozenset({"warden"})
_NS_IN_MS = 1_000_000
_STDIN, _STDOUT, _STDERR = 0, 1, 2


def main(role: str, parent_pid: int, arguments: list[str]) -> NoReturn:
    """Play ``role`` to its end; never returns."""
    status = 1
    try:
        for number in (signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        signal.alarm(_BOUND_SECONDS)
        if role not in _OUTLIVE:
            syscalls.die_with_parent(signal.SIGTERM if role == "watcher" else signal.SIGKILL)
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
    # The interpreter's own memory is reaped too, so it counts.
    memory = _map(int(size) - _read_own_bytes(), asked_bytes=int(size))
    _say("made")
    for order in _orders():
        if order == "fill":
            _fill(memory)
            _say("full")
        elif order == "write":
            # Not write(2): its lock on the file offset would be met before the inode's.
            os.pwrite(int(file), b"x", 0)
            _say("written")


def _map(size_bytes: int, *, asked_bytes: int) -> mmap.mmap:
    with _asking_for(f"{asked_bytes >> 20} MiB of memory (mmap)"):
        memory = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # EINVAL: a kernel without huge pages has nothing to refrain from
        memory.madvise(mmap.MADV_NOHUGEPAGE)
    return memory


def _read_own_bytes() -> int:
    memory = proc.read_memory(os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    return 0 if memory is None else memory.reapable_bytes


def _fill(memory: mmap.mmap) -> None:
    """Touch every page; a page that was never written holds no memory."""
    for start in range(0, len(memory), _FILL_PART_BYTES):
        end = min(start + _FILL_PART_BYTES, len(memory))
        memory[start : end : mmap.PAGESIZE] = b"\x55" * len(range(start, end, mmap.PAGESIZE))


def _be_idle(size: str) -> None:
    _be_ordinary()
    memory = _map(int(size), asked_bytes=int(size))
    _say("made")
    for _ in _orders():
        _fill(memory)
        _say("full")


def _be_hog(size: str, milliseconds: str) -> None:
    """Take all of ``size`` in that time, evenly, from the first order on; whoever is in the way of it must act."""
    from oomreaper.linux import ptrace

    _be_ordinary()
    with contextlib.suppress(OSError):  # the tracer will say what was refused
        ptrace.allow_any_tracer()
    # Not ignored but blocked: a traced process is stopped at each signal that comes through, were it ignored.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    memory = _map(int(size), asked_bytes=int(size))
    _say("made")
    orders = select.poll()
    orders.register(_STDIN, select.POLLIN)
    if not os.read(_STDIN, 4096):
        return
    _say("taking")
    begin_ns = time.monotonic_ns()
    for start in range(0, len(memory), _HOG_PART_BYTES):
        end = min(start + _HOG_PART_BYTES, len(memory))
        memory[start : end : mmap.PAGESIZE] = b"\x55" * len(range(start, end, mmap.PAGESIZE))
        due_ns = begin_ns + int(milliseconds) * _NS_IN_MS * end // len(memory)
        left_ms = (due_ns - time.monotonic_ns()) / _NS_IN_MS
        if left_ms > 0 and orders.poll(left_ms):
            return  # there are no more orders: it is over
    _say("full")
    orders.poll()


def _be_ordinary() -> None:
    """Nobody whom the watcher must spare: a demo that was started by somebody protected hands that on."""
    with contextlib.suppress(OSError, ValueError):
        path = Path("/proc/self/oom_score_adj")
        if int(path.read_text(encoding="ascii")) < 0:
            path.write_text("0", encoding="ascii")


def _be_watcher(group: str, events: str) -> None:
    from oomreaper.linux.interpreter import oomreaper_command
    from oomreaper.linux.notify import VARIABLES

    for name in (*VARIABLES, "JOURNAL_STREAM"):  # a service manager that started the demo is not meant
        os.environ.pop(name, None)
    os.dup2(_STDOUT, _STDERR)
    # An empty name: no file, so that the defaults are in force whatever this machine's file says.
    command = oomreaper_command("run", "--config", "", "--within", group, "--events", events)
    os.execv(command[0], command)  # noqa: S606 - the argument list is ours; there is no shell


def _be_warden(group: str, folder: str) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _say("ready")
    for _ in _orders():
        pass
    with contextlib.suppress(OSError):  # v2 has no such file
        # Who hangs at the limit of a v1 group, and was not killed, goes on.
        os.write(os.open(f"{group}/memory.oom_control", os.O_WRONLY | os.O_CLOEXEC), b"0")
    with contextlib.suppress(OSError):
        os.unlink(f"{folder}/{EVENTS_NAME}")
    limit_ns = time.monotonic_ns() + _REMOVE_LIMIT_NS
    for directory in (folder, group):
        while not _is_removed(directory) and time.monotonic_ns() < limit_ns:
            time.sleep(_REMOVE_EVERY_SECONDS)  # v1 tells of no group that it has become empty


def _is_removed(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        pass
    except OSError:
        return False
    return True


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

    def read_held_bytes() -> int:
        memory = proc.read_memory(process)
        return 0 if memory is None else memory.reapable_bytes

    _tell_changes(read_held_bytes)


def _tell_changes(read_bytes: Callable[[], int]) -> None:
    poll = select.poll()
    poll.register(_STDIN, select.POLLIN)
    told_ns, told_bytes = 0, -1
    while not poll.poll(_METER_INTERVAL_MS):
        held_bytes = read_bytes()
        now_ns = time.monotonic_ns()
        if held_bytes != told_bytes or now_ns - told_ns >= _METER_REPEAT_NS:
            _say("sample", str(now_ns), str(held_bytes))
            told_ns, told_bytes = now_ns, held_bytes


def _be_gauge(path: str) -> None:
    with _asking_for("reading the use of a control group"):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    _tell_changes(lambda: int(os.pread(file, 64, 0)))


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
    "idle": _be_idle,
    "hog": _be_hog,
    "gauge": _be_gauge,
    "watcher": _be_watcher,
    "warden": _be_warden,
}
