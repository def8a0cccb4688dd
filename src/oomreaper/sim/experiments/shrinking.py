"""Make a failing schedule small: the shortest list of choices, with the smallest numbers, that fails in the same way.

A schedule is a list of numbers (``choice``), and every list is one, so a shrinker may cut and flatten as it likes and
only has to ask whether what it has still fails. Pure: what failing is, and how often it may be asked, comes in.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Fails = Callable[[Sequence[int]], bool]


class _Budget(Exception):  # noqa: N818 - it is no error: the best so far is the result
    pass


def shrink_choices(choices: Sequence[int], fails: Fails, *, most_tries: int = 2_000) -> list[int]:
    """A smaller list that still fails.

    Args:
        choices: One that fails.
        fails: Whether a list does.
        most_tries: How often it may be asked.

    Returns:
        The smallest that was found: no element of it can be cut or be 0, unless the tries were used up before.
    """
    shrinker = _Shrinker(list(choices), fails, most_tries)
    with contextlib.suppress(_Budget):
        shrinker.run()
    return shrinker.best


def shrink_items(items: Sequence[object], fails: Callable[[Sequence[object]], bool]) -> list[object]:
    """Fewer items (processes of a scenario) that still fail; each is left out in turn until none can be."""
    best = list(items)
    position = 0
    while position < len(best):
        without = best[:position] + best[position + 1 :]
        if without and fails(without):
            best, position = without, 0
        else:
            position += 1
    return best


class _Shrinker:
    def __init__(self, choices: list[int], fails: Fails, most_tries: int) -> None:
        self.best = choices
        self._fails = fails
        self._tries = most_tries

    def run(self) -> None:
        self._cut_end()
        before: list[int] | None = None
        while before != self.best:
            before = list(self.best)
            size = max(1, len(self.best) // 2)
            while size:
                self._each_part(size, cuts=True)
                self._each_part(size, cuts=False)
                size //= 2

    def _try(self, choices: list[int]) -> bool:
        while choices and choices[-1] == 0:  # beyond its end every choice is 0
            choices.pop()
        if choices == self.best:
            return False
        if self._tries <= 0:
            raise _Budget
        self._tries -= 1
        if not self._fails(choices):
            return False
        self.best = choices
        return True

    def _cut_end(self) -> None:
        """The shortest beginning that fails, by halving: what comes after the failure says nothing."""
        low, high = 0, len(self.best)
        whole = list(self.best)
        while low < high:
            middle = (low + high) // 2
            if self._try(whole[:middle]):
                high = min(middle, len(self.best))
            else:
                low = middle + 1

    def _each_part(self, size: int, *, cuts: bool) -> None:
        """Each part of so many choices: cut out, or made 0 with its place kept."""
        position = 0
        while position < len(self.best):
            end = min(position + size, len(self.best))
            if not cuts and not any(self.best[position:end]):
                position = end
                continue
            middle = [] if cuts else [0] * (end - position)
            if not self._try([*self.best[:position], *middle, *self.best[end:]]) or not cuts:
                position = end
