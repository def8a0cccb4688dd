"""The memory of groups: recorded v1 and v2 trees, and a real v1 group that is filled to its limit."""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import memcg
from oomreaper.linux.memcg import GroupGoneError, GroupMemory, GroupStat, OomControl
from oomreaper.model.plan import MACHINE
from oomreaper.model.sample import ScopeSample
from tests.linux.sources import LIMIT_BYTES, count_descriptors, failing, filling_child, write_tree
from tests.victims.processes import wait_until
from tests.victims.program import END_TIMEOUT_S, MIB
from tests.victims.surroundings import own_cgroup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MACHINE_SAMPLE = ScopeSample(
    scope=MACHINE,
    monotonic_ns=1,
    total_bytes=8000 * MIB,
    available_bytes=5000 * MIB,
    swap_total_bytes=1000 * MIB,
    swap_free_bytes=900 * MIB,
    shmem_bytes=5,
    zram_used_bytes=6,
    psi_some_us=7,
    psi_full_us=8,
    oom_kills=9,
)
V2_STAT = (
    "anon 1\nfile 2\nshmem {shmem}\nfile_mapped 0\nfile_dirty {dirty}\nfile_writeback {writeback}\n"
    "shmem_thp 0\ninactive_anon 0\nactive_anon 0\ninactive_file {inactive}\nactive_file {active}\nunevictable 0\n"
    "slab_reclaimable {slab}\nslab_unreclaimable 9\nslab 9\nworkingset_refault_file 4\n"
)
V2_GROUP = {
    "memory.current": f"{900 * MIB}\n",
    "memory.max": f"{1000 * MIB}\n",
    "memory.high": "max\n",
    "memory.swap.current": f"{10 * MIB}\n",
    "memory.swap.max": "max\n",
    "memory.stat": V2_STAT.format(
        shmem=70 * MIB, dirty=3 * MIB, writeback=2 * MIB, inactive=40 * MIB, active=20 * MIB, slab=6 * MIB
    ),
    "memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n",
    "memory.pressure": "some avg10=0.00 avg60=0.00 total=50\nfull avg10=0.00 avg60=0.00 total=40\n",
}
V1_STAT = (
    "cache 9\nrss 9\nshmem 1\ndirty 1\nwriteback 1\ninactive_file 1\nactive_file 1\n"
    "hierarchical_memory_limit {limit}\nhierarchical_memsw_limit {limit}\ntotal_cache 5\ntotal_shmem {shmem}\n"
    "total_dirty {dirty}\ntotal_writeback 0\ntotal_inactive_file {inactive}\ntotal_active_file {active}\n"
)
V1_NO_LIMIT = "9223372036854771712\n"
V1_GROUP = {
    "memory.usage_in_bytes": f"{900 * MIB}\n",
    "memory.limit_in_bytes": f"{1000 * MIB}\n",
    "memory.stat": V1_STAT.format(limit=1000 * MIB, shmem=70 * MIB, dirty=5 * MIB, inactive=40 * MIB, active=20 * MIB),
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
}
RECLAIMABLE_V2 = (40 + 13 - 5) * MIB
RECLAIMABLE_V1 = (40 + 10 - 5) * MIB
SAMPLE_OF_V2 = ScopeSample(
    scope="/job",
    monotonic_ns=33,
    total_bytes=1000 * MIB,
    available_bytes=100 * MIB + RECLAIMABLE_V2,
    swap_total_bytes=1000 * MIB,
    swap_free_bytes=900 * MIB,
    current_bytes=900 * MIB,
    limit_bytes=1000 * MIB,
    shmem_bytes=70 * MIB,
    psi_some_us=50,
    psi_full_us=40,
    oom_kills=2,
)


@contextlib.contextmanager
def _opened(directory: Path, version: int, *, top: Path | None = None, scope: str = "/job") -> Iterator[GroupMemory]:
    memory = GroupMemory(str(directory), scope, version, top=None if top is None else str(top))
    try:
        yield memory
    finally:
        memory.close()


