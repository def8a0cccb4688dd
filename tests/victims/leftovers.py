"""What a run has left behind on the machine, and how each thing is removed.

Found by what cannot be forgotten: everything that the victims make carries the run's name or is ours by descent,
and every process that the run starts inherits a variable that names the run.
"""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tests.victims import processes
from tests.victims.cgroups import groups_named, read_mounts
from tests.victims.program import end_what_is_left, run_directory, run_name
from tests.victims.surroundings import CORE_PATTERN, administrator_tool, loop_devices_of, swaps_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MARK_VARIABLE = "OOMREAPER_TEST_RUN"

# The kernel finishes some things a moment later: a loop device is detached after its last user has gone.
GRACE_S = 3.0

_FUSE_CONNECTIONS = Path("/sys/fs/fuse/connections")


class Leftover(NamedTuple):
    """One thing that should be gone."""

    what: str
    remove: Callable[[], object]


class Watch:
    """Remembers what stood on the machine when the run began, and tells what the run has added."""

    def __init__(self) -> None:
        os.environ[MARK_VARIABLE] = run_name()
        self._core_pattern = CORE_PATTERN.read_text(encoding="utf-8")
        self._fuse_connections = _fuse_connections()

    def find(self) -> list[Leftover]:
        """What is there now and should not be."""
        return [*self._processes(), *self._mounts(), *self._groups(), *self._loops(), *self._kernel()]

    def find_settled(self) -> list[Leftover]:
        """What is still there after a moment's grace."""
        processes.wait_until(lambda: not self.find(), GRACE_S)
        return self.find()

    def remove(self, leftovers: list[Leftover]) -> list[str]:
        """Remove them, the helpers' own way first; what is there even then."""
        with contextlib.ExitStack() as stack:
            stack.callback(end_what_is_left)
            for leftover in leftovers:
                with contextlib.suppress(OSError):
                    leftover.remove()
        return [leftover.what for leftover in self.find_settled()]

    def _processes(self) -> Iterator[Leftover]:
        program_directory = str(run_directory())
        for pid in processes.all_pids():
            start_time = processes.start_time_ticks(pid)
            if pid == os.getpid() or processes.is_gone(pid, start_time):
                continue
            if (
                processes.parent_of(pid) == os.getpid()
                or _executable(pid).startswith(program_directory)
                or _is_marked(pid)
            ):
                name = processes.status_fields(pid).get("Name", "?")
                letters = "".join(processes.states(pid).values())[:8]
                yield Leftover(
                    f"process {pid} ({name}), state {letters}",
                    functools.partial(processes.kill_exactly, pid, start_time),
                )

    def _mounts(self) -> Iterator[Leftover]:
        for mount in read_mounts():
            if run_name() in str(mount.point) or run_name() in mount.source:
                yield Leftover(f"mount {mount.point}", functools.partial(_unmount, mount.point))

    def _groups(self) -> Iterator[Leftover]:
        for directory in groups_named(run_name()):
            yield Leftover(f"cgroup {directory}", functools.partial(_remove_group, directory))

    def _loops(self) -> Iterator[Leftover]:
        for device in loop_devices_of(str(run_directory())):
            # It detaches itself with its last user, who is in this list too.
            yield Leftover(f"loop device {device}", lambda: None)

    def _kernel(self) -> Iterator[Leftover]:
        if CORE_PATTERN.read_text(encoding="utf-8") != self._core_pattern:
            yield Leftover("a changed core_pattern", lambda: CORE_PATTERN.write_text(self._core_pattern))
        # A connection has no name. One that no mount of ours shows belongs to a private namespace: a victim's.
        shown = {mount.device_minor for mount in read_mounts() if mount.kind.startswith("fuse")}
        for swap in swaps_of(str(run_directory())):
            yield Leftover(f"swap {swap}", functools.partial(_swap_off, swap))
        for number in _fuse_connections() - self._fuse_connections - shown:
            abort = _FUSE_CONNECTIONS / str(number) / "abort"
            yield Leftover(f"FUSE connection {number}", functools.partial(abort.write_text, "1"))


def _fuse_connections() -> set[int]:
    """The numbers of the FUSE connections; none where fusectl is not mounted, and then our servers' end tells."""
    try:
        return {int(name) for name in os.listdir(_FUSE_CONNECTIONS) if name.isdigit()}
    except OSError:
        return set()


def _executable(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def _is_marked(pid: int) -> bool:
    """Whether it was started by this run, as its environment says.

    To read an environment takes mmap_lock, which a thread in D may hold for write: whoever has such a thread is not
    asked, be it another run's victim. Our own victims are known by their program.
    """
    if "D" in processes.states(pid).values():
        return False
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"{MARK_VARIABLE}={run_name()}".encode() in variables


def _swap_off(path: Path) -> None:
    import subprocess

    subprocess.run([str(administrator_tool("swapoff")), str(path)], check=False, capture_output=True)


def _unmount(point: Path) -> None:
    import subprocess

    subprocess.run(["umount", "--lazy", str(point)], check=False, capture_output=True)


def _remove_group(directory: Path) -> None:
    with contextlib.suppress(OSError):
        (directory / "freezer.state").write_text("THAWED")
    processes.wait_until(lambda: not (directory / "cgroup.procs").read_text(), GRACE_S)
    directory.rmdir()
