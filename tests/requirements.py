"""What a test may need of the machine, by name: ``@pytest.mark.needs("root", "fuse")``.

Each requirement is *tried*, not deduced: from a kernel's version or a user's id nothing follows inside a container.
What trying would do to a process (a new namespace, a real-time priority) is done in a child forked for it, of one
interpreter started for all of them.

Whether a lack is excusable is a second question. ``obtainable`` says that this machine could offer the thing, had
somebody installed or mounted it: a run that says CI=true fails then, since a check that never runs is none. What
is the machine's own (its kernel, its swap, who we are) is not held against the run.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import functools
import json
import mmap
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oomreaper.linux import syscalls
from tests.interpreters import find_python_for_everybody
from tests.victims.cgroups import is_v1_controller_of_kernel, own_directory
from tests.victims.program import MIB, fresh_name
from tests.victims.surroundings import CORE_PATTERN, administrator_tool, make_swap_file

if TYPE_CHECKING:
    from collections.abc import Callable

_libc = ctypes.CDLL(None, use_errno=True)

_CLONE_NEWNS = 0x00020000
_CLONE_NEWPID = 0x20000000
_MS_PRIVATE_RECURSIVE = 0x4000 | 0x40000
_LOOP_CTL_GET_FREE = 0x4C82
_PTRACE_SEIZE = 0x4206
_PTRACE_O_TRACEEXIT = 0x40
_PR_GET_SECCOMP = 21
_PR_SET_PTRACER = 0x59616D61
_PR_SET_PTRACER_ANY = ctypes.c_ulong(-1)
# The numbers of userfaultfd(2), which is older than the common numbering.
_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282, "riscv64": 282, "loongarch64": 282, "ppc64le": 364, "s390x": 355}

# What the victims of the tests mlock at most, with the rest of their process.
_MLOCK_BYTES = 80 * MIB


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One thing that a test may need."""

    name: str
    find_missing: Callable[[], str | None]
    """Why it cannot be had now; None when it can."""
    find_obtainable: Callable[[], bool] = lambda: False
    """Whether this machine could offer it all the same; asked only when it is missing."""
    is_probed_apart: bool = False
    """Whether trying it would change the process that tries."""

    def missing(self) -> str | None:
        """Why it cannot be had now; None when it can. Tried once a run."""
        if self.is_probed_apart:
            return _reasons_of_probes()[self.name]
        return _reason(self.name)

    def obtainable(self) -> bool:
        """Whether this machine could offer it, so that its lack is the run's fault."""
        return self.missing() is not None and self.find_obtainable()


def _raise_errno(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _is_root() -> bool:
    return os.geteuid() == 0


def _has_filesystem(name: str) -> bool:
    return name in Path("/proc/filesystems").read_text(encoding="ascii").split()


def _find_root() -> str | None:
    return None if _is_root() else "not run as root"


def _find_cc() -> str | None:
    return None if shutil.which("cc") else "no C compiler (cc) is installed"


def _find_two_cpus() -> str | None:
    return None if len(os.sched_getaffinity(0)) > 1 else "only one CPU may be used"


def _find_mrelease() -> str | None:
    answer = syscalls.answer_of_mrelease_probe()
    return None if answer == errno.EBADF else f"process_mrelease: {os.strerror(answer)}"


def _find_kcmp() -> str | None:
    syscalls.is_same_mm(os.getpid(), os.getpid())
    return None


def _find_psi() -> str | None:
    Path("/proc/pressure/memory").read_text(encoding="ascii")
    return None


def _find_swap() -> str | None:
    tools = [administrator_tool(name) for name in ("mkswap", "swapon", "swapoff")]
    if None in tools:
        return "mkswap and swapon are not installed"
    if not Path("/proc/swaps").exists():
        return "the kernel has no swap"
    with tempfile.TemporaryDirectory(prefix="oomreaper-test-") as directory:
        path = Path(directory) / "probe.swap"
        make_swap_file(path, 1 << 20)
        done = subprocess.run([str(tools[1]), str(path)], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return f"swapon refuses a file: {done.stderr.strip()}"
        subprocess.run([str(tools[2]), str(path)], check=True)
    return None


_THP_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def _find_thp() -> str | None:
    return "transparent huge pages are off" if "[never]" in _THP_ENABLED.read_text(encoding="ascii") else None


def _find_core_pattern() -> str | None:
    with CORE_PATTERN.open("r+b"):
        pass
    mount_points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    if "/" not in mount_points:  # a chroot into a directory that is no mount
        return "the kernel starts what core_pattern names in another root directory than ours (a chroot)"
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        return "the hard limit of core files is 0"
    return None


def _try_cgroup(controller: str | None, what: str) -> str | None:
    parent = own_directory(controller)
    if parent is None:
        return f"{what} is not mounted"
    directory = parent / fresh_name()
    directory.mkdir()
    directory.rmdir()
    return None


def _find_cgroup_v1_freezer() -> str | None:
    return _try_cgroup("freezer", "the v1 freezer controller")


def _find_cgroup_v1_memory() -> str | None:
    return _try_cgroup("memory", "the v1 memory controller")


def _find_cgroup_v2() -> str | None:
    return _try_cgroup(None, "cgroup v2")


def _controllers_of_v2() -> list[str]:
    directory = own_directory(None)
    return (directory / "cgroup.controllers").read_text(encoding="ascii").split() if directory else []


def _find_cgroup_v2_memory() -> str | None:
    return None if "memory" in _controllers_of_v2() else "the v2 hierarchy here has no memory controller"


def _can_mount_v1_memory() -> bool:
    return _is_root() and is_v1_controller_of_kernel("memory") and "memory" not in _controllers_of_v2()


# ---- tried in a child of its own ------------------------------------------------------------------------------


def _take_own_mounts() -> None:
    _raise_errno(_libc.unshare(_CLONE_NEWNS))
    _raise_errno(_libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_PRIVATE_RECURSIVE), None))


