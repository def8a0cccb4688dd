"""An image by name: what a guest is started with, from the cache or built now."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lab.cache import key_of
from lab.images import full, small
from lab.kernels import obtain_kernel
from lab.packages import LabError

if TYPE_CHECKING:
    from pathlib import Path

    from lab.cache import Cache
    from lab.kernels import Kernel
    from lab.packages import Archive

IMAGES = ("small", "suite", "full")
# quiet: a console under emulation costs a boot some seconds. A kernel that oopses is of no more use, and one that
# panics ends the guest at once (qemu's -no-reboot). Mitigations cost time and change nothing here. Nothing else: what
# a distribution's kernel does by default about memory is what is measured.
_COMMAND_LINE = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off random.trust_cpu=on psi=1"


class Image(NamedTuple):
    """What a guest is started with."""

    kernel: Kernel
    initramfs: Path
    root: Path | None
    """The disk of its root file system, not to be written to; None where the initramfs is the root."""
    command_line: str
    key: str
    """Of all of it."""


def obtain_image(name: str, kernel_name: str, cache: Cache, archive: Archive) -> Image:
    """An image for a kernel.

    Raises:
        LabError: there is no such image or kernel, or it cannot be built.
    """
    if name not in IMAGES:
        message = f"no image is called {name}; there are {', '.join(IMAGES)}"
        raise LabError(message)
    kernel = obtain_kernel(kernel_name, cache, archive)
    if name == "full":
        initramfs, root = full.obtain_full(kernel, cache, archive)
        command_line = f"{_COMMAND_LINE} root=/dev/vda rw systemd.unified_cgroup_hierarchy=1"
    else:
        initramfs = small.obtain_small(kernel, cache, archive, with_suite=name == "suite")
        root, command_line = None, f"{_COMMAND_LINE} rdinit=/init"
    parts = [kernel.image.parent.name, initramfs.parent.name, root.parent.name if root else "", command_line]
    return Image(kernel, initramfs, root, command_line, key_of(parts))
