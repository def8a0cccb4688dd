"""What was decided, and why: the ranking, one process's place in it, and the step that is due."""

from __future__ import annotations

import enum
from typing import NamedTuple

from oomreaper.model.plan import KillUnit, Rule, Step
from oomreaper.model.sample import ProcessSample


class Standing(enum.IntEnum):
    """In which order processes are considered; within one, by points."""

    ELIGIBLE = 0
    AVOIDED = 1  # only when there is no other
    TOO_SMALL = 2  # it would give back too little to be worth a kill
    PROTECTED = 3  # never


class RankedProcess(NamedTuple):
    """One process's place. ``points`` are bytes, adjusted; ``reasons`` say how it came to them, in words.

    For a PROTECTED one the reasons say why. ``unit`` is what dies with it, and ``unit_key`` names that: the process
    group, the session (numbers as text), the cgroup's path; empty for the process alone.
    """

    process: ProcessSample
    standing: Standing
    points: float
    reasons: tuple[str, ...]
    unit: KillUnit = KillUnit.PROCESS
    unit_key: str = ""


class Reading(NamedTuple):
    """One condition as it stands. ``measured`` is in the condition's own unit; None when this machine does not tell.

    ``is_met`` False then. ``distance`` is how far it is from being met, in the same unit; 0 or less when it is met.
    """

    text: str
    measured: float | None
    is_met: bool
    distance: float | None


class RuleReading(NamedTuple):
    """One rule in one scope as it stands. ``held_ns``: for how long all its conditions have held; None: they do not.

    ``is_active``: it has fired and not yet recovered. ``steps_taken`` of its ladder.
    """

    rule: Rule
    scope: str
    readings: tuple[Reading, ...]
    held_ns: int | None
    is_active: bool
    steps_taken: int


class DueStep(NamedTuple):
    """A step to be taken now: the ``position``-th of ``rule``'s ladder, in ``scope``; ``reason`` is for people."""

    rule: Rule
    scope: str
    step: Step
    position: int
    reason: str
