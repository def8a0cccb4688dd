"""Every interleaving of a few actors, each a generator that yields between its atomic steps.

A generator cannot be copied, so a schedule is replayed from the start; states that were seen are not walked again. A
state is what the world shows plus how far each actor has come with what it has learnt (its own account of itself).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Hashable


class World(Protocol):
    """What the actors share."""

    def actors(self) -> dict[str, Generator[str, None, None]]:
        """Fresh actors on this world."""

    def is_runnable(self, name: str) -> bool:
        """Whether an actor that has not ended has anything to do now."""

    def key(self) -> Hashable:
        """All of the state that the actors do not hold themselves."""

    def check_step(self) -> None:
        """Raise AssertionError when a step has broken an invariant."""

    def check_end(self) -> None:
        """Raise AssertionError when the end is not what it must be."""


class Walk(NamedTuple):
    """How much was walked."""

    states: int
    ends: int


def walk(make_world: Callable[[], World]) -> Walk:
    """Walk all interleavings; an AssertionError names the schedule that broke an invariant."""
    seen: set[Hashable] = set()
    ends = 0
    pending: list[tuple[str, ...]] = [()]
    while pending:
        schedule = pending.pop()
        world = make_world()
        actors = world.actors()
        steps: dict[str, list[str]] = {name: [] for name in actors}
        live = dict(actors)
        try:
            for name in schedule:
                _step(live, steps, name)
                world.check_step()
        except AssertionError as error:
            raise AssertionError(f"schedule {schedule}: {error}") from error
        key = (world.key(), tuple((name, tuple(done), name in live) for name, done in steps.items()))
        if key in seen:
            continue
        seen.add(key)
        runnable = [name for name in live if world.is_runnable(name)]
        if not runnable:
            ends += 1
            try:
                assert not live, f"{', '.join(live)} waits for ever"
                world.check_end()
            except AssertionError as error:
                raise AssertionError(f"schedule {schedule}: {error}") from error
        pending += [(*schedule, name) for name in runnable]
    return Walk(len(seen), ends)


def _step(live: dict[str, Generator[str, None, None]], steps: dict[str, list[str]], name: str) -> None:
    try:
        steps[name].append(next(live[name]))
    except StopIteration:
        steps[name].append("end")
        del live[name]
