"""What holds a victim: frozen file systems, control groups, core patterns, busy CPUs.

Each is a context manager that undoes what it did. What would outlast this process (a frozen file system or
group, the core pattern) is undone by a guard or a holder, which also does it when this process is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from tests.victims.cgroups import own_directory
from tests.victims.processes import wait_until
from tests.victims.program import (
    END_TIMEOUT_S,
    MIB,
    READY_TIMEOUT_S,
    Helper,
    StageError,
    fresh_name,
    guarded,
    holder,
    run_directory,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")
# include/linux/binfmts.h: CORENAME_MAX_SIZE, the final NUL included.
CORE_PATTERN_MAX_BYTES = 127

# Small enough to be taken in again at once when it is switched off.
_SWAP_BYTES = 96 * MIB

# Room for ext4, its journal and the one file; the image is sparse.
_IMAGE_BYTES = 16 * MIB


def administrator_tool(name: str) -> str | None:
    """Where a tool of the administrator is, also when PATH is a plain user's."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


class FrozenFilesystem:
    """An ext4 in a mount namespace of its own, frozen until ``thaw``; it holds one ``file`` of 1 MiB."""

    def __init__(self, helper: Helper, directory: Path) -> None:
        self._helper = helper
        self._is_frozen = True
        self.pid = helper.pid
        """A process in its mount namespace."""
        self.directory = directory
        """Where it is mounted, in that namespace."""
        self.file = directory / "file"

    def thaw(self) -> None:
        """Let every write go on; nothing the second time."""
        if self._is_frozen:
            self._is_frozen = False
            self._helper.order()
            self._helper.expect("thawed")


@contextlib.contextmanager
def frozen_filesystem() -> Iterator[FrozenFilesystem]:
    """A frozen ext4 on a loop device, on which any number of victims can be staged."""
    maker = administrator_tool("mkfs.ext4")
    if maker is None:
        message = "mkfs.ext4 is not installed"
        raise StageError(message)
    directory = run_directory() / fresh_name()
    directory.mkdir()
    image = directory.with_suffix(".img")
    with contextlib.ExitStack() as stack:
        stack.callback(directory.rmdir)
        stack.callback(image.unlink, missing_ok=True)
        with image.open("wb") as file:
            file.truncate(_IMAGE_BYTES)
        subprocess.run([maker, "-q", "-F", str(image)], check=True, capture_output=True)
        stack.callback(_wait_until_detached, image)
        helper = stack.enter_context(
            holder("freeze-ext4", cleans_up=True, path=directory, image=image),
        )
        filesystem = FrozenFilesystem(helper, directory)
        # The holder thaws it too when it is let go; here it is for the victims, which leave before that.
        stack.callback(filesystem.thaw)
        yield filesystem


def loop_devices_of(prefix: str) -> tuple[Path, ...]:
    """The loop devices that stand on a file whose path begins so."""
    found = []
    for entry in Path("/sys/block").glob("loop*"):
        with contextlib.suppress(OSError):  # detached: the directory is gone, or going
            if (entry / "loop/backing_file").read_text().startswith(prefix):
                found.append(Path("/dev", entry.name))
    return tuple(found)


def _wait_until_detached(image: Path) -> None:
    """The kernel detaches the loop device by itself, a moment after the last user of the mount has gone."""
    if not wait_until(lambda: not loop_devices_of(str(image)), END_TIMEOUT_S):
        message = f"{loop_devices_of(str(image))} still stands on {image}"
        raise StageError(message)


@contextlib.contextmanager
def own_cgroup(controller: str | None, *undo: tuple[str, str]) -> Iterator[Path]:
    """A new cgroup below our own, of a v1 controller, or of v2 for None.

    ``undo`` names files of the group and what to write to them before the group is removed.
    """
    parent = own_directory(controller)
    if parent is None:
        message = f"no cgroup hierarchy is mounted for {controller or 'v2'}"
        raise StageError(message)
    directory = parent / fresh_name()
    actions: list[str] = []
    for name, text in undo:
        actions += ["write", str(directory / name), text]
    with guarded(*actions, "rmdir", str(directory)):
        directory.mkdir()
        yield directory


