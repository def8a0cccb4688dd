"""Where a simulation's choices come from: a seed, a list, or somebody outside. Nothing else in the room is by chance.

A schedule is the list of the numbers that were chosen. The same machine with the same schedule does the same, step by
step; so a run is replayed from its seed, and a shortened run from its list.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# 16 random bits are enough to pick one of a few hundred; a larger number would cost a second word of the generator.
_BITS = 16


class Chooser(Protocol):
    """Chooses."""

    def choose(self, count: int, /) -> int:
        """A number from 0 to ``count`` - 1; ``count`` is 2 or more, and below 65,536."""


class Seeded:
    """By chance, from a seed: the same seed, the same choices, on every machine and Python."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        getrandbits = random.Random(seed).getrandbits  # noqa: S311 - reproducible is what it is to be

        def choose(count: int, /) -> int:
            return (getrandbits(_BITS) * count) >> _BITS

        # No method: it is called at every step, and a closure is called in half the time.
        self.choose: Callable[[int], int] = choose


class Replayed:
    """From a list; what goes beyond its end, or beyond what there is to choose from, is 0.

    So every list is a schedule, also one that was shortened in the middle: what a shrinker needs.
    """

    def __init__(self, choices: Sequence[int]) -> None:
        self._choices = choices
        self.position = 0

    def choose(self, count: int) -> int:
        """The next of the list."""
        if self.position >= len(self._choices):
            return 0
        chosen = self._choices[self.position]
        self.position += 1
        return chosen if chosen < count else 0


class Recorded:
    """Lets another choose, and keeps what was chosen and from how many: an explorer's and a shrinker's input."""

    def __init__(self, chooser: Chooser) -> None:
        self._chooser = chooser
        self.choices: list[int] = []
        self.counts: list[int] = []

    def choose(self, count: int) -> int:
        """What the other chooses."""
        chosen = self._chooser.choose(count)
        self.choices.append(chosen)
        self.counts.append(count)
        return chosen
