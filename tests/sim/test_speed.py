"""How fast it is, as a figure: printed, and not asserted upon, since other work shares the machine."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from oomreaper.sim.locks import Mutex
from oomreaper.sim.parameters import MS
from oomreaper.sim.programs import busy, hog, idle, write_file
from tests.sim.making import machine

if TYPE_CHECKING:
    import pytest

_STEPS = 100_000


def test_steps_a_second_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A machine at work with all of the model's checks on: the bar is 150,000 steps a second of one core."""
    on = machine(1)
    inode = Mutex(on.engine, "the inode lock of a file")
    for number in range(6):
        on.add_process(f"writer{number}", [write_file(inode, pause_ns=MS), idle()], anon_mib=50)
    for number in range(3):
        on.add_process(f"busy{number}", [busy(20_000)], anon_mib=50)
    on.add_process("hog", [hog(4_000, pause_ns=MS)])
    started_ns = time.perf_counter_ns()

    on.engine.run(max_steps=_STEPS)

    per_second = _STEPS * 1_000_000_000 // (time.perf_counter_ns() - started_ns)
    with capsys.disabled():
        sys.stdout.write(f"\n  the model: {per_second:,} steps a second with its checks on\n")
    assert on.engine.steps == _STEPS