def _read(directory: Path, version: int, files: dict[str, str]) -> ScopeSample:
    write_tree(directory, files)
    with _opened(directory, version) as memory:
        sample = memory.read(33, MACHINE_SAMPLE)
        assert memory.lost == {}
        return sample


def test_a_limit_may_be_none() -> None:
    """The word max in v2; in v1 a number that no machine reaches, whatever the page size."""
    numbers = [b"max\n", b"9223372036854771712\n", b"9223372036854710272\n", b"4096\n", b"0\n"]

    assert [memcg.parse_limit(number) for number in numbers] == [None, None, None, 4096, 0]


def test_what_the_kernel_would_give_back() -> None:
    """File cache, not shared memory; half of what is in use; without the dirty; each version by its own names."""
    v2 = V2_STAT.format(shmem=700, dirty=3, writeback=2, inactive=40, active=20, slab=6).encode()
    v1 = V1_STAT.format(limit=1, shmem=70, dirty=5, inactive=40, active=20).encode()

    assert memcg.parse_stat(v2) == GroupStat(48, 700)
    assert memcg.parse_stat(v1, b"\ntotal_") == GroupStat(45, 70)
    assert memcg.parse_stat(b"file_dirty 5\ninactive_file 4\n") == GroupStat(0, 0)
    assert memcg.parse_stat(b"") == GroupStat(0, 0)


def test_oom_control_of_an_old_kernel_tells_no_kills() -> None:
    """Three lines since 4.13, two before."""
    assert memcg.parse_oom_control(b"oom_kill_disable 1\nunder_oom 1\n") == OomControl(True, None)
    assert memcg.parse_oom_control(b"oom_kill_disable 0\nunder_oom 0\noom_kill 5\n") == OomControl(False, 5)


def test_a_group_of_v2(tmp_path: Path) -> None:
    """Everything told, from its own files; swap without a limit of its own is the machine's."""
    assert _read(tmp_path, 2, V2_GROUP) == SAMPLE_OF_V2


def test_a_group_of_v1(tmp_path: Path) -> None:
    """No pressure in v1; the rest as in v2, from the counters that include what is below."""
    assert _read(tmp_path, 1, V1_GROUP) == SAMPLE_OF_V2._replace(
        available_bytes=100 * MIB + RECLAIMABLE_V1, psi_some_us=None, psi_full_us=None, oom_kills=4
    )


