"""Who is there: the machine's processes by list and by last pid, a control group's by its files."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from oomreaper.linux import proc
from oomreaper.linux.population import GroupPopulation, MachinePopulation
from tests.linux.recorded_processes import RecordedMachine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[RecordedMachine]:
    """A recorded /proc with pids 5 and 70."""
    recorded = RecordedMachine(tmp_path / "proc")
    recorded.put(5)
    recorded.put(70)
    recorded.set_last_pid(70)
    yield recorded
    recorded.close()


def test_only_numbers_are_processes(machine: RecordedMachine) -> None:
    """Names such as self and loadavg stand beside the pids."""
    population = MachinePopulation(machine.root)
    pids = population.pids()
    population.close()

    assert sorted(pids) == [5, 70]


def test_those_born_since_are_among_the_numbers_between(machine: RecordedMachine) -> None:
    """Each number is told once; none while nobody was born."""
    population = MachinePopulation(machine.root)
    population.pids()
    told = []
    for last_pid in (70, 72, 72, 73):
        machine.set_last_pid(last_pid)
        newcomers = population.newcomers()
        told.append(None if newcomers is None else list(newcomers))
    population.close()

    assert told == [[], [71, 72], [], [73]]


@pytest.mark.parametrize("last_pid", [69, 300, 70 + 1025, 32768])
def test_when_the_order_does_not_tell_everybody_must_be_listed(machine: RecordedMachine, last_pid: int) -> None:
    """After a wrap, or too many to try: None, and so on until somebody lists. 300 is no more than many."""
    population = MachinePopulation(machine.root)
    population.pids()
    machine.set_last_pid(last_pid)
    first = population.newcomers()
    second = population.newcomers()
    population.pids()
    after_listing = population.newcomers()
    population.close()

    is_told = last_pid == 300
    assert (first is None, second is None) == (not is_told, not is_told)
    assert list(after_listing or ()) == []


def test_before_the_first_list_nothing_is_told(machine: RecordedMachine) -> None:
    """Without a mark there is no between."""
    population = MachinePopulation(machine.root)
    newcomers = population.newcomers()
    population.close()

    assert newcomers is None


def test_a_proc_without_loadavg_is_listed(machine: RecordedMachine) -> None:
    """Some sandboxes hide it."""
    (machine.directory / "loadavg").unlink()
    population = MachinePopulation(machine.root)
    pids, newcomers = population.pids(), population.newcomers()
    population.close()

    assert sorted(pids) == [5, 70]
    assert newcomers is None


def test_a_child_is_a_newcomer_on_the_real_machine() -> None:
    """The kernel's last pid leads to a process that was started after the list was made."""
    root = proc.open_root()
    population = MachinePopulation(root)
    before = set(population.pids())
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            newcomers = population.newcomers()
            # None when others were started by the thousand, or at the wrap of the numbers: then the list has it.
            found = list(newcomers) if newcomers is not None else population.pids()
        finally:
            child.kill()
    population.close()
    os.close(root)

    assert os.getpid() in before
    assert child.pid not in before
    assert child.pid in found


def test_a_group_has_its_members_and_those_below(tmp_path: Path) -> None:
    """Each once, also when the groups overlap; 0 stands for one of another pid namespace and is nobody."""
    inner = tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    (tmp_path / "job" / "cgroup.procs").write_bytes(b"7\n0\n8\n")
    (inner / "cgroup.procs").write_bytes(b"9\n")
    fixed = GroupPopulation([str(tmp_path / "job"), str(inner)])
    changing = GroupPopulation(lambda: [str(inner)])

    assert sorted(fixed.pids()) == [7, 8, 9]
    assert changing.pids() == [9]
    assert fixed.newcomers() is None


def test_a_group_is_read_anew_each_time(tmp_path: Path) -> None:
    """Who moved in since shows; a group that was removed has nobody."""
    procs = tmp_path / "cgroup.procs"
    procs.write_bytes(b"7\n")
    population = GroupPopulation([str(tmp_path)])
    first = population.pids()
    procs.write_bytes(b"7\n11\n")
    second = population.pids()
    procs.unlink()

    assert (first, sorted(second), population.pids()) == ([7], [7, 11], [])
