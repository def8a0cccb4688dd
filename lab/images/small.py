"""The small image: an initramfs with busybox and Python, up in seconds; nothing of a distribution runs in it.

Several archives make one: the base, the modules of one kernel with the order in which they are loaded, what is of this
project, and the start. With the suite: the tests and their tools as well.

The root file system is memory, and stays there: it shows whole-machine shortages, but no thrashing of program text.
That is what the full image is for.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from lab.cache import Cache, key_of, key_of_files
from lab.images import archive
from lab.images.base import obtain_base
from lab.images.project import obtain_project, obtain_test_tools
from lab.kernels import modules_in_order
from lab.seam import AGENT_PORT, HOME, PROBE_PORT

if TYPE_CHECKING:
    from lab.kernels import Kernel
    from lab.packages import Archive

# By name, with the options they are loaded with. Some kernels have some of them built in.
MODULES = {"virtio_pci": "", "virtio_blk": "", "zram": "", "lz4": "", "loop": "max_loop=8", "fuse": "", "overlay": ""}
MODULES_ORDER = "usr/lib/modules/order"
# busybox has no mount of cgroup2's options, and needs none. Controllers are handed down from the root's group.
_INIT = f"""\
#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts /var/tmp
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=1777 tmp /tmp
mount -t tmpfs run /run
mount -t devpts pts /dev/pts
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo "+memory +cpu +pids +io" > /sys/fs/cgroup/cgroup.subtree_control
mount -t debugfs debug /sys/kernel/debug
mount -t tracefs trace /sys/kernel/tracing
ip link set lo up
while read -r module; do insmod $module; done < /{MODULES_ORDER}
echo 0 > /proc/sys/kernel/hung_task_timeout_secs
exec busybox init
"""
_INITTAB = f"""\
::sysinit:/bin/true
::respawn:/usr/bin/python3 -I -S -u {HOME}/agent.py {AGENT_PORT} {PROBE_PORT}
::ctrlaltdel:/sbin/poweroff -f
"""
_BUILDER = key_of([Path(__file__).read_bytes(), Path(archive.__file__).read_bytes()])


def obtain_small(kernel: Kernel, cache: Cache, packages: Archive, *, with_suite: bool = False) -> Path:
    """The initramfs for a kernel; from the cache what is there."""
    base = obtain_base(cache, packages, with_tools=with_suite)
    parts = [
        base / "base.cpio",
        obtain_modules(kernel, cache) / "modules.cpio",
        obtain_project(cache, base / "tree", with_tests=with_suite) / "project.cpio",
    ]
    if with_suite:
        parts.append(obtain_test_tools(cache, base / "tree") / "tools.cpio")

    def build(place: Path) -> None:
        with (place / "initramfs").open("wb") as whole:
            for part in parts:
                whole.write(part.read_bytes())
            whole.write(_start_archive())

    key = key_of([_BUILDER, *(part.parent.name for part in parts)])
    name = f"{'suite' if with_suite else 'small'}-{kernel.name}"
    return cache.obtain("initramfs", name, key, build) / "initramfs"


def obtain_modules(kernel: Kernel, cache: Cache) -> Path:
    """``modules.cpio``: the modules of a kernel that guests need, and the file that names them in their order."""
    files = modules_in_order(kernel, tuple(MODULES))

    def build(place: Path) -> None:
        nodes, order = [], []
        for number, path in enumerate(files):
            name = f"usr/lib/modules/{number:02}-{path.name}"
            nodes.append(archive.file(name, path.read_bytes()))
            order.append(f"/{name} {MODULES.get(path.stem, '')}".rstrip())
        nodes.append(archive.file(MODULES_ORDER, "".join(f"{line}\n" for line in order).encode()))
        with (place / "modules.cpio").open("wb") as out:
            archive.write(archive.with_parents(nodes), out)

    key = key_of([_BUILDER, key_of_files(kernel.modules, files)])
    return cache.obtain("initramfs", f"modules-{kernel.name}", key, build)


def _start_archive() -> bytes:
    out = io.BytesIO()
    nodes = [archive.file("init", _INIT.encode(), is_executable=True), archive.file("etc/inittab", _INITTAB.encode())]
    archive.write(archive.with_parents(nodes), out)
    return out.getvalue()
