"""The memory of the machine: one sample from a handful of kept descriptors.

What it knows: /proc/meminfo, which it stands on, and what some machines have beside it: memory pressure, the count of
kernel OOM kills (vmstat), zram devices, the cache of ZFS. What it refuses to know: what is too little.

How it works: ``read`` opens nothing; what it costs stands in the test that bounds it, half of it is vmstat.
``refresh`` opens what is new, such as a zram device made after our start: call it every 10 s or so while
there is no emergency. Only the fields that we want are cut out of meminfo: a table of all of them costs several times
as much.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from oomreaper.linux import psi
from oomreaper.linux.kept import CHUNK_BYTES, KeptFiles, open_kept
from oomreaper.model.plan import MACHINE
from oomreaper.model.sample import ScopeSample

_KIB = 1024
_PRESSURE = "pressure/memory"
_VMSTAT = "vmstat"
_ARC = "spl/kstat/zfs/arcstats"
_ZRAM = "zram"
_ZRAM_BYTES = 512
# mm_stat: orig_data_size compr_data_size mem_used_total ... (Documentation/admin-guide/blockdev/zram.rst)
_MEM_USED_TOTAL = 2


class Meminfo(NamedTuple):
    """What is taken from /proc/meminfo, in bytes. ``shmem_bytes`` is None where it is not told (a container's)."""

    total_bytes: int
    available_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int
    shmem_bytes: int | None


def parse_meminfo(content: bytes) -> Meminfo:
    """Cut the fields that a sample needs out of /proc/meminfo.

    Raises:
        ValueError: It tells of no memory.
    """
    total_bytes = _find_bytes(content, b"MemTotal:")
    available_bytes = _find_bytes(content, b"\nMemAvailable:")
    shmem_bytes = _find_bytes(content, b"\nShmem:")
    if not total_bytes:
        raise ValueError(content)
    if available_bytes is None:
        # The programs that stand in for /proc in a container do not all give it. Shared memory counts as cached there.
        free = (_find_bytes(content, name) for name in (b"\nMemFree:", b"\nBuffers:", b"\nCached:", b"\nSReclaimable:"))
        available_bytes = max(0, sum(part or 0 for part in free) - (shmem_bytes or 0))
    return Meminfo(
        total_bytes,
        available_bytes,
        _find_bytes(content, b"\nSwapTotal:") or 0,
        _find_bytes(content, b"\nSwapFree:") or 0,
        shmem_bytes,
    )


def read_oom_kills(vmstat: int) -> int:
    """How many processes the kernel's own killer has killed since boot (/proc/vmstat, oom_kill)."""
    (oom_kills,) = _read_counters(vmstat, b"\noom_kill ")
    return oom_kills


def read_arc_reclaimable_bytes(arcstats: int) -> int:
    """What the cache of ZFS gives back when memory runs short: all above its least size.

    MemAvailable leaves it out, since it is no page cache to the kernel.
    """
    size_bytes, least_bytes = _read_counters(arcstats, b"\nsize ", b"\nc_min ")
    return max(0, size_bytes - least_bytes)


def read_zram_used_bytes(mm_stat: int) -> int:
    """What one zram device takes of memory, its own waste included (mem_used_total)."""
    return int(os.pread(mm_stat, _ZRAM_BYTES, 0).split()[_MEM_USED_TOTAL])


class MachineMemory:
    """The machine's memory. ``lost`` tells which file that exists gives no number now, and why.

    ``proc_root`` is a descriptor of /proc, which must stay open as long as this; ``sys_root`` is the path of /sys.

    Raises:
        OSError: There is no meminfo to be opened.
    """

    def __init__(self, proc_root: int, sys_root: str) -> None:
        self._proc_root = proc_root
        self._sys_root = sys_root
        self._kept = KeptFiles()
        self._zram: tuple[str, ...] = ()
        self._meminfo: int | None = open_kept("meminfo", proc_root)
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise

    @property
    def lost(self) -> dict[str, str]:
        """The reason by the file's name; empty when all that exists is read."""
        return self._kept.lost

    def read(self, now_ns: int) -> ScopeSample:
        """The sample of this moment; opens nothing.

        Raises:
            OSError: meminfo cannot be read, or tells of no memory (EIO). Any other file costs its own number only.
        """
        if self._meminfo is None:
            raise OSError(errno.EBADF, "meminfo is closed")
        content = os.pread(self._meminfo, CHUNK_BYTES, 0)
        try:
            numbers = parse_meminfo(content)
        except ValueError as error:
            raise OSError(errno.EIO, "meminfo tells of no memory") from error
        kept = self._kept
        arc_bytes = kept.read(_ARC, read_arc_reclaimable_bytes) or 0
        some_us, full_us = kept.read(_PRESSURE, psi.read_totals) or (None, None)
        return ScopeSample(
            scope=MACHINE,
            monotonic_ns=now_ns,
            total_bytes=numbers.total_bytes,
            # Never more than there is: MemAvailable is an estimate, and a container's meminfo may be two views in one.
            available_bytes=min(numbers.available_bytes + arc_bytes, numbers.total_bytes),
            swap_total_bytes=numbers.swap_total_bytes,
            swap_free_bytes=min(numbers.swap_free_bytes, numbers.swap_total_bytes),
            shmem_bytes=numbers.shmem_bytes,
            zram_used_bytes=self._read_zram_used_bytes(),
            psi_some_us=some_us,
            psi_full_us=full_us,
            oom_kills=kept.read(_VMSTAT, read_oom_kills),
        )

    def refresh(self) -> None:
        """Open what is new, and what could not be opened before; not for the hot path."""
        for name in (_PRESSURE, _VMSTAT, _ARC):
            self._kept.add(name, name, self._proc_root)
        blocks = f"{self._sys_root}/block"
        try:
            devices = [name for name in os.listdir(blocks) if name.startswith(_ZRAM)]
        except FileNotFoundError:
            devices = []
        except OSError as error:
            self._kept.lost[_ZRAM] = str(error.strerror)
            return
        self._kept.lost.pop(_ZRAM, None)
        for gone in set(self._zram).difference(devices):
            self._kept.remove(gone)
        for device in devices:
            self._kept.add(device, f"{blocks}/{device}/mm_stat")
        self._zram = tuple(devices)

    def close(self) -> None:
        """Give all descriptors up, but for ``proc_root``."""
        self._kept.close()
        if self._meminfo is not None:
            os.close(self._meminfo)
            self._meminfo = None

    def _read_zram_used_bytes(self) -> int | None:
        used = [
            used_bytes
            for device in self._zram
            if (used_bytes := self._kept.read(device, read_zram_used_bytes)) is not None
        ]
        return sum(used) if used else None


def _find_bytes(content: bytes, label: bytes) -> int | None:
    start = content.find(label)
    if start < 0:
        return None
    start += len(label)
    return int(content[start : content.index(b"kB", start)]) * _KIB


def _read_counters(file: int, *labels: bytes) -> list[int]:
    """The last number of each labelled line of a file that the kernel gives out a page at a time.

    Raises:
        OSError: As pread(2).
        ValueError: A line is missing.
    """
    content = b"\n"
    while True:
        chunk = os.pread(file, CHUNK_BYTES, len(content) - 1)
        content += chunk
        places = [content.find(label) for label in labels]
        if min(places) >= 0 and content.find(b"\n", max(places) + 1) >= 0:
            return [int(content[place + 1 : content.index(b"\n", place + 1)].split()[-1]) for place in places]
        if not chunk:
            raise ValueError(labels)
