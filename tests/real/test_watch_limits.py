"""A watcher that lacks what it needs itself: memory, descriptors, a log; and what it costs while it has all of them."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.real.watching import memory_group
from tests.real.worst_days import KILL, launched, status_of, workers_of
from tests.victims.processes import wait_until
from tests.victims.program import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.real.watching import Group
    from tests.real.worst_days import Launched

pytestmark = pytest.mark.needs("root", "cgroup_v1_memory", "process_mrelease")

ENTER = 'echo $$ > "$1" && shift && exec "$@"'


def _takes_a_hog(group: Group, watcher: Launched) -> bool:
    """Whether a hog is killed and its record is whole; the bystander lives on, and the watcher does."""
    bystander = group.start_idle(10)
    hog = group.start_hog(300, pause_s=0.001)
    status = hog.wait(20)
    watcher.await_event("settled", 20, where=lambda record: record["pid"] == hog.pid)
    told = watcher.about(hog.pid)
    is_well = bystander.is_alive and watcher.process.poll() is None
    bystander.process.kill()
    bystander.wait()
    assert (status, told, is_well) == (-9, ["announce", "killed", "settled"], True)
    return True


def test_in_a_tight_limit_of_its_own_it_kills_all_the_same() -> None:
    """Watcher and workers in a group with 1 MiB of room and no kernel killer: twice it kills within another group."""
    with memory_group(300) as own, memory_group(150) as group:
        before = ["sh", "-c", ENTER, "sh", str(own.directory / "cgroup.procs")]
        with launched(group, config=KILL, before=before) as watcher:
            (own.directory / "memory.force_empty").write_text("0", encoding="ascii")
            (own.directory / "memory.limit_in_bytes").write_text(str(own.used_bytes + MIB), encoding="ascii")

            assert len(own.pids) == 4
            assert _takes_a_hog(group, watcher)
            assert _takes_a_hog(group, watcher)
            assert not own.is_under_oom


@pytest.mark.parametrize("descriptors", [128, 256])
def test_with_few_descriptors_it_kills_all_the_same(descriptors: int) -> None:
    """RLIMIT_NOFILE from the beginning: the census keeps less open, the kill has what it needs."""
    before = ["prlimit", f"--nofile={descriptors}:{descriptors}"]
    with memory_group(150) as group, launched(group, config=KILL, before=before) as watcher:
        assert _takes_a_hog(group, watcher)
        assert _takes_a_hog(group, watcher)


def test_with_too_few_descriptors_to_see_everybody_it_does_not_start() -> None:
    """A census that sees some would have one of those die for another: exit status 3, and what to allow it."""
    before = ["prlimit", "--nofile=48:48"]
    with memory_group(150) as group, launched(group, config=KILL, before=before, is_awaited=False) as watcher:
        status = watcher.process.wait(20)
        assert watcher.process.stderr is not None
        said = watcher.process.stderr.read().decode()

        assert status == 3
        assert "RLIMIT_NOFILE" in said
        assert "Traceback" not in said
        assert not os.path.lexists(watcher.events_path)


def test_when_descriptors_run_out_it_kills_whom_it_knows() -> None:
    """The limit is lowered to what is open, so that nothing more can be: who is known by then is taken all the same."""
    with memory_group(150) as group, launched(group, config=KILL) as watcher:
        hog = group.start_hog(100, pause_s=0.0)
        hog.await_word("full")
        watcher.manager.listen(0.5)
        highest = max(int(name) for name in os.listdir(f"/proc/{watcher.pid}/fd"))
        resource.prlimit(watcher.pid, resource.RLIMIT_NOFILE, (highest + 1, highest + 1))
        pusher = group.start_hog(45, pause_s=0.002)
        status = hog.wait(20)
        watcher.await_event("settled", where=lambda record: record["pid"] == hog.pid)

        assert status == -9
        assert watcher.process.poll() is None
        assert pusher.is_alive


def test_when_its_memory_may_not_grow_it_kills_all_the_same() -> None:
    """RLIMIT_AS at what it has (mmap and brk answer ENOMEM): a decision and a kill allocate nothing of the kernel."""
    with memory_group(150) as group, launched(group, config=KILL) as watcher:
        assert _takes_a_hog(group, watcher)
        for pid in (watcher.pid, *workers_of(watcher.pid)):
            used_bytes = int(status_of(pid)["VmSize"].split()[0]) * 1024
            resource.prlimit(pid, resource.RLIMIT_AS, (used_bytes, used_bytes))
        assert _takes_a_hog(group, watcher)


def test_a_full_disk_under_its_log_stops_nothing() -> None:
    """Its stderr is /dev/full: lines are lost and counted, the kill and the events are whole."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(Path("/dev/full").open("wb"))
        group = stack.enter_context(memory_group(150))
        watcher = stack.enter_context(launched(group, config=KILL, stderr=full))

        assert _takes_a_hog(group, watcher)
        assert watcher.ask_state()["statistics"]["log_lines_lost"] > 0


