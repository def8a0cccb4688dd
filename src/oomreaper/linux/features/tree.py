"""The files that features are read from: /proc and /sys, or a recorded copy of them."""

from __future__ import annotations

import os
from typing import NamedTuple

_USUAL_SYS_ROOT = "/sys"

# What a question that would change a file answers when the file is a recorded copy.
RECORDED = "recorded"


class Tree(NamedTuple):
    """Two roots. A file that is not there, or not ours to read, is a finding here and never an error."""

    proc_root: str
    sys_root: str

    def read_proc(self, name: str) -> bytes | None:
        """Read a file below /proc; None when it cannot be read."""
        return _read(f"{self.proc_root}/{name}")

    def read_sys(self, name: str) -> bytes | None:
        """Read a file below /sys; None when it cannot be read."""
        return _read(f"{self.sys_root}/{name}")

    def locate(self, path: str) -> str:
        """Where a path that the kernel named is found: what lies below /sys lies below ``sys_root``."""
        if path == _USUAL_SYS_ROOT or path.startswith(_USUAL_SYS_ROOT + "/"):
            return self.sys_root + path[len(_USUAL_SYS_ROOT) :]
        return path


def to_text(content: bytes) -> str:
    r"""Bytes of the kernel for display, on one line less its newline; what is no UTF-8 shows as ``\xNN``.

    Control characters stay as they are: faces escape them, whatever their source.
    """
    return content.decode("utf-8", "backslashreplace").strip("\n")


def format_kib(size_kib: int) -> str:
    """Show a size to people: ``4 GiB``, ``1.5 GiB``, ``512 MiB``, ``64 KiB``."""
    for unit, unit_kib in (("GiB", 1024 * 1024), ("MiB", 1024)):
        size = round(size_kib / unit_kib, 1)
        if size >= 1:  # after rounding: a swap area of 1 GiB has one page less
            return f"{size:g} {unit}"
    return f"{size_kib} KiB"


def _read(path: str) -> bytes | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        content = chunk = os.read(file, 65536)
        while chunk:
            chunk = os.read(file, 65536)
            content += chunk
    except OSError:
        return None
    finally:
        os.close(file)
    return content
