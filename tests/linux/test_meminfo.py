"""The machine's memory on recorded trees (no PSI, zram, ZFS, a container, an old kernel) and on this machine."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import meminfo
from oomreaper.linux.meminfo import MachineMemory, Meminfo
from oomreaper.model.plan import MACHINE
from oomreaper.model.sample import ScopeSample
from tests.linux.sources import count_descriptors, failing, write_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KIB = 1024
MEMINFO = (
    "MemTotal:       24684092 kB\nMemFree:        20000000 kB\nMemAvailable:   22000000 kB\n"
    "Buffers:            2744 kB\n"
    "Cached:          2545000 kB\nSwapCached:            7 kB\nActive:            27100 kB\n"
    "SwapTotal:       4000000 kB\n"
    "SwapFree:        3000000 kB\nDirty:               740 kB\nShmem:            500000 kB\n"
    "SReclaimable:      19116 kB\n"
    "ShmemHugePages:        0 kB\nShmemPmdMapped:        0 kB\nHugePages_Total:       0\n"
)
PRESSURE = "some avg10=0.00 avg60=0.00 avg300=0.00 total=111\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=22\n"
VMSTAT = "nr_free_pages 6070806\nslabs_scanned 0\noom_kill 3\ncompact_stall 0\n"
MM_STAT = "    4096   2048   12288        0    12288        0        0        0        0\n"
ARCSTATS = (
    "13 1 0x01 123 33456 4081239 1123213\nname                            type data\n"
    "c                               4    900000000\nc_min                           4    100000000\n"
    "c_max                           4    990000000\nsize                            4    600000000\n"
    "compressed_size                 4    300000000\n"
)
PLAIN = ScopeSample(
    scope=MACHINE,
    monotonic_ns=77,
    total_bytes=24684092 * KIB,
    available_bytes=22000000 * KIB,
    swap_total_bytes=4000000 * KIB,
    swap_free_bytes=3000000 * KIB,
    shmem_bytes=500000 * KIB,
    psi_some_us=111,
    psi_full_us=22,
    oom_kills=3,
)
ALL_FILES = {
    "proc/meminfo": MEMINFO,
    "proc/vmstat": VMSTAT,
    "proc/pressure/memory": PRESSURE,
    "proc/spl/kstat/zfs/arcstats": ARCSTATS,
    "sys/block/zram0/mm_stat": MM_STAT,
    "sys/block/vda/size": "8\n",
}


@contextlib.contextmanager
def _opened(top: Path, files: dict[str, str]) -> Iterator[MachineMemory]:
    write_tree(top, files)
    proc_root = os.open(top / "proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        memory = MachineMemory(proc_root, str(top / "sys"))
        try:
            yield memory
        finally:
            memory.close()
    finally:
        os.close(proc_root)


def _read(top: Path, files: dict[str, str]) -> ScopeSample:
    with _opened(top, files) as memory:
        assert memory.lost == {}
        return memory.read(77)


def test_a_plain_machine(tmp_path: Path) -> None:
    """Bytes by name; there is no zram, so nothing is told of it."""
    files = {name: ALL_FILES[name] for name in ("proc/meminfo", "proc/vmstat", "proc/pressure/memory")}

    assert _read(tmp_path, files) == PLAIN


def test_a_machine_with_nothing_but_meminfo(tmp_path: Path) -> None:
    """No PSI, no vmstat, no sysfs: None, and no complaint."""
    sample = _read(tmp_path, {"proc/meminfo": MEMINFO})

    assert sample == PLAIN._replace(psi_some_us=None, psi_full_us=None, oom_kills=None)


def test_the_cache_of_zfs_can_be_had(tmp_path: Path) -> None:
    """What it holds above its least size is available on top of what the kernel says."""
    sample = _read(tmp_path, {"proc/meminfo": MEMINFO, "proc/spl/kstat/zfs/arcstats": ARCSTATS})

    assert sample.available_bytes == PLAIN.available_bytes + 500_000_000


def test_a_cache_of_zfs_below_its_least_size_takes_nothing_away(tmp_path: Path) -> None:
    """A young cache: size under c_min counts as nothing."""
    arcstats = ARCSTATS.replace("600000000", "60000000")
    sample = _read(tmp_path, {"proc/meminfo": MEMINFO, "proc/spl/kstat/zfs/arcstats": arcstats})

    assert sample.available_bytes == PLAIN.available_bytes


def test_no_more_is_available_than_there_is(tmp_path: Path) -> None:
    """An estimate beyond the total, as a container's mixed views give it, is cut; so is swap."""
    content = MEMINFO.replace("22000000", "99000000").replace("SwapFree:        3000000", "SwapFree:        9000000")
    sample = _read(tmp_path, {"proc/meminfo": content})

    assert (sample.available_bytes, sample.swap_free_bytes) == (PLAIN.total_bytes, PLAIN.swap_total_bytes)


def test_zram_devices_are_added_up_and_found_later(tmp_path: Path) -> None:
    """mem_used_total of each; one that comes is seen by the next refresh, one that goes is let go of."""
    with _opened(tmp_path, ALL_FILES) as memory:
        first = memory.read(1).zram_used_bytes
        write_tree(tmp_path, {"sys/block/zram1/mm_stat": MM_STAT.replace("12288 ", "1000 ")})
        unseen = memory.read(2).zram_used_bytes
        memory.refresh()
        both = memory.read(3).zram_used_bytes
        (tmp_path / "sys/block/zram0/mm_stat").unlink()
        (tmp_path / "sys/block/zram0").rmdir()
        memory.refresh()
        second = memory.read(4).zram_used_bytes

    assert (first, unseen, both, second) == (12288, 12288, 13288, 1000)


