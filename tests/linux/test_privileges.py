"""Rights that are given up are gone, and each that is kept is kept for something."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from oomreaper.linux import privileges, syscalls
from oomreaper.linux.privileges import NEEDED, drop_privileges, read_capabilities
from tests.interpreters import NOBODY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PR_GET_DUMPABLE = 3
_libc = ctypes.CDLL(None, use_errno=True)


def in_a_child(action: Callable[[], object]) -> Any:
    """What ``action`` returns in a child: rights that are given up there are not missing here."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.write(writer, json.dumps(action()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        content = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(content)


@contextmanager
def strangers() -> Iterator[tuple[int, int]]:
    """Two processes of another user."""
    processes = [subprocess.Popen(["sleep", "60"], user=NOBODY, group=NOBODY, extra_groups=[]) for _ in range(2)]
    try:
        yield processes[0].pid, processes[1].pid
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _signal(pid: int, _: int) -> None:
    pidfd = syscalls.pidfd_open(pid)
    syscalls.pidfd_send_signal(pidfd, 0)


def _compare(pid: int, other: int) -> None:
    syscalls.is_same_mm(pid, other)


def _raise_score(pid: int, _: int) -> None:
    file = os.open(f"/proc/{pid}/oom_score_adj", os.O_WRONLY)
    os.write(file, b"1000")


def _be_realtime(_pid: int, _other: int) -> None:
    resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0))
    syscalls.be_realtime()


def _lock(_pid: int, _other: int) -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
    memory = mmap.mmap(-1, 1 << 20)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _libc.mlock(ctypes.c_void_p(start), ctypes.c_size_t(1 << 20)) != 0:
        raise OSError(ctypes.get_errno(), "mlock")


def _lower_own_score(_pid: int, _other: int) -> None:
    file = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    os.write(file, b"-1000")


PROOFS: dict[str, Callable[[int, int], None]] = {
    "CAP_KILL": _signal,
    "CAP_SYS_PTRACE": _compare,
    "CAP_DAC_OVERRIDE": _raise_score,
    "CAP_SYS_NICE": _be_realtime,
    "CAP_IPC_LOCK": _lock,
    "CAP_SYS_RESOURCE": _lower_own_score,
}


def _attempt(keep: frozenset[str], capability: str, pids: tuple[int, int]) -> bool:
    drop_privileges(keep)
    try:
        PROOFS[capability](*pids)
    except OSError:
        return False
    return True


def _own_score_is_lowest() -> bool:
    """Who was given -1000 already may write it again without any right."""
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        return int(file.read()) == -1000


@pytest.mark.needs("root", "kcmp")
@pytest.mark.parametrize("capability", sorted(NEEDED))
def test_each_capability_is_needed(capability: str) -> None:
    """Without it the kernel refuses what its sentence names; with it, and with no other, it is granted."""
    if capability == "CAP_SYS_RESOURCE" and _own_score_is_lowest():
        return
    _, permitted = read_capabilities()
    is_ours = bool(permitted >> privileges._BITS[capability] & 1)
    with strangers() as pids:
        without = in_a_child(lambda: _attempt(frozenset(NEEDED) - {capability}, capability, pids))
        alone = in_a_child(lambda: _attempt(frozenset({capability}), capability, pids))

    assert without is False
    assert alone is is_ours or capability == "CAP_SYS_NICE"  # a v1 cpu group without rt_runtime refuses even root


def test_every_capability_has_its_reason_and_its_proof() -> None:
    """The table, the bits and the proofs name the same."""
    assert set(NEEDED) == set(privileges._BITS) == set(PROOFS)
    assert all(len(reason) > 20 for reason in NEEDED.values())


@pytest.mark.needs("root")
def test_all_others_are_gone_for_good() -> None:
    """Nothing but what was kept is permitted, bounded, inheritable or ambient; a program of root's gets no more."""

    def look() -> dict[str, object]:
        kept = drop_privileges()
        status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True, check=True).stdout
        with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
            own = file.read()
        return {"kept": sorted(kept.effective), "problems": kept.problems, "own": own, "program": status}

    seen = in_a_child(look)
    most = sum(1 << privileges._BITS[name] for name in NEEDED)

    assert seen["problems"] == []
    for status in (seen["own"], seen["program"]):
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        for name in ("CapPrm", "CapEff", "CapBnd"):
            assert int(fields[name], 16) & ~most == 0
        assert (int(fields["CapInh"], 16), int(fields["CapAmb"], 16)) == (0, 0)
        assert fields["NoNewPrivs"] == "1"
        assert fields["Umask"] == "0077"
    assert set(seen["kept"]) <= set(NEEDED)


@pytest.mark.needs("root")
def test_a_child_inherits_what_is_left() -> None:
    """A worker that is forked later has the same rights."""

    def look() -> bool:
        drop_privileges()
        return bool(in_a_child(lambda: list(read_capabilities())) == list(read_capabilities()))

    assert in_a_child(look) is True


def test_an_ordinary_user_loses_nothing_and_gets_no_error() -> None:
    """Without capabilities there is nothing to give up: no problem is told, and what is missing is."""

    def look() -> list[object]:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        kept = drop_privileges()
        return [sorted(kept.effective), sorted(kept.missing), kept.has_no_new_privs, list(kept.problems)]

    assert in_a_child(look) == [[], sorted(NEEDED), True, []]


def test_dumpable_stays() -> None:
    """Our own files in /proc remain our own: an ordinary user's watcher reads them."""

    def look() -> list[int]:
        before = int(_libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))
        drop_privileges()
        return [before, int(_libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))]

    before, after = in_a_child(look)

    assert before == after


def test_an_unknown_capability_is_our_mistake() -> None:
    """A misspelt name is not dropped in silence."""
    with pytest.raises(KeyError):
        drop_privileges(frozenset({"CAP_KILLL"}))
