"""Records to test with: a usual one, and what is different about yours."""

from __future__ import annotations

from typing import Any

from lab.records import Kill, Record


def make_kill(**changes: Any) -> Kill:
    """The hog, killed by ours."""
    kill = Kill(
        pid=300, comm="hog", actor="hog", is_innocent=False, signal=9, by="oomreaper", is_by_kernel=False, after_ms=40.0
    )
    return kill._replace(**changes)


def make_record(**changes: Any) -> Record:
    """A run in which everything went well."""
    record = Record(
        scenario="leak_fast",
        contestant="oomreaper",
        settings="default",
        version="0.1.0",
        kernel="newest",
        image="full",
        kernel_release="6.99",
        repeat=1,
        date="2026-11-25 20:00",
        recovered=True,
        kills=1,
        innocent_kills=0,
        kernel_kills=0,
        shortage_to_kill_ms=40.0,
        kill_to_memory_ms=30.0,
        longest_stall_ms=120.0,
        guest_stall_ms=115.0,
        host_stall_ms=2.0,
        host_wait_percent=3.0,
        killed_before_shortage=False,
        psi_full_ms=80.0,
        lowest_available_percent=2.5,
        is_usable=True,
        is_lost=False,
        duration_s=9.0,
        killer_cpu_ms=150.0,
        killer_pss_kib=13_000,
        broken=(),
        killed=(make_kill(),),
        log=(),
    )
    return record._replace(**changes)