def test_an_old_meminfo_is_estimated() -> None:
    """Without MemAvailable: free and cached, less the shared memory that is among the cached."""
    content = b"MemTotal: 1000 kB\nMemFree: 100 kB\nBuffers: 20 kB\nCached: 300 kB\nShmem: 50 kB\nSReclaimable: 4 kB\n"

    assert meminfo.parse_meminfo(content) == Meminfo(1000 * KIB, 374 * KIB, 0, 0, 50 * KIB)


@pytest.mark.parametrize("content", ["", "MemTotal: 0 kB\n", "SwapTotal: 1 kB\n", "MemTotal: much kB\n", "MemTotal: 5"])
def test_a_meminfo_that_tells_nothing_is_an_error(tmp_path: Path, content: str) -> None:
    """EIO, never a sample of zeros: it would read as the worst of shortages."""
    with _opened(tmp_path, {"proc/meminfo": content}) as memory, pytest.raises(OSError, match="tells of no") as raised:
        memory.read(1)

    assert raised.value.errno == errno.EIO


def test_counters_are_found_beyond_the_first_page(tmp_path: Path) -> None:
    """The kernel gives vmstat out a page at a time; a line may stand in any, and be cut by none."""
    for padding in range(8170, 8200):
        vmstat = "x" * padding + "\n" + VMSTAT
        (tmp_path / "vmstat").write_text(vmstat)
        file = os.open(tmp_path / "vmstat", os.O_RDONLY)
        oom_kills = meminfo.read_oom_kills(file)
        os.close(file)

        assert oom_kills == 3


def test_what_fails_costs_its_own_number_only(tmp_path: Path) -> None:
    """A spoilt file is told in ``lost``, read again once it is whole, and holds nobody up."""
    with _opened(tmp_path, ALL_FILES) as memory:
        (tmp_path / "proc/pressure/memory").write_text("nothing\n")
        (tmp_path / "proc/vmstat").write_text("nothing 1\n")
        spoilt, lost = memory.read(1), dict(memory.lost)
        (tmp_path / "proc/pressure/memory").write_text(PRESSURE)
        (tmp_path / "proc/vmstat").write_text(VMSTAT)
        whole = memory.read(2)

        assert (spoilt.psi_some_us, spoilt.oom_kills) == (None, None)
        assert spoilt.total_bytes == PLAIN.total_bytes
        assert sorted(lost) == ["pressure/memory", "vmstat"]
        assert (whole.psi_some_us, whole.oom_kills, memory.lost) == (111, 3, {})


def test_a_device_that_goes_is_closed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENODEV never comes back: the descriptor is given up, the reason told, the next refresh opens it anew."""
    with _opened(tmp_path, ALL_FILES) as memory:
        before = count_descriptors()
        # meminfo, arcstats and pressure are read before it.
        with failing(monkeypatch, "pread", errno.ENODEV, 3):
            sample = memory.read(1)

        assert (sample.zram_used_bytes, memory.lost) == (None, {"zram0": "No such device"})
        assert count_descriptors() == before - 1
        memory.refresh()
        assert (memory.read(2).zram_used_bytes, memory.lost) == (12288, {})


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ENODEV, errno.EMFILE, errno.ENOMEM])
def test_each_call_failing_once_is_told_and_leaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """meminfo's failure is the source's; any other's is a number missing for once. No descriptor is lost."""
    write_tree(tmp_path, ALL_FILES)
    proc_root = os.open(tmp_path / "proc", os.O_RDONLY | os.O_DIRECTORY)
    before = count_descriptors()
    for call in ("open", "pread", "listdir"):
        turn, was_reached = 0, True
        while was_reached:
            memory = None
            with failing(monkeypatch, call, number, turn) as fault:
                try:
                    memory = MachineMemory(proc_root, str(tmp_path / "sys"))
                    sample = memory.read(1)
                except OSError as error:
                    answer = (error.errno, turn)
                    assert answer == (number, 0)
                else:
                    assert not fault.was_reached or turn > 0 or call == "listdir"
                    assert sample.total_bytes == PLAIN.total_bytes
                    assert not fault.was_reached or number == errno.ENOENT or len(memory.lost) == 1
            if memory is not None:
                memory.refresh()
                again = memory.read(2)
                memory.close()
                memory.close()

                assert None not in (again.psi_some_us, again.oom_kills, again.zram_used_bytes)
            assert count_descriptors() == before
            was_reached = fault.was_reached
            turn += 1
        assert turn > 1
    os.close(proc_root)


def test_this_machine_is_read_without_opening_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own numbers make sense, and a reading makes no other call than pread."""
    proc_root = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    memory = MachineMemory(proc_root, "/sys")
    try:
        with failing(monkeypatch, "open", errno.EMFILE, 0) as fault:
            sample = memory.read(5)

        assert not fault.was_reached
        assert 0 < sample.available_bytes <= sample.total_bytes
        assert memory.lost == {} or "pressure/memory" in memory.lost
    finally:
        memory.close()
        os.close(proc_root)


def test_a_reading_of_this_machine_is_cheap() -> None:
    """20 to 28 us (2026-11, Linux 6.18, 2 CPUs); the bar is ten times that, since tests share their CPU."""
    proc_root = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    memory = MachineMemory(proc_root, "/sys")
    try:
        rounds_ns = []
        for _ in range(20):
            begun_ns = time.perf_counter_ns()
            for _ in range(20):
                memory.read(5)
            rounds_ns.append((time.perf_counter_ns() - begun_ns) // 20)

        assert min(rounds_ns) < 300_000
    finally:
        memory.close()
        os.close(proc_root)
