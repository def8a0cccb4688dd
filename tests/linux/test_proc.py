"""/proc of one process: parsing hostile bytes, and descriptors that name one life only."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oomreaper.errors import KernelError
from oomreaper.linux import proc, syscalls

if TYPE_CHECKING:
    from pathlib import Path

# Fields 4 to 24 of the line, each its own number less 3, but for the flags.
REST = b" 1 2 3 4 5 4194304 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21\n"
KIB = 1024


@given(st.binary(max_size=15))
def test_a_comm_may_hold_anything(comm: bytes) -> None:
    """Parentheses, newlines, escapes, invalid UTF-8: the comm ends at the last parenthesis of the line."""
    stat = proc.parse_stat(b"77 (" + comm + b") S" + REST)

    assert (77, comm, "S", 1, 17, 19) == (*stat[:4], stat.num_threads, stat.starttime)
    assert not stat.is_kernel_thread


def test_the_fields_of_this_process_are_the_kernel_s() -> None:
    """Field for field what the C library says of this process."""
    root = proc.open_root()
    own = proc.open_process(root, os.getpid())
    assert own is not None
    stat, status = proc.read_stat(own), proc.read_status(own)
    os.close(own)
    os.close(root)

    assert stat is not None
    assert status is not None
    assert (stat.pid, stat.ppid, stat.pgrp, stat.session) == (os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0))
    assert (status.tgid, status.uid) == (os.getpid(), os.getuid())
    assert stat.state == "R"
    assert status.memory is not None
    assert status.memory.anon_bytes > 0


def test_a_status_without_an_address_space() -> None:
    """A zombie or kernel thread has no Rss lines: None, never 0."""
    status = proc.parse_status(b"Name:\tx\nTgid:\t5\nUid:\t0\t0\t0\t0\nThreads:\t1\n")

    assert status.memory is None
    assert not status.is_dumping_core


def test_a_status_with_memory() -> None:
    """KiB become bytes; a kernel without swap shows no VmSwap, which is 0 held."""
    content = (
        b"Name:\ta\\nRssAnon: 9\nTgid:\t5\nUid:\t3\t0\t0\t0\nVmPTE:\t4 kB\n"
        b"RssAnon:\t16 kB\nRssFile:\t8 kB\nRssShmem:\t2 kB\nCoreDumping:\t1\n"
    )
    status = proc.parse_status(content)

    assert status.memory == (16 * KIB, 0, 8 * KIB, 2 * KIB, 4 * KIB)
    assert status.is_dumping_core
    assert status.uid == 3


@pytest.mark.needs("cc")
def test_one_address_space_is_counted_once_whatever_its_threads() -> None:
    """200 threads and a zombie leader: the memory is what one of them shows, not the sum."""
    from tests.victims import stage

    size_bytes = 32 * stage.MIB
    for staging in (stage.many_threads(200, size_bytes=size_bytes), stage.zombie_leader(size_bytes=size_bytes)):
        with staging as victim:
            root = proc.open_root()
            process = proc.open_process(root, victim.pid)
            assert process is not None
            memory = proc.read_memory(process)
            os.close(process)
            os.close(root)

            assert memory is not None
            assert size_bytes <= memory.anon_bytes <= 1.5 * size_bytes


def test_a_descriptor_never_names_another_process() -> None:
    """After the process has gone every reader answers None, though the directory is still open."""
    child = subprocess.Popen(["sleep", "50"])
    root = proc.open_root()
    process = proc.open_process(root, child.pid)
    assert process is not None
    child.kill()
    child.wait()

    assert proc.read_stat(process) is None
    assert proc.read_status(process) is None
    assert proc.read_memory(process) is None
    assert proc.read_thread_ids(process) == []
    assert proc.read_oom_score_adj(process) is None
    assert proc.open_process(root, child.pid) is None
    os.close(process)
    os.close(root)


def test_a_process_whose_state_cannot_be_read_counts_as_asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOMEM while reading /proc, as a real shortage answers, is no reason for the deciding process to end."""
    root = proc.open_root()
    assert not proc.is_asleep(root, os.getpid())

    def refuse(_process: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(proc, "read_stat", refuse)
    assert proc.is_asleep(root, os.getpid())
    os.close(root)


def test_the_pid_of_a_pidfd() -> None:
    """The kernel's word on whom a pidfd names; None once it has been waited for."""
    child = subprocess.Popen(["sleep", "50"])
    root = proc.open_root()
    pidfd = syscalls.pidfd_open(child.pid)
    assert child.pid == proc.read_pid_of_pidfd(root, pidfd)
    child.kill()
    child.wait()

    assert proc.read_pid_of_pidfd(root, pidfd) is None
    assert proc.read_pid_of_pidfd(root, 99999) is None
    os.close(pidfd)
    os.close(root)


def test_a_root_that_is_no_procfs(tmp_path: Path) -> None:
    """No directory, an empty one, and one that somebody filled with a copy: each refused with the remedy."""
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(KernelError, match="mount -t proc"):
            proc.open_root(str(path))
    (tmp_path / "self").symlink_to("12345")
    (tmp_path / "meminfo").write_bytes(b"")
    with pytest.raises(KernelError, match="another pid namespace"):
        proc.open_root(str(tmp_path))


def test_meminfo_in_bytes() -> None:
    """kB lines become bytes, counts stay counts."""
    table = proc.parse_meminfo(b"AnonPages:  12 kB\nHugePages_Total:  3\nSwapFree: 0 kB\n\n")

    assert table == {"AnonPages": 12 * KIB, "HugePages_Total": 3, "SwapFree": 0}


@pytest.mark.parametrize("pid", [1, 0, -1, -500])
def test_the_lowest_layer_opens_no_pidfd_for_init_or_below(pid: int) -> None:
    """pid 1, 0 and groups are refused before the kernel is asked."""
    with pytest.raises(ValueError, match="never be a victim"):
        syscalls.pidfd_open(pid)


def test_importing_the_package_does_nothing() -> None:
    """``import oomreaper`` opens nothing, starts nothing, loads neither ctypes nor a room."""
    script = "import sys, oomreaper; print([m for m in sys.modules if m == 'ctypes' or m.startswith('oomreaper.')])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