def _find_unshare() -> str | None:
    _take_own_mounts()
    _raise_errno(_libc.unshare(_CLONE_NEWPID))
    return None


def _find_fuse() -> str | None:
    _take_own_mounts()
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    _raise_errno(_libc.mount(b"oomreaper-test-probe", b"/tmp", b"fuse", ctypes.c_ulong(0), options))
    return None


def _find_loop_ext4() -> str | None:
    if not administrator_tool("mkfs.ext4"):
        return "mkfs.ext4 is not installed"
    if not _has_filesystem("ext4"):
        return "the kernel has no ext4"
    _take_own_mounts()
    control = os.open("/dev/loop-control", os.O_RDWR)
    number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    os.close(os.open(f"/dev/loop{number}", os.O_RDWR))
    return None


def _find_userfaultfd() -> str | None:
    # Without UFFD_USER_MODE_ONLY: the kernel's own accesses are what has to be trapped.
    number = _SYS_USERFAULTFD.get(platform.machine())
    if number is None:
        return f"the number of userfaultfd(2) on {platform.machine()} is not known here"
    _raise_errno(_libc.syscall(ctypes.c_long(number), ctypes.c_long(os.O_CLOEXEC)))
    return None


def _find_ptrace() -> str | None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _libc.prctl(_PR_SET_PTRACER, _PR_SET_PTRACER_ANY, 0, 0, 0)
        os.write(writer, b"x")
        signal.pause()
    try:
        os.read(reader, 1)
        options = ctypes.c_long(_PTRACE_O_TRACEEXIT)
        _raise_errno(_libc.ptrace(ctypes.c_long(_PTRACE_SEIZE), ctypes.c_long(pid), ctypes.c_long(0), options))
    finally:
        pidfd = os.pidfd_open(pid)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    return None


def _find_sched_fifo() -> str | None:
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    return None


def _find_negative_nice() -> str | None:
    os.setpriority(os.PRIO_PROCESS, 0, -20)
    return None


def _find_mlock() -> str | None:
    memory = mmap.mmap(-1, _MLOCK_BYTES)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    lock_on_fault = 1
    _raise_errno(_libc.mlock2(ctypes.c_void_p(start), ctypes.c_size_t(_MLOCK_BYTES), lock_on_fault))
    return None


def _find_seccomp() -> str | None:
    _raise_errno(_libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0))
    Path("/proc/sys/kernel/seccomp/actions_avail").read_text(encoding="ascii")
    return None


def _find_kernel_threads() -> str | None:
    is_shown = Path("/proc/2/comm").exists() and Path("/proc/2/comm").read_bytes() == b"kthreadd\n"
    return None if is_shown else "no kernel thread is to be seen from this pid namespace"