def swaps_of(prefix: str) -> tuple[Path, ...]:
    """The swap files in use whose path begins so."""
    lines = Path("/proc/swaps").read_text(encoding="utf-8").splitlines()[1:]
    return tuple(Path(line.split()[0]) for line in lines if line.startswith(prefix))


def make_swap_file(path: Path, size_bytes: int) -> None:
    """Write a file that swapon(8) takes: without holes, for root only."""
    zeros = bytes(MIB)
    path.touch(mode=0o600)
    with path.open("wb") as file:
        for _ in range(size_bytes // MIB):
            file.write(zeros)
    subprocess.run([str(administrator_tool("mkswap")), str(path)], check=True, capture_output=True)


@contextlib.contextmanager
def small_swap(size_bytes: int = _SWAP_BYTES) -> Iterator[None]:
    """A swap file of our own, in use until the end of the block, also if we die; the machine may have others."""
    path = run_directory() / f"{fresh_name()}.swap"
    make_swap_file(path, size_bytes)
    with guarded("swapoff", str(path)):
        subprocess.run([str(administrator_tool("swapon")), str(path)], check=True, capture_output=True)
        yield


@contextlib.contextmanager
def core_pattern(pattern: str) -> Iterator[Callable[[], None]]:
    """Set the machine's core_pattern; yields what restores it, to be called as soon as a dump has begun.

    The pattern is one for the whole machine: a lock keeps two runs apart, and a guard restores it if we die.
    """
    if len(pattern.encode()) > CORE_PATTERN_MAX_BYTES:
        message = f"the kernel takes {CORE_PATTERN_MAX_BYTES} bytes of core_pattern, and TMPDIR is too long for it"
        raise StageError(message)
    with contextlib.ExitStack() as stack:
        lock = os.open(CORE_PATTERN, os.O_RDONLY)
        stack.callback(os.close, lock)
        if not wait_until(lambda: _is_lock_taken(lock), READY_TIMEOUT_S):
            message = f"another run holds {CORE_PATTERN}"
            raise StageError(message)
        guard = stack.enter_context(guarded("write", str(CORE_PATTERN), CORE_PATTERN.read_text()))

        def restore() -> None:
            guard.end()
            fcntl.flock(lock, fcntl.LOCK_UN)

        CORE_PATTERN.write_text(pattern + "\n")
        yield restore


def _is_lock_taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class CoreDam:
    """Keeps the program that core_pattern starts from reading the core, until it is opened.

    The kernel starts that program, so it inherits nothing of ours: it opens two of our pipes by way of /proc, one
    to say that it has started, one whose end tells it to read. Our death is that end as well.
    """

    def __init__(self) -> None:
        self._started_reader, self._started_writer = os.pipe()
        self._go_reader, self._go_writer = os.pipe()
        self._open_ends = {self._started_reader, self._started_writer, self._go_reader, self._go_writer}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close(*self._open_ends)

    def _close(self, *ends: int) -> None:
        for end in ends:
            if end in self._open_ends:
                self._open_ends.remove(end)
                os.close(end)

    @property
    def operands(self) -> str:
        """What the program is told on its command line."""
        return f"/proc/{os.getpid()}/fd/{self._started_writer} /proc/{os.getpid()}/fd/{self._go_reader}"

    def wait_for_the_kernels_helper(self) -> None:
        """Wait until the program runs: from then on the pattern that named it is of no more use.

        Raises:
            StageError: the kernel has not started it.
        """
        poll = select.poll()
        poll.register(self._started_reader, select.POLLIN)
        if not poll.poll(READY_TIMEOUT_S * 1000):
            message = "the kernel did not start the program that core_pattern names"
            raise StageError(message)

    def open(self) -> None:
        """Let the program read, and the dump finish."""
        self._close(self._go_writer)


def last_cpu() -> int:
    """The CPU to make busy; the others stay free."""
    return max(os.sched_getaffinity(0))


@contextlib.contextmanager
def kept_off(cpu: int) -> Iterator[None]:
    """Keep this thread, and the children it starts meanwhile, off a CPU, so that it is not starved with the victim."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before - {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
