"""The check of our own code over seeds: what a seed costs, and when its run is over."""

from __future__ import annotations

import gc
import weakref
from typing import TYPE_CHECKING, Any

from oomreaper.sim.experiments import checking
from oomreaper.sim.parameters import SECOND
from oomreaper.sim.scenario import build

if TYPE_CHECKING:
    import pytest

    from oomreaper.sim.choice import Chooser
    from oomreaper.sim.machine import Machine
    from oomreaper.sim.scenario import Scenario, Stage

# Both kinds; the second is the first watcher that is not run to the end whatever happens.
_SEEDS = range(32, 36)


def _keep_machines(monkeypatch: pytest.MonkeyPatch, keep: Any) -> None:
    def build_and_keep(scenario: Scenario, chooser: Chooser) -> Stage:
        stage = build(scenario, chooser)
        keep(stage.machine)
        return stage

    monkeypatch.setattr(checking, "build", build_and_keep)


def test_a_seed_does_the_same_again() -> None:
    """One after the other in one Python, in any order: nothing of a seed is left to the next."""
    forth = {seed: checking.check_seed(seed) for seed in _SEEDS}
    back = {seed: checking.check_seed(seed) for seed in reversed(_SEEDS)}

    assert forth == back


def test_no_machine_outlives_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep of a hundred thousand seeds holds one machine at a time, with its greenlets, and not all of them."""
    machines: list[weakref.ref[Machine]] = []
    _keep_machines(monkeypatch, lambda machine: machines.append(weakref.ref(machine)))
    for seed in _SEEDS:
        checking.check_seed(seed)
    gc.collect()

    assert [reference() for reference in machines] == [None] * len(_SEEDS)


def test_memory_does_not_grow_with_the_seeds() -> None:
    """After the first ones have filled the caches, forty more leave as many objects as there were."""
    for seed in range(10):
        checking.check_seed(seed)
    gc.collect()
    before = len(gc.get_objects())
    for seed in range(10, 50):
        checking.check_seed(seed)
    gc.collect()

    # A machine is some thousands.
    assert len(gc.get_objects()) - before < 500


def test_a_run_is_over_when_nothing_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """A calm machine is not looked at to the end, but by one seed in sixteen."""

    def keep(machine: Machine) -> None:
        machines.append((machine, machine.engine.now_ns))

    machines: list[tuple[Machine, int]] = []
    _keep_machines(monkeypatch, keep)
    for seed in (1, 15, 33):
        checking.check_seed(seed)
    lasted_ns = [machine.engine.now_ns - begun_ns for machine, begun_ns in machines]

    assert lasted_ns[0] >= 15 * SECOND
    assert lasted_ns[1] <= 4 * SECOND
    assert lasted_ns[2] >= 15 * SECOND