def _find_python_for_everybody() -> str | None:
    return None if find_python_for_everybody() else "no Python of 3.11 or later that another user may start"


def _find_cgroup_v1_realtime() -> str | None:
    budget = Path("/sys/fs/cgroup/cpu/cpu.rt_runtime_us")
    return None if budget.exists() else "no v1 cpu hierarchy with RT_GROUP_SCHED"


_ALL = (
    Requirement(name="kernel_threads", find_missing=_find_kernel_threads),
    Requirement(name="python_for_everybody", find_missing=_find_python_for_everybody),
    Requirement(name="cgroup_v1_realtime", find_missing=_find_cgroup_v1_realtime),
    Requirement(name="root", find_missing=_find_root),
    Requirement(name="cc", find_missing=_find_cc, find_obtainable=_is_root),
    Requirement(name="two_cpus", find_missing=_find_two_cpus),
    Requirement(name="process_mrelease", find_missing=_find_mrelease),
    Requirement(name="kcmp", find_missing=_find_kcmp),
    Requirement(name="psi", find_missing=_find_psi),
    Requirement(name="swap", find_missing=_find_swap, find_obtainable=_is_root),
    Requirement(name="thp", find_missing=_find_thp, find_obtainable=lambda: _is_root() and _THP_ENABLED.exists()),
    Requirement(name="core_pattern", find_missing=_find_core_pattern),
    Requirement(
        name="cgroup_v1_freezer",
        find_missing=_find_cgroup_v1_freezer,
        find_obtainable=lambda: _is_root() and is_v1_controller_of_kernel("freezer"),
    ),
    Requirement(
        name="cgroup_v1_memory",
        find_missing=_find_cgroup_v1_memory,
        find_obtainable=_can_mount_v1_memory,
    ),
    Requirement(
        name="cgroup_v2",
        find_missing=_find_cgroup_v2,
        find_obtainable=lambda: _is_root() and _has_filesystem("cgroup2"),
    ),
    Requirement(name="cgroup_v2_memory", find_missing=_find_cgroup_v2_memory),
    Requirement(name="unshare", find_missing=_find_unshare, is_probed_apart=True),
    Requirement(
        name="fuse",
        find_missing=_find_fuse,
        find_obtainable=lambda: _is_root() and _has_filesystem("fuse"),
        is_probed_apart=True,
    ),
    Requirement(
        name="loop_ext4",
        find_missing=_find_loop_ext4,
        find_obtainable=lambda: _is_root() and _has_filesystem("ext4"),
        is_probed_apart=True,
    ),
    Requirement(
        name="userfaultfd",
        find_missing=_find_userfaultfd,
        find_obtainable=lambda: _is_root() and Path("/proc/sys/vm/unprivileged_userfaultfd").exists(),
        is_probed_apart=True,
    ),
    Requirement(name="ptrace", find_missing=_find_ptrace, is_probed_apart=True),
    Requirement(name="sched_fifo", find_missing=_find_sched_fifo, is_probed_apart=True),
    Requirement(name="negative_nice", find_missing=_find_negative_nice, is_probed_apart=True),
    Requirement(name="mlock", find_missing=_find_mlock, is_probed_apart=True),
    Requirement(name="seccomp", find_missing=_find_seccomp, is_probed_apart=True),
)

REQUIREMENTS = {requirement.name: requirement for requirement in _ALL}


@functools.cache
def _reason(name: str) -> str | None:
    try:
        return REQUIREMENTS[name].find_missing()
    except OSError as error:
        return str(error)


@functools.cache
def _reasons_of_probes() -> dict[str, str | None]:
    """Why each requirement that is probed apart is missing: one new interpreter tells of all of them."""
    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, "-m", "tests.requirements"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=root, env=environment, timeout=60)
    reasons: dict[str, str | None] = json.loads(done.stdout)
    return reasons


def _reason_found_by_a_child(requirement: Requirement) -> str | None:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.write(writer, (_reason(requirement.name) or "").encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        reason = pipe.read().decode()
    os.waitpid(pid, 0)
    return reason or None


if __name__ == "__main__":
    json.dump({each.name: _reason_found_by_a_child(each) for each in _ALL if each.is_probed_apart}, sys.stdout)
