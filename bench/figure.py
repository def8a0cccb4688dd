"""What a figure is, and how large and how often it is measured."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.requirements import REQUIREMENTS
from tests.victims.program import MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from bench.records import Findings

# Enough for a look at whether the bench works at all; what it then finds means nothing.
_QUICK_REPEATS = 2
_QUICK_BYTES = 48 * MIB
_PROGRESS_INTERVAL_S = 2.0


class Plan(NamedTuple):
    """How much to do. ``repeats`` overrides every figure's own number."""

    is_quick: bool = False
    repeats: int | None = None

    def times(self, usual: int) -> int:
        """How often."""
        if self.repeats is not None:
            return self.repeats
        return min(usual, _QUICK_REPEATS) if self.is_quick else usual

    def size_bytes(self, usual_mib: int) -> int:
        """How large a victim."""
        return min(usual_mib * MIB, _QUICK_BYTES) if self.is_quick else usual_mib * MIB


class Figure(NamedTuple):
    """One figure. ``needs`` names rows of tests/requirements.py without which nothing of it can be measured."""

    name: str
    title: str
    method: str
    needs: Sequence[str]
    measure: Callable[[Plan], Findings]

    def missing(self) -> list[str]:
        """Why it cannot be measured here."""
        return missing(self.needs)


def missing(needs: Sequence[str]) -> list[str]:
    """Which of the needs this machine lacks, and why."""
    reasons = ((name, REQUIREMENTS[name].missing()) for name in needs)
    return [f"{name}: {reason}" for name, reason in reasons if reason is not None]


def rounds(count: int, what: str) -> Iterator[int]:
    """Count the rounds of one measurement, and say on stderr how far it is."""
    said_s = time.monotonic()
    for number in range(count):
        if time.monotonic() - said_s > _PROGRESS_INTERVAL_S:
            said_s = time.monotonic()
            say(f"  {what}: {number} of {count}")
        yield number
    say(f"  {what}: {count} done")


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)