@pytest.mark.parametrize(
    ("swap_max", "swap_current", "expected"),
    [
        ("max", 10, (1000, 900)),
        ("0", 0, (0, 0)),
        (str(100 * MIB), 10, (100, 90)),
        (str(100 * MIB), 120, (100, 0)),
        (str(950 * MIB), 10, (950, 900)),
        (str(5000 * MIB), 10, (1000, 900)),
    ],
)
def test_swap_of_a_group_of_v2(tmp_path: Path, swap_max: str, swap_current: int, expected: tuple[int, int]) -> None:
    """Its own limit where that is the tighter one, and never more than the machine has."""
    files = {**V2_GROUP, "memory.swap.max": swap_max, "memory.swap.current": str(swap_current * MIB)}
    sample = _read(tmp_path, 2, files)

    assert (sample.swap_total_bytes // MIB, sample.swap_free_bytes // MIB) == expected


@pytest.mark.parametrize(
    ("both_limit", "both", "expected"),
    [
        # limit and use of memory and swap together -> swap total and free, memory available without the reclaimable
        (1100, 930, (100, 70, 100)),
        (1000, 990, (0, 0, 10)),
        (5000, 930, (1000, 900, 100)),
    ],
)
def test_swap_of_a_group_of_v1(tmp_path: Path, both_limit: int, both: int, expected: tuple[int, int, int]) -> None:
    """v1 limits memory and swap together: what that leaves is the most that can be had of either."""
    files = {
        **V1_GROUP,
        "memory.memsw.usage_in_bytes": str(both * MIB),
        "memory.memsw.limit_in_bytes": str(both_limit * MIB),
    }
    sample = _read(tmp_path, 1, files)
    available_bytes = sample.available_bytes - RECLAIMABLE_V1

    assert (sample.swap_total_bytes // MIB, sample.swap_free_bytes // MIB, available_bytes // MIB) == expected


def test_memory_high_counts_as_a_limit(tmp_path: Path) -> None:
    """Above it the group is throttled to a crawl and never killed: it is left to somebody like us."""
    sample = _read(tmp_path, 2, {**V2_GROUP, "memory.high": str(880 * MIB)})

    assert (sample.total_bytes, sample.limit_bytes) == (880 * MIB, 880 * MIB)
    assert sample.available_bytes == RECLAIMABLE_V2 - 20 * MIB


def test_with_plenty_of_room_the_statistics_are_left_alone(tmp_path: Path) -> None:
    """More than a quarter free: a lower bound, and shared memory not told."""
    sample = _read(tmp_path, 2, {**V2_GROUP, "memory.current": str(700 * MIB)})

    assert (sample.available_bytes, sample.shmem_bytes) == (300 * MIB, None)


def test_a_group_without_a_limit_shares_the_machine(tmp_path: Path) -> None:
    """No limit, or one that the machine cannot reach: total and available are the machine's."""
    for limit in ("max\n", str(9000 * MIB)):
        sample = _read(tmp_path, 2, {**V2_GROUP, "memory.max": limit})

        assert (sample.total_bytes, sample.available_bytes) == (8000 * MIB, 5000 * MIB)
        assert (sample.limit_bytes, sample.current_bytes) == (None, 900 * MIB)


def test_a_group_over_its_limit_has_nothing_available(tmp_path: Path) -> None:
    """A limit that was lowered below the use: 0, not less."""
    files = {**V2_GROUP, "memory.max": str(500 * MIB), "memory.stat": ""}

    assert _read(tmp_path, 2, files).available_bytes == 0


def test_tasks_that_hang_at_the_limit_of_v1_leave_nothing_available(tmp_path: Path) -> None:
    """under_oom: whatever the statistics still count as reclaimable, it could not be had."""
    files = {
        **V1_GROUP,
        "memory.usage_in_bytes": str(999 * MIB),
        "memory.oom_control": "oom_kill_disable 1\nunder_oom 1\n",
    }

    assert _read(tmp_path, 1, files).available_bytes == 0


def test_a_group_under_the_oom_of_its_parent_keeps_its_room(tmp_path: Path) -> None:
    """v1 says under_oom in every group below the one that is full: a sibling's doing, no reason to kill in here."""
    files = {
        **V1_GROUP,
        "memory.usage_in_bytes": str(100 * MIB),
        "memory.oom_control": "oom_kill_disable 1\nunder_oom 1\n",
    }

    assert _read(tmp_path, 1, files).available_bytes == 900 * MIB


def test_a_tighter_limit_above_counts(tmp_path: Path) -> None:
    """The least limit from the group up to the top, looked at on opening and at each refresh."""
    write_tree(tmp_path / "a/b", V2_GROUP)
    write_tree(tmp_path / "a", {**V2_GROUP, "memory.max": str(950 * MIB)})
    write_tree(tmp_path, {"memory.max": str(10 * MIB)})
    with _opened(tmp_path / "a/b", 2, top=tmp_path / "a") as memory:
        first = memory.read(1, MACHINE_SAMPLE).limit_bytes
        write_tree(tmp_path / "a", {"memory.max": "max"})
        write_tree(tmp_path / "a/b", {"memory.max": str(990 * MIB)})
        own = memory.read(2, MACHINE_SAMPLE).limit_bytes
        memory.refresh()
        second = memory.read(3, MACHINE_SAMPLE).limit_bytes

    assert (first, own, second) == (950 * MIB, 950 * MIB, 990 * MIB)


def test_a_limit_above_what_we_see_counts_in_v1(tmp_path: Path) -> None:
    """hierarchical_memory_limit: the kernel's own sum, over groups that a container does not see."""
    stat = V1_STAT.format(limit=800 * MIB, shmem=0, dirty=0, inactive=0, active=0)
    files = {**V1_GROUP, "memory.limit_in_bytes": V1_NO_LIMIT, "memory.usage_in_bytes": "5", "memory.stat": stat}
    sample = _read(tmp_path, 1, files)

    assert (sample.limit_bytes, sample.available_bytes) == (800 * MIB, 800 * MIB - 5)


def test_a_group_that_is_not_there_is_gone(tmp_path: Path) -> None:
    """No directory; or one without the controller's files, as the root of v2."""
    before = count_descriptors()
    write_tree(tmp_path / "root", {"memory.stat": "", "memory.pressure": ""})
    for directory in (tmp_path / "none", tmp_path / "root"):
        with pytest.raises(GroupGoneError):
            GroupMemory(str(directory), "/none", 2)

    assert count_descriptors() == before


def test_a_file_of_a_group_that_tells_nothing(tmp_path: Path) -> None:
    """What the sample stands on: EIO. Anything else: its own number missing, and told."""
    write_tree(tmp_path, V2_GROUP)
    with _opened(tmp_path, 2) as memory:
        write_tree(tmp_path, {"memory.events": "low 0\n", "memory.stat": "inactive_file x\n"})
        sample, lost = memory.read(1, MACHINE_SAMPLE), sorted(memory.lost)
        write_tree(tmp_path, {"memory.current": "\n"})
        with pytest.raises(OSError, match="no numbers") as raised:
            memory.read(2, MACHINE_SAMPLE)

    assert (sample.oom_kills, sample.shmem_bytes, sample.available_bytes) == (None, None, 100 * MIB)
    assert lost == ["memory.events", "memory.stat"]
    assert raised.value.errno == errno.EIO


@pytest.mark.parametrize(("version", "files"), [(1, V1_GROUP), (2, V2_GROUP)])
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EIO, errno.ENODEV, errno.EMFILE, errno.ENOMEM])
def test_each_call_failing_once_is_told_and_leaks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, version: int, files: dict[str, str]
) -> None:
    """ENOENT and ENODEV of what it stands on: gone; another: OSError; of any other file: a number missing for once."""
    top = tmp_path / "top"
    write_tree(top, {"memory.max": "max", "memory.limit_in_bytes": V1_NO_LIMIT})
    write_tree(top / "job", files)
    before = count_descriptors()
    for call in ("open", "pread"):
        turn, was_reached = 0, True
        while was_reached:
            memory = None
            with failing(monkeypatch, call, number, turn) as fault:
                try:
                    memory = GroupMemory(str(top / "job"), "/job", version, top=str(top))
                    sample = memory.read(1, MACHINE_SAMPLE)
                except GroupGoneError:
                    assert number in {errno.ENOENT, errno.ENODEV}
                except OSError as error:
                    is_documented = error.errno == number and number not in {errno.ENOENT, errno.ENODEV}
                    assert is_documented
                else:
                    assert sample.current_bytes == 900 * MIB
                    assert sample.limit_bytes == 1000 * MIB
                    # v1's memory.stat is read on opening too, and has been read again since.
                    is_told = bool(memory.lost) or (version == 1 and call == "pread")
                    assert not fault.was_reached or is_told or number in {errno.ENOENT, errno.ENODEV}
            if memory is not None:
                memory.refresh()
                again = memory.read(2, MACHINE_SAMPLE)
                memory.close()
                memory.close()
                with pytest.raises(OSError, match="closed"):
                    memory.read(3, MACHINE_SAMPLE)

                assert None not in (again.oom_kills, again.shmem_bytes)
            assert count_descriptors() == before
            was_reached = fault.was_reached
            turn += 1
        assert turn > 4