@pytest.mark.parametrize("closed", ["2>&-", "0<&- 1>&- 2>&-"])
def test_without_a_stderr_it_works_as_well(closed: str) -> None:
    """Started with closed standard descriptors: no line lands in its event socket or its plan."""
    before = ["sh", "-c", f'exec "$@" {closed}', "sh"]
    with memory_group(150) as group, launched(group, config=KILL, before=before) as watcher:
        names = [os.readlink(f"/proc/{watcher.pid}/fd/{number}") for number in range(3)]

        assert "/dev/null" in names[2]
        assert _takes_a_hog(group, watcher)


class Cost(NamedTuple):
    """What a process has used so far."""

    minor_faults: int
    major_faults: int
    written_bytes: int
    reads: int
    writes: int


def _cost_of(pid: int) -> Cost:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
    words = (line.split(": ") for line in Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines())
    io = {name: int(value) for name, value in words}
    return Cost(int(stat[7]), int(stat[9]), io["write_bytes"], io["syscr"], io["syscw"])


@contextlib.contextmanager
def _measured(pids: list[int], into: dict[int, Cost]) -> Iterator[None]:
    before = {pid: _cost_of(pid) for pid in pids}
    yield
    for pid in pids:
        after = _cost_of(pid)
        into[pid] = Cost(*(new - old for new, old in zip(after, before[pid], strict=True)))


def test_the_way_to_a_kill_faults_nothing_in_and_starts_nobody(record_property: Callable[[str, object], None]) -> None:
    """The first decision and kill after READY: no major fault, few minor ones, no byte to a disk, nobody started."""
    with memory_group(150) as group, launched(group, config=KILL) as watcher:
        everybody = [watcher.pid, *workers_of(watcher.pid)]
        costs: dict[int, Cost] = {}
        with _measured(everybody, costs):
            hog = group.start_hog(300, pause_s=0.001)
            hog.wait()
            watcher.await_event("settled")
        after = [watcher.pid, *workers_of(watcher.pid)]
        minor_faults = sum(cost.minor_faults for cost in costs.values())
        record_property("minor_faults", minor_faults)

        assert after == everybody
        assert sum(cost.major_faults for cost in costs.values()) == 0
        assert minor_faults <= 600  # 264 on 2026-11-25, most of them the heap's for the records
        assert sum(cost.written_bytes for cost in costs.values()) == 0


def test_a_decision_opens_imports_and_starts_nothing(record_property: Callable[[str, object], None]) -> None:
    """From the decision to the hand-over: some hundred calls on what is open. Only who is in a group is listed anew.

    (A cgroup.procs of v1 that is kept open goes on showing its first list.)
    """
    program = Path(__file__).with_name("counting_watcher.py")
    with memory_group(150) as group, launched(group, config=KILL, runs=[str(program)]) as watcher:
        group.start_hog(300, pause_s=0.001).wait()
        watcher.await_event("settled")
        watcher.await_log("counted: ")
        line = next(line for line in watcher.log.splitlines() if line.startswith("counted: "))
        counted = json.loads(line.removeprefix("counted: "))
        calls, begun = counted["calls"], [what for what in counted["begun"] if group.directory.name not in what]
        begun = [what for what in begun if not what.startswith(("socket.sendmsg", "array.__new__"))]  # the hand-over
        record_property("calls", calls)

        assert begun == []
        assert calls.keys().isdisjoint({"fork", "posix_spawn", "execv", "unlink", "mkdir", "pipe", "dup"})
        assert calls["pread"] <= 150
        assert sum(calls.values()) <= 250


def test_an_idle_watcher_wakes_at_most_twice_a_second() -> None:
    """Five calm seconds of a roomy group: at most ten turns of its loop, but for those that the asking itself costs."""
    with memory_group(12_000) as group, launched(group, config=KILL) as watcher:
        watcher.disconnect()
        watcher.manager.listen(1.0)
        before, began = watcher.ask_state(), time.monotonic()
        assert not wait_until(lambda: watcher.process.poll() is not None, 5.0)
        after, ended = watcher.ask_state(), time.monotonic()
        turns = after["statistics"]["turns"] - before["statistics"]["turns"]

        assert turns <= 2 * (ended - began) + 4
