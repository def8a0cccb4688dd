"""userfaultfd(2), as little of it as stops whoever touches one page, the kernel included; declared only.

A page that is registered as "missing" and was never touched stops its reader until somebody provides it. Nobody
does here: the reader leaves when it is killed. To stop the *kernel's* own reading (a write(2) from that page)
takes CAP_SYS_PTRACE, or 1 in /proc/sys/vm/unprivileged_userfaultfd.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mmap

# The call is older than the common numbering (include/uapi/asm-generic/unistd.h: 282), so its number differs.
_SYS_USERFAULTFD_BY_MACHINE = {
    "x86_64": 323,
    "i386": 374,
    "i686": 374,
    "aarch64": 282,
    "riscv64": 282,
    "loongarch64": 282,
    "armv7l": 388,
    "ppc64le": 364,
    "ppc64": 364,
    "s390x": 355,
}
# include/uapi/linux/userfaultfd.h; both are read and written, so the number is the same on powerpc too.
_UFFD_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_REGISTER_MODE_MISSING = 1

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def open_userfaultfd() -> int:
    """A userfaultfd, close-on-exec, that stops the kernel's accesses too.

    Raises:
        OSError: EPERM (not the right, or a sandbox), ENOSYS (not built, or an architecture unknown here).
    """
    number = _SYS_USERFAULTFD_BY_MACHINE.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of userfaultfd(2) on {platform.machine()} is not known here")
    descriptor = int(_syscall(ctypes.c_long(number), ctypes.c_long(os.O_CLOEXEC)))
    if descriptor < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    fcntl.ioctl(descriptor, _UFFDIO_API, struct.pack("QQQ", _UFFD_API, 0, 0))
    return descriptor


def register_missing(descriptor: int, memory: mmap.mmap) -> None:
    """Stop whoever touches a page of ``memory`` that nobody has touched; ``descriptor`` is readable from then on.

    ``memory`` cannot be closed any more.

    Raises:
        OSError: EINVAL (no private anonymous memory), ENOMEM.
    """
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    request = struct.pack("QQQQ", address, len(memory), _UFFDIO_REGISTER_MODE_MISSING, 0)
    fcntl.ioctl(descriptor, _UFFDIO_REGISTER, request)
