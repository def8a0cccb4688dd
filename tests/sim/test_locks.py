"""The fair rwsem: who gets it next, and who may leave the queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oomreaper.sim.checks import Violation
from oomreaper.sim.choice import Seeded
from oomreaper.sim.engine import Ending, Engine
from oomreaper.sim.locks import Killed, Mutex, RwSem

if TYPE_CHECKING:
    from oomreaper.sim.engine import Actor, Steps


class _Scene:
    """Actors that take a lock in the order in which they are made."""

    def __init__(self) -> None:
        self.engine = Engine(Seeded(1))
        self.lock = RwSem(self.engine, "lock")
        self.got: list[str] = []

    def add(self, name: str, *, is_writer: bool, is_killable: bool = False, holds: int = 1_000_000) -> Actor:
        actor = self.engine.spawn(name, self._take(name, is_writer=is_writer, is_killable=is_killable, holds=holds))
        self.engine.step(actor)
        return actor

    def _take(self, name: str, *, is_writer: bool, is_killable: bool, holds: int) -> Steps:
        me = self.engine.current
        assert me is not None
        take = self.lock.write if is_writer else self.lock.read
        try:
            yield from take(me, is_killable=is_killable)
        except Killed:
            self.got.append(f"{name} left")
            return
        self.got.append(name)
        for _ in range(holds):
            yield
        if is_writer:
            self.lock.unlock_write(me)
        else:
            self.lock.unlock_read(me)


def test_a_queued_writer_stops_later_readers() -> None:
    """A reader holds, a writer waits: the next reader waits behind the writer, and a trylock fails."""
    scene = _Scene()
    scene.add("reader", is_writer=False)
    scene.add("writer", is_writer=True)
    late = scene.add("late", is_writer=False)

    assert scene.got == ["reader"]
    assert not scene.lock.try_read(late)
    assert late.letter == "D"


def test_readers_behind_a_killed_writer_get_on() -> None:
    """A killable writer that gets a fatal signal leaves the queue, and those behind it go on."""
    scene = _Scene()
    scene.add("reader", is_writer=False)
    writer = scene.add("writer", is_writer=True, is_killable=True)
    scene.add("late", is_writer=False)

    was_asleep = scene.engine.interrupt(writer)
    scene.engine.run(max_steps=20)

    assert was_asleep
    assert sorted(scene.got) == ["late", "reader", "writer left"]


def test_a_doomed_actor_does_not_go_to_sleep_in_a_killable_wait() -> None:
    """With a fatal signal pending, the wait ends at once; an uninterruptible one does not."""
    scene = _Scene()
    scene.add("writer", is_writer=True)
    doomed = scene.engine.spawn("doomed", scene._take("doomed", is_writer=False, is_killable=True, holds=1))
    doomed.is_doomed = True

    scene.engine.step(doomed)
    scene.engine.step(doomed)

    assert "doomed left" in scene.got


@settings(max_examples=200)
@given(kinds=st.lists(st.booleans(), min_size=1, max_size=12), seed=st.integers(0, 1 << 16))
def test_everybody_gets_it_in_order_and_never_beside_a_writer(kinds: list[bool], seed: int) -> None:
    """Whatever the mix of readers and writers: all get it, first come first served, a writer alone."""
    engine = Engine(Seeded(seed))
    lock = RwSem(engine, "lock")
    inside: list[bool] = []
    arrived: list[int] = []
    served: list[int] = []

    def take(number: int, *, is_writer: bool) -> Steps:
        me = engine.current
        assert me is not None
        arrived.append(number)
        yield from lock.write(me) if is_writer else lock.read(me)
        served.append(number)
        inside.append(is_writer)
        assert len(inside) == 1 or not any(inside)
        yield
        inside.pop()
        if is_writer:
            lock.unlock_write(me)
        else:
            lock.unlock_read(me)

    for number, is_writer in enumerate(kinds):
        engine.spawn(str(number), take(number, is_writer=is_writer))
    ending = engine.run(max_steps=1_000)

    assert ending is Ending.QUIET
    writers = [number for number in arrived if kinds[number]]
    assert [number for number in served if kinds[number]] == writers
    assert not lock.is_held()


def test_who_does_not_hold_it_cannot_let_go_of_it() -> None:
    """An unlock by a stranger is a violation, not a quiet loss of the lock."""
    engine = Engine(Seeded(1))
    lock = Mutex(engine, "inode")
    actor = engine.spawn("stranger", iter(()))  # type: ignore[arg-type] # it never runs

    with pytest.raises(Violation, match="does not hold"):
        lock.unlock(actor)