def test_a_group_in_the_place_of_the_machine() -> None:
    """The group's numbers, the machine's where the group has none, and no more than the machine has."""
    group = ScopeSample("/job", 1, 1000, 6000 * MIB, 20, 10, 900, 1000, 30, None, 50, None, 0)

    assert memcg.combine(MACHINE_SAMPLE, group) == ScopeSample(
        MACHINE, 1, 1000, 5000 * MIB, 20, 10, 900, 1000, 30, 6, 50, 8, 0
    )


@pytest.mark.needs("cgroup_v1_memory", "root")
def test_a_group_that_is_removed_is_told_apart() -> None:
    """Its kept descriptors answer ENODEV: gone, in each reading, and nothing is left open."""
    before = count_descriptors()
    with own_cgroup("memory") as directory:
        memory = GroupMemory(str(directory), "/job", 1, top=str(directory.parent))
        alive = memory.read(1, MACHINE_SAMPLE)
    for _ in range(2):
        with pytest.raises(GroupGoneError):
            memory.read(2, MACHINE_SAMPLE)
    memory.close()

    assert alive.current_bytes is not None
    assert count_descriptors() == before


@pytest.mark.needs("cgroup_v1_memory", "root")
def test_a_group_that_is_filled_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's killer off, its tasks hang: nothing is available; with a higher limit there is room again."""
    with own_cgroup("memory", ("memory.oom_control", "0")) as directory:
        (directory / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES), encoding="ascii")
        (directory / "memory.oom_control").write_text("1", encoding="ascii")
        with _opened(directory, 1, top=directory.parent) as memory:
            empty = memory.read(1, MACHINE_SAMPLE)
            with filling_child(directory):
                assert wait_until(
                    lambda: "under_oom 1" in (directory / "memory.oom_control").read_text(), END_TIMEOUT_S
                )
                with failing(monkeypatch, "open", errno.EMFILE, 0) as fault:
                    full = memory.read(2, MACHINE_SAMPLE)
                (directory / "memory.limit_in_bytes").write_text(str(256 * MIB), encoding="ascii")
                assert wait_until(
                    lambda: "under_oom 0" in (directory / "memory.oom_control").read_text(), END_TIMEOUT_S
                )
                roomy = memory.read(3, MACHINE_SAMPLE)

    assert not fault.was_reached
    assert (empty.total_bytes, full.total_bytes, roomy.total_bytes) == (LIMIT_BYTES, LIMIT_BYTES, 256 * MIB)
    assert empty.available_bytes > LIMIT_BYTES * 9 // 10
    assert full.available_bytes == 0
    assert full.current_bytes is not None
    assert full.current_bytes > LIMIT_BYTES * 9 // 10
    assert roomy.available_bytes > 128 * MIB


@pytest.mark.needs("cgroup_v1_memory", "root")
def test_a_reading_of_a_real_group_is_cheap() -> None:
    """An empty group, so without memory.stat; the bar is ten times the 30 us that we allow: tests share their CPU.

    A full one, memory.stat included, took 40 us beside other work (2026-11, Linux 6.18, 2 CPUs).
    """
    with own_cgroup("memory") as directory:
        (directory / "memory.limit_in_bytes").write_text(str(LIMIT_BYTES), encoding="ascii")
        with _opened(directory, 1, top=directory.parent) as memory:
            rounds_ns = []
            for _ in range(20):
                begun_ns = time.perf_counter_ns()
                for _ in range(20):
                    memory.read(5, MACHINE_SAMPLE)
                rounds_ns.append((time.perf_counter_ns() - begun_ns) // 20)

    assert min(rounds_ns) < 300_000
