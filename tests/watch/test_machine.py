"""The machine as the watcher's mind sees it: censuses are made once and let go of, pidfds are closed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from oomreaper.linux import proc
from oomreaper.model.identity import Identity
from oomreaper.model.plan import MACHINE
from oomreaper.watch.handles import Handles
from oomreaper.watch.machine import LinuxMachine

if TYPE_CHECKING:
    from collections.abc import Iterator


class FakeSources:
    """Groups without a directory that this machine shows."""

    within_directory: str | None = None

    def directory_of(self, _scope: str) -> str | None:
        """None: not shown."""
        return None


class FakeCrew:
    """Notes what it is asked."""

    def __init__(self) -> None:
        self.reclaimed: list[tuple[int, int | None]] = []

    def reclaim(self, wanted_bytes: int, _now_ns: int, *, life: Identity, handle: int) -> None:
        """Noted."""
        assert life.pid == os.getpid()
        self.reclaimed.append((wanted_bytes, handle))

    def take_reclaimed(self) -> list[int]:
        """All of them."""
        taken, self.reclaimed = self.reclaimed, []
        return [wanted for wanted, _ in taken]


class Stage:
    """A machine on this /proc."""

    def __init__(self) -> None:
        self.proc = proc.open_root()
        self.crew = FakeCrew()
        self.handles = Handles(self.proc)
        self.machine = LinuxMachine(
            self.proc,
            sources=cast("Any", FakeSources()),
            crew=cast("Any", self.crew),
            handles=self.handles,
        )


@pytest.fixture
def stage() -> Iterator[Stage]:
    """That leaves no descriptor."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    made = Stage()
    yield made
    made.machine.close()
    made.handles.close_all()
    os.close(made.proc)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_census_is_made_once_and_not_without_end(stage: Stage) -> None:
    """The same one for the same scope; of twenty groups eight are kept, and the machine's always."""
    machine = stage.machine
    of_machine = machine.census(MACHINE)
    for number in range(20):
        machine.census(f"/group/{number}")

    assert machine.census(MACHINE) is of_machine
    assert [number for number in range(20) if machine.has_census(f"/group/{number}")] == list(range(12, 20))
    machine.drop_census("/group/19")
    machine.drop_census("/group/19")
    assert not machine.has_census("/group/19")


def test_a_reclaim_closes_its_pidfd_when_it_is_done(stage: Stage) -> None:
    """Of a life that there is: opened, handed over, closed with the answer; of one that has gone: nothing."""
    machine, crew = stage.machine, stage.crew
    directory = proc.open_process(stage.proc, os.getpid())
    assert directory is not None
    stat = proc.read_stat(directory)
    os.close(directory)
    assert stat is not None
    machine.reclaim(MACHINE, stat.identity, 4096, 0)
    machine.reclaim(MACHINE, Identity(stat.identity.pid, stat.identity.start_time_ticks + 1), 4096, 0)
    machine.reclaim(MACHINE, None, 4096, 0)
    ((wanted_bytes, handle),) = crew.reclaimed
    assert handle is not None
    os.fstat(handle)
    machine.take_reclaimed()

    assert wanted_bytes == 4096
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle)


def test_a_group_that_is_not_shown_has_nobody(stage: Stage) -> None:
    """No error: an empty list."""
    assert stage.machine.pids_of("/nowhere") == []
