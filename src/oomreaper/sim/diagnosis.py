"""Who waits for whom, when nothing goes on any more: the ring among them by name, and a line for each sleeper."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from oomreaper.sim.engine import Actor, Rest
from oomreaper.sim.tasks import Thread

if TYPE_CHECKING:
    from oomreaper.sim.machine import Machine


class Diagnosis(NamedTuple):
    """``cycle`` names the actors that wait for each other in a ring, the first again at the end; empty: there is none.

    ``lines`` say of each sleeper what it waits for and who must act for that.
    """

    cycle: tuple[str, ...]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        head = f"a ring: {' -> '.join(self.cycle)}" if self.cycle else "no ring of waiters"
        return "\n".join([head, *self.lines])


def diagnose(machine: Machine) -> Diagnosis:
    """As things stand."""
    waiting = [
        actor
        for actor in machine.engine.actors
        if not actor.is_over and actor.waits_for is not None and not isinstance(actor.waits_for, Rest)
    ]
    edges = {actor: [other for other in _waited_for(actor) if isinstance(other, Actor)] for actor in waiting}
    lines = []
    for actor in waiting:
        assert actor.waits_for is not None
        whom = ", ".join(dict.fromkeys(other.name for other in edges[actor])) or "nobody that can be named"
        lines.append(f"{actor.name} ({_describe(actor)}) waits for {actor.waits_for.describe()}: {whom}")
    return Diagnosis(tuple(actor.name for actor in _find_cycle(edges)), tuple(lines))


def _waited_for(actor: Actor) -> list[object]:
    return [] if actor.waits_for is None else list(actor.waits_for.waits_for())


def _describe(actor: Actor) -> str:
    words = [actor.letter]
    thread = actor.owner
    if isinstance(thread, Thread):
        if thread.process.is_group_exit:
            words.append("dying")
        if thread.stack:
            words.append(f"in {thread.stack[0]}")
    return ", ".join(words)


def _find_cycle(edges: dict[Actor, list[Actor]]) -> list[Actor]:
    """The first ring there is, depth first, in the order in which the actors were made."""
    done: set[Actor] = set()
    for start in edges:
        path: list[Actor] = []
        where: dict[Actor, int] = {}
        stack: list[tuple[Actor, int]] = [(start, 0)]
        while stack:
            actor, position = stack.pop()
            if position == 0:
                if actor in done:
                    continue
                where[actor] = len(path)
                path.append(actor)
            followers = edges.get(actor, [])
            if position < len(followers):
                stack.append((actor, position + 1))
                following = followers[position]
                if following in where:
                    return [*path[where[following] :], following]
                if following not in done:
                    stack.append((following, 0))
            else:
                done.add(actor)
                path.pop()
                del where[actor]
    return []
